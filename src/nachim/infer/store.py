"""The tensors of the cache: pages of what grows with the tokens, and what layers keep beside."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from nachim.infer.pages import Pages
from nachim.infer.prefix import Group
from nachim.infer.sequence import Sequence
from nachim.infer.shelf import NARROW, PLACES, Coded, NarrowChannels, NarrowTokens, Plain, Shape, Shelf
from nachim.model.depths import ROWS, Rows
from nachim.spec import MLA, Attention, Decoder, UserError
from nachim.spec.cached import BLOCK, Cached
from nachim.spec.model import Block

States = list[dict[str, Any]]
FOUR_BITS = {"key": NarrowChannels, "value": NarrowTokens, "latent": NarrowChannels}
"""How values of each name are made four bits."""


@dataclass(frozen=True)
class Kept:
    """What one layer keeps in pages: by name, the sizes before and after the axis of tokens; and its window."""

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    window: Group = None


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
    """For every layer, pages of `page` slots for `tokens` tokens; layers of one window share tables.

    In eight bits (`cache="int8"`) a page is what it is otherwise. With "int4" the whole blocks that a sequence has read
    stand in four bits, in half the pages, each of them twice in the table; tokens after them in eight. Windows that do
    not reach over a block stay in eight. Raises UserError where four bits cannot be.
    """

    def __init__(
        self,
        spec: Decoder,
        tokens: int,
        page: int,
        dtype: torch.dtype,
        device: torch.device,
        cache: Cached | None = None,
        block: int = BLOCK,
    ) -> None:
        if cache not in (None, *get_args(Cached)):
            raise UserError(f"cache is {cache!r}; it must be 'int8' or 'int4', or None to keep what is computed")
        if cache == "int4" and block % (2 * page):
            raise UserError(f"block is {block}; with cache='int4' it must be a multiple of {2 * page}")
        self.page, self.block, self.cache = page, block, cache
        self.dtype, self.device = dtype, device
        self.layers = [kept(block) for block in spec.blocks]
        self._check(tokens)
        groups = {layer.window for layer in self.layers if layer.shapes}
        self.packing = {group for group in groups if cache == "int4" and (group is None or group >= block)}
        self.pools: dict[Group, Pages] = {group: Pages(self._pages(group, tokens)) for group in groups}
        self.mates = {
            group: torch.zeros(len(self.pools[group].owners), block // page // 2, dtype=torch.int32, device=device)
            for group in self.packing
        }
        self.shelves = [
            {name: self._shelf(layer.window, name, shape) for name, shape in layer.shapes.items()}
            for layer in self.layers
        ]

    def _check(self, tokens: int) -> None:
        """Refuse what the machine has no memory for: it would be given, and the process ended when it is used."""
        sizes = [math.prod((*before, *after)) for layer in self.layers for before, after in layer.shapes.values()]
        bits = {None: 8 * self.dtype.itemsize, "int8": 8, "int4": 4}[self.cache]
        wanted, there = sum(sizes) * tokens * bits // 8, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.device.type == "cpu" and wanted > there:
            raise UserError(
                f"a cache of {tokens:,} tokens takes {wanted / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f}: "
                "give fewer cache_tokens"
            )

    def _pages(self, group: Group, tokens: int) -> int:
        """As many as one sequence of all the tokens needs."""
        if group not in self.packing:
            return -(-tokens // self.page)
        return -(-tokens // (2 * self.page)) + self.block // self.page // 2

    def _shelf(self, group: Group, name: str, shape: Shape) -> Shelf:
        count = len(self.pools[group].owners)
        if self.cache is None:
            return Plain(shape, count, self.page, self.dtype, self.device)
        if group not in self.packing:
            return Coded(shape, count, self.page, self.dtype, self.device)
        return FOUR_BITS[name](shape, count, self.page, self.dtype, self.device, self.mates[group])

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, used or not."""
        pages = sum(shelf.nbytes for layer in self.shelves for shelf in layer.values())
        return pages + sum(mates.nbytes for mates in self.mates.values())

    def used_bytes(self) -> int:
        """Bytes of the pages that have an owner."""
        owned = {group: len(pool.owners) - pool.free for group, pool in self.pools.items()}
        layers = zip(self.layers, self.shelves, strict=True)
        return sum(owned[layer.window] * shelf.page_bytes for layer, held in layers for shelf in held.values())

    def copy(self, group: Group, old: int, new: int) -> None:
        """Copy a page in all layers of a group."""
        for shelf in self._of(group):
            shelf.copy(old, new)

    def pack(self, group: Group, old: list[int], new: list[int]) -> None:
        """Write a block that stands in the pages `old` into `new`, half as many, in all layers of a group."""
        self.mates[group][new] = torch.tensor(new, dtype=torch.int32, device=self.device)
        for shelf in self._of(group):
            shelf.pack(old, new)

    def _of(self, group: Group) -> list[Any]:
        layers = zip(self.layers, self.shelves, strict=True)
        return [shelf for layer, held in layers if layer.window == group for shelf in held.values()]

    def slots(self, sequence: Sequence, group: Group, begin: int, end: int) -> Tensor:
        """Where its tokens [begin, end) stand: numbers that `read` and `write` know."""
        index = np.arange(begin, end)
        pages = np.asarray(sequence.tables[group])[index // self.page]
        if self.cache is None:
            found = pages * self.page + index % self.page
        else:
            found = pages * PLACES + index % self.page
            if group in self.packing:
                packed = index < sequence.computed // self.block * self.block
                found = np.where(packed, pages * PLACES + NARROW + index % (2 * self.page), found)
        return torch.from_numpy(found).to(self.device)

    def read(self, layer: int, name: str, slots: Tensor) -> Tensor:
        """The values in these slots, [1, ..., slots, ...]."""
        return self.shelves[layer][name].read(slots)

    def write(self, layer: int, name: str, slots: Tensor, values: Tensor) -> None:
        """Put values [..., slots, ...] into these slots."""
        self.shelves[layer][name].write(slots, values)


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
