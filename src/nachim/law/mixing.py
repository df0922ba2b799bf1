"""The form of the mixture law: one held-out text's loss over shares of corpora, and over scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nachim.law.forms import Array, Expansion, Sample, best_spread

DRAWN = 64
"""Directions drawn for each start that is kept."""
STEEP, GAIN = 3.0, 0.6
"""Half the range of the slopes that are drawn, and the largest power of scale."""
FLOOR = (-9.0, 1.0)
"""Bounds of the log of the floor over the mean loss."""
ALONE = (-12.0, 6.0)
"""Bounds of the log of what one corpus alone leaves above the floor, over the mean loss."""


@dataclass(frozen=True)
class Mixing:
    """L = c + exp(Σ_j b_j r_j - Σ_s gamma_s log s) over shares r of `corpora` corpora and `scales` columns of scale.

    That is c + k·exp(Σ_j t_j r_j) (arXiv 2403.16952 eq. 6) with b_j = log k + t_j: as shares add up to 1, k and the
    mean of t are one coefficient, and e^b_j is what the text's loss would be above its floor c after corpus j alone.
    That excess falls as a power of each scale, which is not the paper's.

    A law to `nachim.law.solve.minimise`: its inputs are the shares, (n,) each, and the logs of the scales over their
    units; a point is (log c, b, gamma), losses being over their geometric mean.
    """

    corpora: int
    scales: int = 0

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return 1 + self.corpora + self.scales

    @cached_property
    def low(self) -> Array:
        """Lower bounds, (size,)."""
        return np.array([FLOOR[0], *[ALONE[0]] * self.corpora, *[0.0] * self.scales])

    @cached_property
    def high(self) -> Array:
        """Upper bounds, (size,)."""
        return np.array([FLOOR[1], *[ALONE[1]] * self.corpora, *[5.0] * self.scales])

    def value(self, z: Array, *inputs: Array) -> Array:
        """Log of the loss, (..., n), at points `z` (..., size)."""
        return np.logaddexp(z[..., :1], z[..., 1:] @ self._columns(inputs))

    def expand(self, z: Array, *inputs: Array) -> Expansion:
        """As `Law.expand`: value, slope and curvature."""
        columns = self._columns(inputs)
        floor, excess = z[..., :1], z[..., 1:] @ columns
        value = np.logaddexp(floor, excess)
        part = np.exp(excess - value)
        slope = np.concatenate([1 - part[..., None, :], part[..., None, :] * columns], axis=-2)
        both = np.concatenate([-np.ones((1, columns.shape[1])), columns])

        def curvature(c: Array) -> Array:
            return np.einsum("...n,pn,qn->...pq", c * part * (1 - part), both, both)

        return value, slope, curvature

    def starts(self, sample: Sample, weight: Array, count: int) -> Array:
        """`count` points to start from, (count, size): slopes are drawn, floor and height then solved for."""
        use = weight > 0
        rng, drawn = np.random.default_rng(0), DRAWN * count
        slopes = rng.uniform(-STEEP, STEEP, (drawn, self.corpora))
        slopes -= slopes.mean(axis=1, keepdims=True)
        slopes = np.concatenate([slopes, rng.uniform(0, GAIN, (drawn, self.scales))], axis=1)
        bend = np.exp(slopes @ self._columns(sample.inputs)[:, use])
        floor, height = _projected(bend, np.exp(sample.log_loss[use]), weight[use])
        slopes[:, : self.corpora] += np.log(height)[:, None]
        points = np.clip(np.column_stack([np.log(floor), slopes]), self.low, self.high)
        return best_spread(self, sample, weight, points, count)  # type: ignore[arg-type]

    def _columns(self, inputs: tuple[Array, ...]) -> Array:
        return np.stack([*inputs[: self.corpora], *(-one for one in inputs[self.corpora :])])


def _projected(bend: Array, loss: Array, weight: Array) -> tuple[Array, Array]:
    """Floor and height that fit loss = floor + height·bend best, above 0, for each row of `bend` (m, n): (m,) each."""
    total = weight.sum()
    mean, middle = (bend @ weight) / total, float(loss @ weight) / total
    apart = bend - mean[:, None]
    spread = (apart**2) @ weight
    height = (apart @ (weight * (loss - middle))) / np.maximum(spread, 1e-300)
    height = np.where((height > 0) & (spread > 1e-12), height, 0.1 * middle / mean)
    most = 0.98 * middle / mean
    height = np.minimum(height, most)
    return np.maximum(middle - height * mean, 0.02 * middle), height
