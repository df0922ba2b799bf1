"""Prompts that begin alike are read once: what was computed of each block is kept, by the hash of all up to it."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nachim.infer.pages import GONE, Pages

Group = int | None
"""Layers whose tokens see equally far share tables of pages: None sees all, a number a window of so many tokens."""


@dataclass(eq=False)
class Block:
    """What is kept of one block of tokens: its pages in each group, and the layers' states after it."""

    parent: bytes
    pages: dict[Group, list[int]]
    states: Any
    children: int = 0


def hashes(tokens: Sequence[int], size: int) -> list[bytes]:
    """Of each whole block of `size` tokens, the hash of it and all before it."""
    found, last = [], b""
    for begin in range(0, len(tokens) - size + 1, size):
        last = hashlib.blake2b(last + array("q", tokens[begin : begin + size]).tobytes(), digest_size=16).digest()
        found.append(last)
    return found


class Prefixes:
    """Blocks by hash, a tree through their parents; the longest unused leaf goes first when room is wanted."""

    def __init__(self, pools: Mapping[Group, Pages], size: int, most: int | None = None) -> None:
        self.pools, self.size, self.most = pools, size, most
        self.blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.asked = self.found = 0

    def match(self, keys: Sequence[bytes], page: int) -> list[Block]:
        """The longest run of kept blocks from the first on, that a sequence can go on from."""
        self.asked += len(keys)
        run: list[Block] = []
        for key in keys:
            block = self.blocks.get(key)
            if block is None:
                break
            run.append(block)
        while run and not self._complete(run, page):
            run.pop()
        for key in keys[: len(run)]:
            self.blocks.move_to_end(key)
        self.found += len(run)
        return run

    def _complete(self, run: Sequence[Block], page: int) -> bool:
        """Whether windows find all they reach back to: pages that a sequence had lost were not kept."""
        length = len(run) * self.size
        for group in self.pools:
            first = 0 if group is None else max(0, length - group + 1) // page
            pages = [page for block in run for page in block.pages[group]]
            if GONE in pages[first:]:
                return False
        return True

    def keep(self, key: bytes, parent: bytes, pages: Mapping[Group, Sequence[int]], states: Any) -> None:
        """Keep a block that was computed, as one more owner of its pages; one that is kept already stays."""
        if key in self.blocks or (parent and parent not in self.blocks):
            return
        held = {
            group: [page if page == GONE else self.pools[group].share(page) for page in row]
            for group, row in pages.items()
        }
        self.blocks[key] = Block(parent, held, states)
        if parent:
            self.blocks[parent].children += 1
        while self.most is not None and len(self.blocks) > self.most and self.forget():
            pass

    def forget(self) -> bool:
        """Let go of the leaf that was not asked for the longest; whether there was one."""
        key = next((key for key, block in self.blocks.items() if not block.children), None)
        if key is None:
            return False
        block = self.blocks.pop(key)
        if block.parent:
            self.blocks[block.parent].children -= 1
        for group, pages in block.pages.items():
            self.pools[group].drop(pages)
        return True
