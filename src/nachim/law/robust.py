"""Standard errors that hold with few, unequal groups of dependent observations.

Runs of one chain share most of their training, so their noise is shared: what counts is how many chains there are, and
a bootstrap over five of them is far too sure of itself. The bias-reduced estimate CR2 of Bell and McCaffrey (2002),
with the degrees of freedom that they take from Satterthwaite, is made for that (Pustejovsky and Tipton 2018, arXiv
1601.01981, eqs. 5 and 11, with an identity as the working covariance).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from nachim.law.forms import Array


@dataclass(frozen=True, eq=False)
class Robust:
    """A least-squares solution `point` (p,), whose residuals (n,) have the Jacobian `slope` (n, p), and the `cluster`
    label (n,) of each residual; residuals of different clusters are independent."""

    point: Array
    slope: Array
    residual: Array
    cluster: npt.NDArray[np.intp]

    @property
    def bread(self) -> Array:
        """(J'J)^-1, (p, p): the covariance in units of the residuals' variance, were they independent."""
        return np.linalg.pinv(self.slope.T @ self.slope, hermitian=True)

    def spread(self, contrast: Array) -> tuple[float, float]:
        """Standard error of `contrast` · point, and its degrees of freedom (never fewer than one)."""
        bread = self.bread
        whole = bread @ contrast
        meat, own, pulls = 0.0, [], []
        for label in np.unique(self.cluster):
            rows = self.slope[self.cluster == label]
            reach = _root_of_inverse(np.eye(len(rows)) - rows @ bread @ rows.T) @ (rows @ whole)
            meat += float(reach @ self.residual[self.cluster == label]) ** 2
            own.append(float(reach @ reach))
            pulls.append(rows.T @ reach)
        shared = np.diag(own) - np.array(pulls) @ bread @ np.array(pulls).T
        freedom = np.trace(shared) ** 2 / max(float((shared**2).sum()), 1e-300)
        return float(np.sqrt(meat)), max(1.0, float(freedom))

    def interval(self, contrast: Array, level: float = 0.95) -> tuple[float, float, float]:
        """`contrast` · point with its `level` interval: value, low, high."""
        value = float(contrast @ self.point)
        error, freedom = self.spread(contrast)
        reach = error * float(stats.t.ppf((1 + level) / 2, freedom))
        return value, value - reach, value + reach

    def p_value(self, contrast: Array) -> float:
        """Chance of a `contrast` · point this far from 0, either way, were it 0."""
        error, freedom = self.spread(contrast)
        return float(2 * stats.t.sf(abs(contrast @ self.point) / max(error, 1e-300), freedom))


def _root_of_inverse(matrix: Array) -> Array:
    """The symmetric root of the inverse; directions in which `matrix` vanishes stay out."""
    values, vectors = np.linalg.eigh(matrix)
    kept = np.where(values > 1e-8, 1 / np.sqrt(np.maximum(values, 1e-8)), 0.0)
    root: Array = (vectors * kept) @ vectors.T
    return root
