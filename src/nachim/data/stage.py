"""What a stage is: a part that takes rows and says of each whether it stays, changed or not, or why it goes.

A row is a dictionary with `id`, `text`, `source` and whatever earlier stages wrote to it: scores (numbers) and labels
(strings) under names of their own. A stage is a pure function of its settings, the `files` it names and the rows: how
rows are dealt to shards and processes must not show in what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nachim.spec.part import Part

Row = dict[str, Any]


@dataclass(frozen=True)
class Drop:
    """A row that goes, the `reason` it is counted under, and in `about` what is particular to this one.

    `row` is the row as the stage would have left it, scores included; without it the row that came in is meant.
    """

    reason: str
    about: str = ""
    row: Row | None = None


Outcome = Row | Drop
Summary = dict[str, npt.NDArray[Any]]
"""What a whole-set stage keeps of a shard: arrays by name, none of objects."""


@dataclass(frozen=True, kw_only=True)
class Stage(Part):
    """Base of every stage. Raise `VERSION` when the same settings come to say something else of the same rows."""

    VERSION: ClassVar[int] = 1

    def files(self) -> tuple[Path, ...]:
        """Files that it reads beside the rows: when their content changes, the stage is done again."""
        return ()


@dataclass(frozen=True, kw_only=True)
class PerRow(Stage):
    """Base of a stage that looks at each row alone: override `one`, or `many` where many at once are faster.

    What is dear to load belongs in a function with `functools.cache` that takes the stage, which is a value.
    """

    def one(self, row: Row) -> Outcome:
        """What becomes of `row`; it may be changed in place."""
        raise NotImplementedError(f"{type(self).__name__} has neither `one` nor `many`")

    def many(self, rows: Sequence[Row]) -> list[Outcome]:
        """What becomes of each of `rows`, in their order."""
        return [self.one(row) for row in rows]


@dataclass(frozen=True)
class Joined:
    """What a whole-set stage decided: JSON for each shard, read once and in order, and `facts` (JSON) for a ledger."""

    decisions: Iterable[Any]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Shelf:
    """All shards of a whole-set stage's input, read when asked for, one at a time; `scratch` is an empty folder."""

    count: int
    rows: Callable[[int], list[Row]]
    summary: Callable[[int], Summary]
    scratch: Path
    tick: Callable[[float], None]
    """Hears the share of `join` that is done."""
    counts: tuple[int, ...] = ()
    """Rows of each shard."""


@dataclass(frozen=True, kw_only=True)
class WholeSet(Stage):
    """Base of a stage that must see every row before it can judge one.

    `part` and `apply` run in the workers, `join` once and alone; a shard whose decisions stay is not written again.
    """

    def part(self, rows: Sequence[Row]) -> Summary:
        """What `join` needs to know of a shard."""
        return {"rows": np.array([len(rows)])}

    def join(self, shelf: Shelf) -> Joined:
        """What is to be done with every shard."""
        raise NotImplementedError(f"{type(self).__name__} has no `join`")

    def apply(self, rows: Sequence[Row], decision: Any) -> list[Outcome]:
        """What becomes of each of `rows`, a shard, by what `join` decided about it."""
        raise NotImplementedError(f"{type(self).__name__} has no `apply`")
