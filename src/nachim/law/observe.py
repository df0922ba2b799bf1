"""The table every law reads: one row a finished training run, or one decayed checkpoint of it."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nachim.law.forms import FLOPS_PER_UNIT, Array, Scale
from nachim.spec.disk import replacing
from nachim.spec.error import UserError, nearest

NUMERIC = (
    "tokens",
    "loss",
    "params",
    "flops_per_token",
    "flops",
    "lr",
    "batch_tokens",
    "seed",
    "weight",
)
POSITIVE = ("tokens", "loss", "params", "flops_per_token", "flops", "lr", "batch_tokens")


@dataclass(frozen=True, eq=False)
class Observations:
    """Equal-length columns: `tokens` D; `loss` (any positive loss: nat/token or bpb); `params` N and
    `flops_per_token` M (at least one); `flops` C, by default M·D, else 6·N·D; `lr`; `batch_tokens`; `seed`;
    `group`, a label; `weight`, how much a row counts in a fit, by default 1; `extra`, other columns by name, that
    some laws read (such as `unique_tokens`), with NaN where a row has no number.

    Raises UserError for unequal lengths, no rows, no scale column, or a number not finite or positive.
    """

    tokens: Array
    loss: Array
    params: Array | None = None
    flops_per_token: Array | None = None
    flops: Array = field(default_factory=lambda: np.empty(0))
    lr: Array | None = None
    batch_tokens: Array | None = None
    seed: Array | None = None
    group: npt.NDArray[np.str_] | None = None
    weight: Array = field(default_factory=lambda: np.empty(0))
    extra: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in NUMERIC:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64).ravel())
        if self.group is not None:
            object.__setattr__(self, "group", np.asarray(self.group, dtype=np.str_).ravel())
        extra = {name: np.asarray(column, dtype=np.float64).ravel() for name, column in self.extra.items()}
        object.__setattr__(self, "extra", extra)
        if not len(self.tokens):
            raise UserError("the observations hold no rows: at least one finished run is needed")
        if not self.scales:
            raise UserError("the observations need a column 'params' or 'flops_per_token' (the model's scale)")
        if not len(self.flops):
            scale = self.scales[0]
            object.__setattr__(self, "flops", FLOPS_PER_UNIT[scale] * self.x(scale) * self.tokens)
        if not len(self.weight):
            object.__setattr__(self, "weight", np.ones(len(self.tokens)))
        self._check()

    def _check(self) -> None:
        for name, column in self.columns().items():
            if len(column) != len(self.tokens):
                raise UserError(f"column {name!r} has {len(column)} rows, 'tokens' has {len(self.tokens)}")
            if name == "group" or name in self.extra:
                continue
            numbers = np.asarray(column, dtype=np.float64)
            wrong, what = ~np.isfinite(numbers), "not a finite number"
            if not wrong.any() and name in POSITIVE:
                wrong, what = numbers <= 0, "not positive"
            if not wrong.any() and name == "weight":
                wrong, what = numbers < 0, "negative"
            if wrong.any():
                row = int(np.argmax(wrong))
                raise UserError(
                    f"row {row + 1}, column {name!r}: {numbers[row]:g} is {what}; correct it or leave the row out"
                )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The scale columns that are present; the first one is the default of every fit."""
        names: tuple[Scale, ...] = ("flops_per_token", "params")
        return tuple(name for name in names if getattr(self, name) is not None)

    def x(self, scale: Scale) -> Array:
        """The scale column, `params` or `flops_per_token`. Raises UserError when it is absent."""
        if scale not in FLOPS_PER_UNIT:
            raise UserError(f"no scale is called {scale!r}{nearest(scale, FLOPS_PER_UNIT)}")
        column: Array | None = getattr(self, scale)
        if column is None:
            raise UserError(f"the observations have no column {scale!r}; they have {' and '.join(self.scales)}")
        return column

    def column(self, name: str, scale: Scale) -> Array:
        """What a law reads: "x" is the `scale` column, another name that column or that of `extra`.

        Raises UserError when it is absent or holds a number that is not above 0.
        """
        if name == "x":
            return self.x(scale)
        found = self.columns().get(name)
        if found is None:
            raise UserError(f"the law needs a column {name!r}{nearest(name, self.columns())}")
        numbers = np.asarray(found, dtype=np.float64)
        if (wrong := ~(np.isfinite(numbers) & (numbers > 0))).any():
            row = int(np.argmax(wrong))
            raise UserError(f"row {row + 1}, column {name!r}: {numbers[row]:g} is not a positive number")
        return numbers

    def columns(self) -> dict[str, Array | npt.NDArray[np.str_]]:
        """The columns that are present, by name, in the order of the fields, then those of `extra`."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {name: column for name, column in own.items() if column is not None} | dict(self.extra)

    def subset(self, mask: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Observations:
        """The rows chosen by a mask or by indices. Raises UserError when none is left."""
        return of({name: column[mask] for name, column in self.columns().items()})

    def write(self, path: Path | str) -> None:
        """Write CSV, or parquet where `path` ends in .parquet; atomic. Raises UserError on a full disk."""
        path = Path(path)
        columns = self.columns()
        with replacing(path) as temporary:
            if path.suffix == ".parquet":
                import pyarrow as pa
                import pyarrow.parquet as pq

                pq.write_table(pa.table({name: pa.array(column) for name, column in columns.items()}), temporary)
                return
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def of(columns: Mapping[str, Array | npt.NDArray[np.str_]]) -> Observations:
    """Observations from `columns` by name; those that are no field of it are its `extra`."""
    own = {name: column for name, column in columns.items() if name in (*NUMERIC, "group")}
    extra = {name: column for name, column in columns.items() if name not in own}
    return Observations(**own, extra=extra)  # type: ignore[arg-type]


def concat(tables: Sequence[Observations]) -> Observations:
    """All rows of `tables`, in order, with the columns that all of them have. Raises UserError if empty."""
    if not tables:
        raise UserError("there are no observations to join: at least one table is needed")
    shared = [name for name in tables[0].columns() if all(name in table.columns() for table in tables)]
    return of({name: np.concatenate([table.columns()[name] for table in tables]) for name in shared})


def read(path: Path | str) -> Observations:
    """Read a CSV or parquet table; other columns of numbers become `extra`, and those without any are ignored.

    Raises UserError, naming the file, for a missing or empty file, a missing column, or a bad number.
    """
    return _observations(Path(path), _table(Path(path)))


def read_finished(path: Path | str) -> tuple[Observations, int]:
    """As `read`, but rows whose loss is not finite are left out, and counted: runs that diverged.

    Raises UserError as `read` does, and when no run is left.
    """
    path = Path(path)
    table = _table(path)
    cells = [str(cell).strip().lower() for cell in table.get("loss", [])]
    kept = [cell not in ("", "nan", "none", "inf", "+inf", "-inf") for cell in cells]
    if cells and not any(kept):
        raise UserError(f"{path}: none of its {len(cells)} runs has a loss that is a finite number")
    if not all(kept):
        table = {
            name: [cell for cell, keep in zip(column, kept, strict=True) if keep] for name, column in table.items()
        }
    return _observations(path, table), kept.count(False)


def _table(path: Path) -> Mapping[str, list[object]]:
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a CSV or parquet table of observations")
    try:
        return _parquet(path) if path.suffix == ".parquet" else _csv(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _observations(path: Path, table: Mapping[str, list[object]]) -> Observations:
    try:
        if not table or not any(len(column) for column in table.values()):
            raise UserError("the table is empty: it needs a header and one row for each run")
        for name in ("tokens", "loss"):
            if name not in table:
                raise UserError(f"there is no column {name!r}{nearest(name, table)}")
        if not {"params", "flops_per_token"} & table.keys():
            raise UserError(f"there is no column 'params' or 'flops_per_token'{nearest('params', table)}")
        own = {name: numbers(name, table[name]) for name in (*NUMERIC, "group") if name in table}
        more = {name: _where_numbers(cells) for name, cells in table.items() if name and name not in own}
        return of(own | {name: column for name, column in more.items() if not np.isnan(column).all()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def cells(path: Path) -> Mapping[str, list[object]]:
    """The columns of a CSV or parquet table as they stand there. Raises UserError when it is not one, or empty."""
    table = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    if not table or not any(len(column) for column in table.values()):
        raise UserError("the table is empty: it needs a header and one row for each run")
    return table


def _parquet(path: Path) -> dict[str, list[object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return dict(pq.read_table(path).to_pydict())
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"this is not a readable parquet file ({error})") from None


def _csv(path: Path) -> Mapping[str, list[object]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"this is not a readable CSV file ({error})") from None
    if not rows:
        return {}
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise UserError(f"row {number} has {len(row)} cells, the header has {len(header)}")
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(header)}


def numbers(name: str, cells: list[object]) -> npt.NDArray[np.str_] | Array:
    """The column `name` as numbers, or as labels where it is `group`. Raises UserError with the row of a bad cell."""
    if name == "group":
        return np.array([str(cell) for cell in cells], dtype=np.str_)
    found = np.empty(len(cells))
    for row, cell in enumerate(cells):
        try:
            found[row] = float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise UserError(f"row {row + 1}, column {name!r}: {cell!r} is not a number") from None
    return found


def _where_numbers(cells: list[object]) -> Array:
    numbers = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        with contextlib.suppress(TypeError, ValueError):
            numbers[row] = float(cell)  # type: ignore[arg-type]
    return numbers
