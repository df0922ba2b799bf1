"""The form of the mixture law: one held-out text's loss over shares of corpora, and over scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nachim.law.forms import Array, Expansion, Fittable, Sample, best_spread

DRAWN = 64
"""Points drawn for each start that is kept."""
STEEP, GAIN = 3.0, 0.6
"""Half the range of the slopes that are drawn, and the largest power of scale."""
FLOOR = (-9.0, 1.0)
"""Bounds of the log of the floor over the mean loss."""
ALONE = (-12.0, 6.0)
"""Bounds of the log of what one corpus alone leaves above the floor, over the mean loss."""
POWER = (0.0, 5.0)
"""Bounds of the powers of scale: below 0 a longer run would be worse, and two token counts of small runs say so at
times, of a part of the loss that the other part makes up for (ideas/code_share.md)."""


@dataclass(frozen=True)
class Mixing(Fittable):
    """L = c + exp(Σ_j b_j r_j) over shares r of `corpora` corpora, log c and each b_j falling with the logs of `scales`
    columns of scale.

    At one scale that is c + k·exp(Σ_j t_j r_j) (arXiv 2403.16952 eq. 6) with b_j = log k + t_j: as shares add up to 1,
    k and the mean of t are one coefficient, and e^b_j is what the text's loss would be above its floor c after corpus j
    alone. Powers of scale are not the paper's, which fits each mixture's runs by themselves first: here the floor, and
    what corpus j alone leaves above it, each fall as a power of their own of each scale.

    A law to `nachim.law.solve.minimise`: its inputs are the shares, (n,) each, and the logs of the scales over their
    units; a point is (log c, b) at the units, then the powers (of c, of e^b) of each scale, losses being over their
    geometric mean.
    """

    corpora: int
    scales: int = 0

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return (1 + self.corpora) * (1 + self.scales)

    @cached_property
    def low(self) -> Array:
        """Lower bounds, (size,)."""
        return self._bounds(0)

    @cached_property
    def high(self) -> Array:
        """Upper bounds, (size,)."""
        return self._bounds(1)

    def _bounds(self, end: int) -> Array:
        powers = [POWER[end]] * (1 + self.corpora) * self.scales
        return np.array([FLOOR[end], *[ALONE[end]] * self.corpora, *powers])

    def at(self, z: Array, logs: Array) -> Array:
        """(log c, b) at a scale whose logs over the units are `logs` (scales,): (..., 1 + corpora) of (..., size)."""
        rows = z.reshape(*z.shape[:-1], 1 + self.scales, 1 + self.corpora)
        return np.asarray(rows[..., 0, :] - np.einsum("s,...sj->...j", logs, rows[..., 1:, :]))

    def value(self, z: Array, *inputs: Array) -> Array:
        """Log of the loss, (..., n), at points `z` (..., size)."""
        floor, excess = self._columns(inputs)
        return np.logaddexp(z @ floor, z @ excess)

    def expand(self, z: Array, *inputs: Array) -> Expansion:
        """As `Law.expand`: value, slope and curvature."""
        floor, excess = self._columns(inputs)
        above = z @ excess
        value = np.logaddexp(z @ floor, above)
        part = np.exp(above - value)
        slope = (1 - part)[..., None, :] * floor + part[..., None, :] * excess
        apart = excess - floor

        def curvature(c: Array) -> Array:
            return np.einsum("...n,pn,qn->...pq", c * part * (1 - part), apart, apart)

        return value, slope, curvature

    def starts(self, sample: Sample, weight: Array, count: int) -> Array:
        """`count` points to start from, (count, size): slopes and powers are drawn, floor and height solved for."""
        use = weight > 0
        rng, drawn = np.random.default_rng(0), DRAWN * count
        slopes = rng.uniform(-STEEP, STEEP, (drawn, self.corpora))
        slopes -= slopes.mean(axis=1, keepdims=True)
        powers = rng.uniform(0, GAIN, (drawn, (1 + self.corpora) * self.scales))
        points = np.concatenate([np.zeros((drawn, 1)), slopes, powers], axis=1)
        bends = [np.exp(points @ columns[:, use]) for columns in self._columns(sample.inputs)]
        parts = _projected(*bends, np.exp(sample.log_loss[use]), weight[use])
        points[:, 0] += np.log(parts[0])
        points[:, 1 : 1 + self.corpora] += np.log(parts[1])[:, None]
        points = np.clip(points, self.low, self.high)
        return best_spread(self, sample, weight, points, count)  # type: ignore[arg-type]

    def _columns(self, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        """What a point is multiplied with for the log of the floor, and of what is above it: (size, n) each."""
        shares, logs = np.stack(inputs[: self.corpora]), inputs[self.corpora :]
        steps = np.stack([np.ones(shares.shape[1]), *(-log for log in logs)])
        none = np.zeros((1, shares.shape[1]))
        floor = np.concatenate([none + 1, np.zeros_like(shares)])
        excess = np.concatenate([none, shares])
        found = [(steps[:, None] * rows).reshape(self.size, -1) for rows in (floor, excess)]
        return found[0], found[1]


def _projected(one: Array, other: Array, loss: Array, weight: Array) -> tuple[Array, Array]:
    """The two heights, above 0, by which rows of `one` and `other` (m, n) add up to `loss` (n,) best: (m,) each."""
    a, b, c = (one * one) @ weight, (one * other) @ weight, (other * other) @ weight
    right = [(rows * loss) @ weight for rows in (one, other)]
    whole = np.maximum(a * c - b * b, 1e-300)
    first, second = (c * right[0] - b * right[1]) / whole, (a * right[1] - b * right[0]) / whole
    alone = right[0] / a, right[1] / c
    spoilt = (first <= 0) | (second <= 0) | (a * c - b * b < 1e-9 * a * c)
    return np.where(spoilt, 0.9 * alone[0], first), np.where(spoilt, 0.1 * alone[1], second)
