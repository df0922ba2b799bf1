"""The table that the mixture law reads: of each run its shares of the corpora, and its loss on each held-out text."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nachim.law.forms import Array
from nachim.law.observe import cells, numbers
from nachim.spec.disk import replacing
from nachim.spec.error import UserError

SHARE, LOSS = "share/", "loss/"
"""What the names of columns begin with: the share of a training corpus, the loss on a held-out text."""
SCALES = ("tokens", "params", "flops_per_token", "flops")
"""Columns of scale that a law may read where they vary; the first of those that move together counts."""
ALIKE = 1e-4
"""Shares closer than this are those of one mixture."""


@dataclass(frozen=True, eq=False)
class MixtureRuns:
    """One row a finished run. `shares` (n, corpora) add up to 1 in each row; `losses` (n, texts) are above 0, of
    whatever unit; `scales` are the columns of `SCALES` that there are, (n,) each; `seed` (n,).

    Raises UserError, naming row and column, for what is missing, negative or not a number.
    """

    corpora: tuple[str, ...]
    texts: tuple[str, ...]
    shares: Array
    losses: Array
    scales: Mapping[str, Array]
    seed: Array

    @classmethod
    def of(cls, columns: Mapping[str, Array]) -> MixtureRuns:
        """The table with these `columns` by name: `share/NAME` (any weights, at least two), `loss/NAME`, and where
        there are any `tokens`, `params`, `flops_per_token`, `flops`, `seed`."""
        corpora = tuple(name.removeprefix(SHARE) for name in columns if name.startswith(SHARE))
        texts = tuple(name.removeprefix(LOSS) for name in columns if name.startswith(LOSS))
        if not texts or not corpora:
            missing = f"{LOSS}NAME" if corpora else f"{SHARE}NAME"
            raise UserError(f"there is no column '{missing}': a row needs the share of each corpus and held-out losses")
        if len(corpora) < 2:
            raise UserError(f"there is one corpus, {corpora[0]!r}: a mixture is of two or more (columns '{SHARE}NAME')")
        shares = _at_least(columns, [SHARE + name for name in corpora], strict=False)
        if (empty := shares.sum(axis=1) <= 0).any():
            raise UserError(f"row {int(np.argmax(empty)) + 1}: its shares add up to 0, so that it has no mixture")
        losses = _at_least(columns, [LOSS + name for name in texts], strict=True)
        present = [name for name in SCALES if name in columns]
        scales = dict(zip(present, _at_least(columns, present, strict=True).T, strict=True)) if present else {}
        seed = np.asarray(columns.get("seed", np.zeros(len(shares))), dtype=np.float64)
        return cls(corpora, texts, shares / shares.sum(axis=1, keepdims=True), losses, scales, seed)

    def __len__(self) -> int:
        return len(self.shares)

    @property
    def mixture(self) -> Array:
        """Which mixture each row is of, numbered from 0 in the order of the table, (n,)."""
        return _numbered(np.round(self.shares / ALIKE))

    @property
    def trunk(self) -> Array:
        """Which rows share their training, and with it their noise: one mixture, seed and model, (n,)."""
        model = [self.scales[name] for name in ("params", "flops_per_token") if name in self.scales]
        return _numbered(np.stack([self.mixture.astype(float), self.seed, *model], axis=1))

    def columns(self) -> dict[str, Array]:
        """The table by the names of its columns."""
        found = {SHARE + name: column for name, column in zip(self.corpora, self.shares.T, strict=True)}
        found |= {LOSS + name: column for name, column in zip(self.texts, self.losses.T, strict=True)}
        return {**found, **self.scales, "seed": self.seed}

    def subset(self, mask: Array) -> MixtureRuns:
        """The rows chosen by a mask or by indices."""
        return MixtureRuns.of({name: column[mask] for name, column in self.columns().items()})

    def write(self, path: Path) -> None:
        """Write CSV, atomically."""
        columns = self.columns()
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def read(path: Path) -> MixtureRuns:
    """The runs in a CSV or parquet table; other columns are ignored. Raises UserError, naming the file."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a CSV or parquet table of runs with share/NAME and loss/NAME")
    try:
        table = dict(cells(path))
        known = [name for name in table if name.startswith((SHARE, LOSS)) or name in (*SCALES, "seed")]
        return MixtureRuns.of({name: numbers(name, table[name]) for name in known})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _at_least(columns: Mapping[str, Array], names: list[str], strict: bool) -> Array:
    """The columns called `names`, side by side. Raises UserError at the first number below 0, or at 0 if `strict`."""
    found = np.stack([np.asarray(columns[name], dtype=np.float64) for name in names], axis=1)
    right = np.isfinite(found) & ((found > 0) if strict else (found >= 0))
    if not right.all():
        row, place = (int(one) for one in np.argwhere(~right)[0])
        what = "not a number above 0" if strict else "not a share: 0 or above"
        raise UserError(
            f"row {row + 1}, column {names[place]!r}: {found[row, place]:g} is {what}; correct it or leave the row out"
        )
    return found


def _numbered(rows: Array) -> Array:
    """Equal rows (n, ...) by one number, in the order in which they come, (n,)."""
    _, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number.ravel()]
