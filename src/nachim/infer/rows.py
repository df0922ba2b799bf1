"""Rows: one new token of each of several sequences, in one pass, each meeting the keys of its own sequence.

What works on tokens one by one takes all rows at once. Attention takes together the rows whose keys are filled up to
one number; which number that is follows from a row's own keys alone, and torch's kernel gives a row the same bits
whoever is beside it, so that nobody's company shows.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from nachim.infer.prefix import Group
from nachim.infer.sequence import Sequence
from nachim.infer.store import Store
from nachim.model.cache import Apart, Mix
from nachim.model.frame import Frame

STEPS = ((1024, 64), (2048, 128))
"""Up to how many keys they are filled up to a multiple of what; beyond, of the last number twice."""


def span(keys: int) -> int:
    """How many keys a row with so many is given: at most a sixteenth more, or 63."""
    step = next((step for most, step in STEPS if keys <= most), 2 * STEPS[-1][1])
    return -(-keys // step) * step


@dataclass(frozen=True)
class Row:
    """The token at `place` of a sequence."""

    sequence: Sequence
    place: int
    token: int

    def first(self, window: Group) -> int:
        """The place of the first token that a window reaches back to."""
        return 0 if window is None else max(0, self.place + 1 - window)


class Filled(Frame):
    """One new token each of sequences with so many `keys`, its own counted, that are followed by others up to a span.

    Keys stand where they stand in the whole text, so that the kernel adds them up in the order of a pass over it.
    """

    def __init__(self, keys: list[int], span: int, device: torch.device) -> None:
        super().__init__((len(keys), 1), device, span - 1)
        own_BS = torch.arange(span, device=device) < torch.tensor(keys, device=device)[:, None]
        self.documents_BS = own_BS.long() - 1  # what fills up is padding
        self.own_B11S = own_BS[:, None, None]

    def allowed(self, window: int | None = None, keys: int | None = None) -> Tensor:
        """Which keys each new token may attend to, bool [B, 1, 1, S]: all of its own, for they are of one window."""
        return self.own_B11S


@dataclass(frozen=True)
class Together:
    """The rows [begin, end) of a pass, which attention takes in one call, and the slots of their keys, row by row."""

    begin: int
    end: int
    slots: Tensor
    frame: Frame

    def read(self, store: Store, layer: int, name: str) -> Tensor:
        """What a layer remembers of the rows' sequences by a name, [rows, ..., slots, ...]."""
        found = store.read(layer, name, self.slots)
        count = self.end - self.begin
        if count == 1:
            return found
        axis = len(store.layers[layer].shapes[name][0])
        return found[0].unflatten(axis, (count, -1)).movedim(axis, 0)


class Rows(Frame):
    """The rows of one pass, those with the fewest tokens first, so that rows of about as many keys stand together."""

    def __init__(self, store: Store, rows: Seq[Row], device: torch.device) -> None:
        super().__init__((len(rows), 1), device, max(row.place for row in rows))
        self.store, self.rows = store, rows
        self.positions = torch.tensor([[row.place] for row in rows], device=device)
        self._own: dict[tuple[Group, int], Tensor] = {}

    @property
    def counts_from_start(self) -> bool:
        """Not in step with one another."""
        return False

    def groups(self, window: Group, together: bool) -> list[Together]:
        """How attention of a window takes the rows: those of one span `together`, or each by itself."""
        return self.once(("groups", window, together), lambda: self._groups(window, together))

    def last(self, window: Group) -> Tensor:
        """The slots of the rows' own tokens."""
        return self.once(("last", window), lambda: torch.cat([self._slots(n, window)[-1:] for n in range(self.B)]))

    def _groups(self, window: Group, together: bool) -> list[Together]:
        keys = [row.place + 1 - row.first(window) for row in self.rows]
        if not together:
            return [
                Together(n, n + 1, self._slots(n, window), Frame((1, 1), self.device, row.place))
                for n, row in enumerate(self.rows)
            ]
        found = []
        for wide, run in itertools.groupby(range(self.B), lambda n: span(keys[n])):
            members = list(run)
            slots = [self._slots(n, window) for n in members]
            # what fills up is a key of the row's own, which is finite
            filled = [part for own in slots for part in (own, own[:1].expand(wide - len(own)))]
            frame = Filled([keys[n] for n in members], wide, self.device)
            found.append(Together(members[0], members[-1] + 1, torch.cat(filled), frame))
        return found

    def _slots(self, number: int, window: Group) -> Tensor:
        """The slots of the tokens that a row meets, its own last."""
        if (window, number) not in self._own:
            row = self.rows[number]
            slots = self.store.slots(row.sequence, window, row.first(window), row.place + 1)
            self._own[window, number] = slots
        return self._own[window, number]


class Paged(Apart):
    """The memory of one layer for rows: attention reads the pages, states are a batch."""

    def __init__(self, rows: Rows, layer: int, together: bool, states: dict[str, Tensor]) -> None:
        super().__init__(states)
        self.rows, self.layer, self.together = rows, layer, together

    def mixed(self, mix: Mix, q_BHTE: Tensor, new: dict[str, Tensor]) -> Tensor:
        """Write what is new of all rows, then mix: a row may be of the same sequence as one before it."""
        store, layer = self.rows.store, self.layer
        kept = store.layers[layer]
        groups, last = self.rows.groups(kept.window, self.together), self.rows.last(kept.window)
        for name, values in new.items():
            axis = len(kept.shapes[name][0])
            store.write(layer, name, last, values.squeeze(axis + 1).movedim(0, axis))
        found = []
        # one row is the same wherever it is: nothing to keep apart
        apart = contextlib.nullcontext() if self.together else torch._C.DisableTorchFunction()
        with apart:
            for group in groups:
                read = [group.read(store, layer, name) for name in new]
                found.append(mix(q_BHTE[group.begin : group.end], *read, group.frame))
        return found[0] if len(found) == 1 else torch.cat(found)
