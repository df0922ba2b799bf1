"""Passes of the model over what sequences hold in the cache.

A block of a prompt is read alone, by the modules as they are: its numbers are those of the same tokens at the same
places, whoever else is served. Generated tokens are rows of one batch: everything that works on tokens one by one takes
all rows at once, and attention is called for each row with the keys of its sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from nachim.infer.invariant import Invariant, packed
from nachim.infer.sequence import Sequence
from nachim.infer.store import States, Store, apart, held, stacked
from nachim.model import DecoderModule
from nachim.model.cache import Apart, Cache, Mix
from nachim.model.frame import Frame
from nachim.spec import InfiniAttention, RoPE
from nachim.spec.model import Block


@dataclass(eq=False)
class Work:
    """Tokens [begin, end) of a sequence, its drafts counted on."""

    sequence: Sequence
    begin: int
    end: int

    @property
    def ids(self) -> list[int]:
        """The tokens."""
        tokens, drafts = self.sequence.tokens, self.sequence.drafts
        return tokens[self.begin : self.end] + drafts[: max(0, self.end - len(tokens))]


class Rows(Frame):
    """One new token of each of several sequences, at places of their own."""

    def __init__(self, places: list[int], device: torch.device) -> None:
        super().__init__((len(places), 1), device, max(places))
        self.places = places
        self.positions = torch.tensor(places, device=device)[:, None]

    @property
    def counts_from_start(self) -> bool:
        """Not in step with one another."""
        return False


class Paged(Apart):
    """The memory of one layer for rows: attention reads the pages, states are a batch."""

    def __init__(self, store: Store, layer: int, rows: list[Slots], states: dict[str, Tensor]) -> None:
        super().__init__(states)
        self.store, self.layer, self.rows = store, layer, rows

    def mixed(self, mix: Mix, q_BHTE: Tensor, new: dict[str, Tensor]) -> Tensor:
        """Write what is new of all rows, then mix row by row: a row may be of the same sequence as one before it."""
        store, layer = self.store, self.layer
        window = store.layers[layer].window
        slots = [row.of(window) for row in self.rows]
        last = torch.stack([seen[-1] for seen in slots])
        for name, values in new.items():
            axis = len(store.layers[layer].shapes[name][0])
            store.write(layer, name, last, values.squeeze(axis + 1).movedim(0, axis))
        found = []
        with torch._C.DisableTorchFunction():  # one row is the same wherever it is: nothing to keep apart
            for number, (row, seen) in enumerate(zip(self.rows, slots, strict=True)):
                kept = [store.read(layer, name, seen) for name in new]
                found.append(mix(q_BHTE[number : number + 1], *kept, row.frame))
        return torch.cat(found)


class Slots:
    """Where what one row may meet stands."""

    def __init__(self, store: Store, sequence: Sequence, place: int, device: torch.device) -> None:
        self.store, self.sequence, self.place = store, sequence, place
        self.frame = Frame((1, 1), device, place)
        self._of: dict[int | None, Tensor] = {}

    def of(self, window: int | None) -> Tensor:
        """The slots of the tokens that a window reaches back to, the row's own last."""
        if window not in self._of:
            first = 0 if window is None else max(0, self.place + 1 - window)
            self._of[window] = self.store.slots(self.sequence, window, first, self.place + 1)
        return self._of[window]


class Runner:
    """A model and its store. `stateful` layers keep what only the last token's place has, so rows go one by one."""

    def __init__(self, model: DecoderModule, store: Store, invariant: bool = True) -> None:
        self.model, self.store = model, store
        self.device = store.device
        self.invariant = invariant
        self.renew()
        self.alone = [_alone(block) for block in model.spec.blocks]
        self.stateful = any(not layer.shapes for layer in store.layers) or any(
            getattr(block.mixer, "previous_key", False) for block in model.spec.blocks
        )

    def renew(self) -> None:
        """Pack the weights as they are now."""
        linears = packed(self.model) if self.invariant else None
        # A block is read in one shape always, so that its elementwise functions are what they are.
        self.for_blocks = None if linears is None else Invariant(linears, rows=False)
        self.for_rows = None if linears is None else Invariant(linears, rows=True)

    @torch.inference_mode()
    def block(self, sequence: Sequence, begin: int, end: int) -> Tensor:
        """Read tokens [begin, end) of a prompt; the stream [1, T, D] after the last block."""
        ids_1T = torch.tensor([sequence.tokens[begin:end]], device=self.device)
        frame = Frame((1, end - begin), self.device, begin)
        states: States = []
        with _within(self.for_blocks):
            x_1TD = self.model.embed(ids_1T, frame)
            for layer, module in enumerate(self.model.blocks):
                memory = self._memory(sequence, layer, begin)
                x_1TD = module(x_1TD, frame, memory)
                states.append(self._put(sequence, layer, memory, begin, end))
        sequence.states = states
        return x_1TD

    def _memory(self, sequence: Sequence, layer: int, length: int) -> dict[str, Tensor]:
        """What a layer remembers of a sequence's first `length` tokens, as its module knows it."""
        if not length:
            return {}
        kept = self.store.layers[layer]
        memory = held(sequence.states[layer]) if sequence.states else {}
        if kept.shapes:
            first = 0 if kept.window is None else max(0, length + 1 - kept.window)
            slots = self.store.slots(sequence, kept.window, first, length)
            memory.update({name: self.store.read(layer, name, slots) for name in kept.shapes})
        return memory

    def _put(
        self, sequence: Sequence, layer: int, memory: dict[str, Tensor], begin: int, end: int
    ) -> dict[str, Tensor]:
        """Write the new tokens' values to pages; what is left of the memory is a state."""
        kept = self.store.layers[layer]
        for name, (before, _) in kept.shapes.items():
            axis = len(before)
            values = memory.pop(name)[0]
            count = min(end - begin, values.shape[axis])
            slots = self.store.slots(sequence, kept.window, end - count, end)
            self.store.write(layer, name, slots, values.narrow(axis, values.shape[axis] - count, count))
        return memory

    @torch.inference_mode()
    def rows(self, works: Seq[Work]) -> tuple[Tensor, list[list[States]]]:
        """Read the tokens of all works, each as if it came alone: the stream [rows, 1, D], work after work.

        Beside it, for each work the states after each of its tokens; empty where the model keeps none.
        """
        if not self.stateful:
            rows = [(work.sequence, place, token) for work in works for place, token in _places(work)]
            return self._together(rows), [[] for _ in works]
        streams: list[list[Tensor]] = [[] for _ in works]
        after: list[list[States]] = [[] for _ in works]
        for turn in range(max(work.end - work.begin for work in works)):
            now = [number for number, work in enumerate(works) if turn < work.end - work.begin]
            rows = [(works[n].sequence, works[n].begin + turn, works[n].ids[turn]) for n in now]
            x_R1D = self._together(rows)
            for row, number in enumerate(now):
                streams[number].append(x_R1D[row : row + 1])
                after[number].append(works[number].sequence.states)
        return torch.cat([part for parts in streams for part in parts]), after

    def _together(self, rows: list[tuple[Sequence, int, int]]) -> Tensor:
        """One pass over rows (sequence, place, token), the stream [rows, 1, D]."""
        frame = Rows([place for _, place, _ in rows], self.device)
        slots = [Slots(self.store, sequence, place, self.device) for sequence, place, _ in rows]
        ids_R1 = torch.tensor([[token] for _, _, token in rows], device=self.device)
        states: list[States] = [[] for _ in rows]
        with _within(self.for_rows):
            x_R1D = self.model.embed(ids_R1, frame)
            for layer, module in enumerate(self.model.blocks):
                form = self._one_by_one if self.alone[layer] else self._batched
                x_R1D = form(layer, module, x_R1D, frame, slots, states)
        if self.stateful:
            for slot, after in zip(slots, states, strict=True):
                slot.sequence.states = after
        return x_R1D

    def _batched(
        self, layer: int, module: torch.nn.Module, x_R1D: Tensor, frame: Rows, rows: list[Slots], states: list[States]
    ) -> Tensor:
        states_of = stacked(row.sequence.states[layer] for row in rows) if self.stateful else {}
        memory = Paged(self.store, layer, rows, states_of)
        x_R1D = module(x_R1D, frame, memory)
        if self.stateful:
            for number, kept in enumerate(states):
                kept.append(apart(memory, number))
        return x_R1D

    def _one_by_one(
        self, layer: int, module: torch.nn.Module, x_R1D: Tensor, frame: Rows, rows: list[Slots], states: list[States]
    ) -> Tensor:
        found = []
        for number, row in enumerate(rows):
            memory = self._memory(row.sequence, layer, row.place)
            found.append(module(x_R1D[number : number + 1], row.frame, memory))
            states[number].append(self._put(row.sequence, layer, memory, row.place, row.place + 1))
        return torch.cat(found)

    @torch.inference_mode()
    def logits(self, x_BTD: Tensor, depth: int = 0) -> Tensor:
        """Logits of a stream, [rows, V] in fp32."""
        with _within(self.for_rows):
            return self.model.logits(x_BTD, depth).flatten(0, 1).float()

    @torch.inference_mode()
    def further(self, x_1TD: Tensor, following: list[int], cache: Cache) -> Tensor:
        """Logits [V] of the token after the last of `following`, by the model's module for the token after the next."""
        next_1T = torch.tensor([following], device=self.device)
        with _within(self.for_rows):
            return self.model.draft(x_1TD, next_1T, cache)[0].float()


def _within(mode: Invariant | None) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if mode is None else mode


def _alone(block: Block) -> bool:
    """Whether a layer must be called for each sequence: it looks at the place of the first new token only."""
    position = block.position
    stretched = isinstance(position, RoPE) and position.scaling is not None and position.scaling.until is not None
    return isinstance(block.mixer, InfiniAttention) or stretched


def _places(work: Work) -> list[tuple[int, int]]:
    return list(zip(range(work.begin, work.end), work.ids, strict=True))
