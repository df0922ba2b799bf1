"""The tensors of the cache: pages of what grows with the tokens, and what layers keep beside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nachim.infer.pages import Pages
from nachim.infer.prefix import Group
from nachim.infer.sequence import Sequence
from nachim.model.depths import ROWS, Rows
from nachim.spec import MLA, Attention, Decoder
from nachim.spec.model import Block

States = list[dict[str, Any]]


@dataclass(frozen=True)
class Kept:
    """What one layer keeps in pages: by name, the sizes before and after the axis of tokens; and its window."""

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    window: Group = None

    @property
    def values(self) -> int:
        """Values a token."""
        return sum(int(torch.Size(before + after).numel()) for before, after in self.shapes.values())


def kept(block: Block) -> Kept:
    """What a layer of this kind keeps in pages; the rest of what it remembers is a state."""
    mixer = block.mixer
    if block.share < 1:  # its sequences differ in how many of their tokens it worked on
        return Kept({})
    if isinstance(mixer, Attention):
        sizes = ((mixer.n_kv_heads,), (mixer.d_head,))
        return Kept({"key": sizes, "value": sizes}, mixer.window)
    if isinstance(mixer, MLA):
        return Kept({"latent": ((), (mixer.rank + mixer.rope_dim,))})
    return Kept({})


class Store:
    """For every layer, `tokens` slots in pages of `page`; layers of one window share tables."""

    def __init__(self, spec: Decoder, tokens: int, page: int, dtype: torch.dtype, device: torch.device) -> None:
        self.page = page
        self.layers = [kept(block) for block in spec.blocks]
        count = -(-tokens // page)
        groups = {layer.window for layer in self.layers if layer.shapes}
        self.pools: dict[Group, Pages] = {group: Pages(count) for group in groups}
        self.tensors = [
            {
                name: torch.empty(*before, count * page, *after, dtype=dtype, device=device)
                for name, (before, after) in layer.shapes.items()
            }
            for layer in self.layers
        ]
        self.dtype, self.device = dtype, device

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, used or not."""
        return sum(tensor.nbytes for layer in self.tensors for tensor in layer.values())

    def used_bytes(self) -> int:
        """Bytes of the pages that have an owner."""
        owned = {group: len(pool.owners) - pool.free for group, pool in self.pools.items()}
        values = sum(owned[layer.window] * layer.values for layer in self.layers if layer.shapes)
        return values * self.page * self.dtype.itemsize

    def copy(self, group: Group, old: int, new: int) -> None:
        """Copy a page in all layers of a group."""
        size = self.page
        for layer, tensors in zip(self.layers, self.tensors, strict=True):
            if layer.window != group:
                continue
            for name, tensor in tensors.items():
                axis = len(layer.shapes[name][0])
                tensor.narrow(axis, new * size, size).copy_(tensor.narrow(axis, old * size, size))

    def slots(self, sequence: Sequence, group: Group, begin: int, end: int) -> Tensor:
        """Where its tokens [begin, end) stand."""
        index = np.arange(begin, end)
        table = np.asarray(sequence.tables[group])
        return torch.from_numpy(table[index // self.page] * self.page + index % self.page).to(self.device)

    def read(self, layer: int, name: str, slots: Tensor) -> Tensor:
        """The values in these slots, [1, ..., slots, ...]."""
        axis = len(self.layers[layer].shapes[name][0])
        return self.tensors[layer][name].index_select(axis, slots)[None]

    def write(self, layer: int, name: str, slots: Tensor, values: Tensor) -> None:
        """Put values [..., slots, ...] into these slots."""
        axis = len(self.layers[layer].shapes[name][0])
        self.tensors[layer][name].index_copy_(axis, slots, values)


def held(state: dict[str, Any]) -> dict[str, Any]:
    """A layer's state that others may hold too: modules put new tensors in place of old ones, but change `Rows`."""
    return {name: value[torch.tensor([0])] if name == ROWS else value for name, value in state.items()}


def stacked(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The states of several sequences in one layer as those of a batch."""
    rows = [held(state) for state in states]
    together: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        together[name] = Rows([value.caches[0] for value in values]) if name == ROWS else torch.cat(values)
    return together


def apart(states: dict[str, Any], row: int) -> dict[str, Any]:
    """The state of one sequence of a batch in one layer."""
    return {name: Rows([value.caches[row]]) if name == ROWS else value[row : row + 1] for name, value in states.items()}
