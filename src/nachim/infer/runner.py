"""Passes of the model over what sequences hold in the cache.

A block of a prompt is read alone, by the modules as they are: its numbers are those of the same tokens at the same
places, whoever else is served. Generated tokens are rows of one batch: everything that works on tokens one by one takes
all rows at once, and attention meets the keys of each row's own sequence (`rows`).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from nachim.infer.form import Form, Layer
from nachim.infer.invariant import packed
from nachim.infer.rows import Paged, Row, Rows
from nachim.infer.sequence import Sequence
from nachim.infer.store import States, Store, apart, held, stacked
from nachim.model import DecoderModule
from nachim.model.cache import Cache
from nachim.model.frame import Frame
from nachim.spec import InfiniAttention, NoPosition, RoPE
from nachim.spec.model import Block

RECENT_BYTES = 1 << 28
"""Of keys and values of a prompt that is being read, held beside its pages at most."""


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


class Runner:
    """A model and its store. `stateful` layers keep what only the last token's place has, so rows go one by one."""

    def __init__(self, model: DecoderModule, store: Store, invariant: bool = True) -> None:
        self.model, self.store = model, store
        self.device = store.device
        self.invariant = invariant
        self.renew()
        self.alone = [_alone(block) for block in model.spec.blocks]
        self.together = [_together(block) for block in model.spec.blocks]
        self.stateful = any(not layer.shapes for layer in store.layers) or any(
            getattr(block.mixer, "previous_key", False) for block in model.spec.blocks
        )

    def renew(self) -> None:
        """Pack the weights as they are now."""
        products = packed(self.model, self.invariant)
        # A block is read in one shape always, so that its elementwise functions are what they are.
        self.for_blocks = Form(self.model, products, self.invariant, rows=False)
        self.for_rows = Form(self.model, products, self.invariant, rows=True)

    def block(self, sequence: Sequence, begin: int, end: int) -> Tensor:
        """Read tokens [begin, end) of a prompt; the stream [1, T, D] after the last layer."""
        *_, x_1TD = self.layers(sequence, begin, end)
        return x_1TD

    @torch.inference_mode()
    def layers(self, sequence: Sequence, begin: int, end: int) -> Iterator[Tensor]:
        """Read tokens [begin, end) of a prompt, layer by layer; the stream [1, T, D] after each."""
        ids_1T = torch.tensor([sequence.tokens[begin:end]], device=self.device)
        frame = Frame((1, end - begin), self.device, begin)
        states: States = []
        recent: States = []
        x_1TD = self.for_blocks.embed(ids_1T, frame)
        for layer, module in enumerate(self.for_blocks.blocks):
            memory = self._memory(sequence, layer, begin)
            x_1TD = module(x_1TD, frame, memory)
            recent.append({name: memory[name] for name in self.store.layers[layer].shapes})
            states.append(self._put(sequence, layer, memory, begin, end))
            if len(states) == len(self.for_blocks.blocks):
                sequence.states, sequence.recent = states, self._recent(sequence, recent, end)
            yield x_1TD

    def _recent(self, sequence: Sequence, recent: States, end: int) -> tuple[int, States] | None:
        """What the next block of a prompt need not gather from pages: all that they hold of it, if that is little."""
        size = sum(value.nbytes for values in recent for value in values.values())
        return (
            (end, recent) if self.store.cache is None and end + 1 < sequence.n_prompt and size <= RECENT_BYTES else None
        )

    def _memory(self, sequence: Sequence, layer: int, length: int) -> dict[str, Tensor]:
        """What a layer remembers of a sequence's first `length` tokens, as its module knows it."""
        if not length:
            return {}
        kept = self.store.layers[layer]
        memory = held(sequence.states[layer]) if sequence.states else {}
        if kept.shapes and sequence.recent is not None and sequence.recent[0] == length:
            memory.update(sequence.recent[1][layer])
        elif kept.shapes:
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
            return self._together([row for work in works for row in _rows(work)]), [[] for _ in works]
        streams: list[list[Tensor]] = [[] for _ in works]
        after: list[list[States]] = [[] for _ in works]
        for turn in range(max(work.end - work.begin for work in works)):
            now = [number for number, work in enumerate(works) if turn < work.end - work.begin]
            rows = [Row(works[n].sequence, works[n].begin + turn, works[n].ids[turn]) for n in now]
            x_R1D = self._together(rows)
            for row, number in enumerate(now):
                streams[number].append(x_R1D[row : row + 1])
                after[number].append(works[number].sequence.states)
        return torch.cat([part for parts in streams for part in parts]), after

    def _together(self, rows: list[Row]) -> Tensor:
        """One pass over rows, the stream [rows, 1, D]."""
        order = sorted(range(len(rows)), key=lambda number: rows[number].place)
        frame = Rows(self.store, [rows[number] for number in order], self.device)
        ids_R1 = torch.tensor([[row.token] for row in frame.rows], device=self.device)
        states: list[States] = [[] for _ in rows]
        x_R1D = self.for_rows.embed(ids_R1, frame)
        for layer, module in enumerate(self.for_rows.blocks):
            form = self._one_by_one if self.alone[layer] else self._batched
            x_R1D = form(layer, module, x_R1D, frame, states)
        if self.stateful:
            for row, after in zip(frame.rows, states, strict=True):
                row.sequence.states = after
        if order == sorted(order):
            return x_R1D
        return x_R1D[torch.tensor(order, device=self.device).argsort()]

    def _batched(self, layer: int, module: Layer, x_R1D: Tensor, frame: Rows, states: list[States]) -> Tensor:
        states_of = stacked(row.sequence.states[layer] for row in frame.rows) if self.stateful else {}
        memory = Paged(frame, layer, self.together[layer], states_of)
        x_R1D = module(x_R1D, frame, memory)
        if self.stateful:
            for number, kept in enumerate(states):
                kept.append(apart(memory, number))
        return x_R1D

    def _one_by_one(self, layer: int, module: Layer, x_R1D: Tensor, frame: Rows, states: list[States]) -> Tensor:
        found = []
        for number, row in enumerate(frame.rows):
            memory = self._memory(row.sequence, layer, row.place)
            found.append(module(x_R1D[number : number + 1], Frame((1, 1), self.device, row.place), memory))
            states[number].append(self._put(row.sequence, layer, memory, row.place, row.place + 1))
        return torch.cat(found)

    @torch.inference_mode()
    def logits(self, x_BTD: Tensor, depth: int = 0) -> Tensor:
        """Logits of a stream, [rows, V] in fp32."""
        return self.for_rows.logits(x_BTD, depth).flatten(0, 1).float()

    @torch.inference_mode()
    def further(self, x_1TD: Tensor, following: list[int], cache: Cache) -> Tensor:
        """Logits [V] of the token after the last of `following`, by the model's module for the token after the next."""
        next_1T = torch.tensor([following], device=self.device)
        return self.for_rows.draft(x_1TD, next_1T, cache)[0].float()


def _together(block: Block) -> bool:
    """Whether attention may take rows of several sequences in one call: its kernel is one that keeps them apart.

    A cap on scores is a matrix product of torch's, and a bias is of the places of one row.
    """
    position = block.position
    return getattr(block.mixer, "softcap", None) is None and (position.added or isinstance(position, RoPE | NoPosition))


def _alone(block: Block) -> bool:
    """Whether a layer must be called for each sequence: it looks at the place of the first new token only."""
    position = block.position
    stretched = isinstance(position, RoPE) and position.scaling is not None and position.scaling.until is not None
    return isinstance(block.mixer, InfiniAttention) or stretched


def _rows(work: Work) -> list[Row]:
    return [Row(work.sequence, place, token) for place, token in enumerate(work.ids, work.begin)]
