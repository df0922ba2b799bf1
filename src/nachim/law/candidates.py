"""Runs that could be made, and what each would cost beside those that are made already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nachim.law.forms import FLOPS_PER_UNIT, Array, Scale
from nachim.law.observe import cells, numbers
from nachim.spec.error import UserError, nearest

MOST = 5000
"""Candidates of one choice: their covariance is held whole."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Runs that could be made: scale `x` (in the study's scale), `tokens`, and `cost` of each made alone, all (m,).

    Candidates of one `trunk` share a prefix: `shared` (m,) is the part of `cost` that another run of the trunk which
    goes at least as far need not pay again (for WSD, the steps before the decay). `paid` maps trunks to how far they
    have come already, in the same unit. Costs are FLOP, or anything else that adds up.
    """

    x: Array
    tokens: Array
    cost: Array
    trunk: npt.NDArray[np.str_] | None = None
    shared: Array | None = None
    paid: dict[str, float] | None = None

    def __post_init__(self) -> None:
        names = [name for name in ("x", "tokens", "cost", "shared") if getattr(self, name) is not None]
        for name in names:
            column = np.asarray(getattr(self, name), dtype=np.float64).ravel()
            object.__setattr__(self, name, column)
            least = "not negative" if name == "shared" else "positive"
            wrong = ~np.isfinite(column) | (column < 0 if name == "shared" else column <= 0)
            if wrong.any():
                row = int(np.argmax(wrong))
                raise UserError(f"candidate {row + 1}: {name} is {column[row]:g}, and must be finite and {least}")
        if self.trunk is not None:
            object.__setattr__(self, "trunk", np.asarray(self.trunk, dtype=np.str_).ravel())
        sizes = {
            len(column) for column in (self.x, self.tokens, self.cost, self.trunk, self.shared) if column is not None
        }
        if sizes != {len(self.x)} or not len(self.x):
            raise UserError(f"the candidates' columns hold {sorted(sizes)} rows: each needs the same, and at least one")
        if self.shared is not None and (self.shared > self.cost).any():
            raise UserError("a candidate shares more than it costs: `shared` is a part of `cost`")
        if len(self.x) > MOST:
            raise UserError(
                f"{len(self.x):,} candidates are too many to weigh against each other: offer {MOST:,} at most"
            )
        if (self.shared is None) != (self.trunk is None):
            raise UserError("candidates that share a prefix need both columns, `trunk` and `shared`")

    def __len__(self) -> int:
        return len(self.x)

    def charged(self, chosen: Sequence[int] = ()) -> Array:
        """What each candidate costs once `chosen` are made: the part its trunk has come already is not paid again."""
        if self.shared is None or self.trunk is None:
            return self.cost
        names, trunk = np.unique(self.trunk, return_inverse=True)
        paid = self.paid or {}
        reached = np.array([paid.get(str(name), 0.0) for name in names])
        picks = np.asarray(chosen, dtype=np.intp)
        np.maximum.at(reached, trunk[picks], self.shared[picks])
        return self.cost - np.minimum(self.shared, reached[trunk])


def read_candidates(path: Path | str, scale: Scale) -> Candidates:
    """Read a CSV or parquet table of candidates, a row a run: `tokens`; the column `scale`; and, where they are there,
    `cost` (else `flops`, else 6·N·D or M·D), `trunk` and `shared`.

    Raises UserError, naming the file, for a missing or empty file, a missing column, or a bad number.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a CSV or parquet table of candidate runs")
    try:
        table = cells(path)
        for name in ("tokens", scale):
            if name not in table:
                raise UserError(f"there is no column {name!r}{nearest(name, table)}")
        known = {
            n: np.asarray(numbers(n, table[n])) for n in ("tokens", scale, "cost", "flops", "shared") if n in table
        }
        x, tokens = known[scale], known["tokens"]
        cost = known.get("cost", known.get("flops", FLOPS_PER_UNIT[scale] * x * tokens))
        trunk = np.array([str(cell) for cell in table["trunk"]]) if "trunk" in table else None
        return Candidates(x, tokens, cost, trunk, known.get("shared"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
