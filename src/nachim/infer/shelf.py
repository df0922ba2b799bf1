"""What one layer keeps under one name, in pages: as it is, in eight bits, or in eight bits first and in four then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nachim.infer.codes import by_channel, by_token, paired, steps, unpaired
from nachim.spec import UserError

Shape = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes before and after the axis of tokens."""
PLACES = 32
"""Numbers a page has for its slots: its tokens in eight bits count from 0, in four bits from `NARROW`."""
NARROW = 16
"""The first number of the slots of tokens in four bits: twice as many as of tokens in eight."""


class Shelf(Protocol):
    """Values by slots of pages."""

    page_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, used or not."""

    def read(self, slots: Tensor) -> Tensor:
        """The values in these slots, [1, ..., slots, ...]."""

    def write(self, slots: Tensor, values: Tensor) -> None:
        """Put values [..., slots, ...] into these slots."""

    def copy(self, old: int, new: int) -> None:
        """Copy a page."""


class Plain:
    """Values as they are."""

    def __init__(self, shape: Shape, pages: int, page: int, dtype: torch.dtype, device: torch.device) -> None:
        before, after = shape
        self.axis, self.page = len(before), page
        self.tensor = torch.empty(*before, pages * page, *after, dtype=dtype, device=device)
        self.page_bytes = self.nbytes // max(1, pages)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, used or not."""
        return self.tensor.nbytes

    def read(self, slots: Tensor) -> Tensor:
        """The values in these slots, [1, ..., slots, ...]."""
        return self.tensor.index_select(self.axis, slots)[None]

    def write(self, slots: Tensor, values: Tensor) -> None:
        """Put values [..., slots, ...] into these slots."""
        self.tensor.index_copy_(self.axis, slots, values)

    def copy(self, old: int, new: int) -> None:
        """Copy a page."""
        size = self.page
        self.tensor.narrow(self.axis, new * size, size).copy_(self.tensor.narrow(self.axis, old * size, size))


class Coded:
    """Eight bits a value, and a byte a token and head: the marks of a page say what its codes mean."""

    def __init__(self, shape: Shape, pages: int, page: int, dtype: torch.dtype, device: torch.device) -> None:
        before, after = shape
        self.bare = not before  # a latent is one head, and has no axis of heads
        self.page, self.dtype = page, dtype
        self.heads, self.width = math.prod(before), math.prod(after)
        self.codes = torch.zeros(pages, page * self.heads * self.width, dtype=torch.uint8, device=device)
        self.marks = torch.zeros(pages, self._marked(), dtype=torch.uint8, device=device)
        self.page_bytes = self.codes.shape[1] + self.marks.shape[1]

    def _marked(self) -> int:
        """Bytes of marks that a page needs."""
        return self.page * self.heads

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, used or not."""
        return self.codes.nbytes + self.marks.nbytes

    def read(self, slots: Tensor) -> Tensor:
        """The values in these slots, [1, ..., slots, ...]."""
        x_SKE = self.values(slots).to(self.dtype)
        return x_SKE.transpose(0, 1) if self.bare else x_SKE.transpose(0, 1)[None]

    def values(self, slots: Tensor) -> Tensor:
        """The values in these slots [slots, heads, width], fp32."""
        page, place = slots // PLACES, slots % PLACES
        codes = self.codes.view(torch.int8).view(-1, self.page, self.heads, self.width)[page, place]
        return codes * steps(self.marks[page[:, None], self._mark(place)])[..., None]

    def write(self, slots: Tensor, values: Tensor) -> None:
        """Put values [..., slots, ...] into these slots, in eight bits."""
        x_SKE = values[:, None] if self.bare else values.transpose(0, 1)
        codes, found = by_token(x_SKE.float(), 8)
        page, place = slots // PLACES, slots % PLACES
        self.codes.view(torch.int8).view(-1, self.page, self.heads, self.width)[page, place] = codes
        self.marks[page[:, None], self._mark(place)] = found

    def _mark(self, place: Tensor) -> Tensor:
        """Where the steps of tokens stand among a page's marks, [slots, heads]."""
        return place[:, None] * self.heads + torch.arange(self.heads, device=place.device)

    def copy(self, old: int, new: int) -> None:
        """Copy a page."""
        self.codes[new], self.marks[new] = self.codes[old], self.marks[old]


class Narrow(Coded):
    """Eight bits until a group of tokens is whole, four then, in half the pages. `mates` are the pages of a group."""

    def __init__(
        self, shape: Shape, pages: int, page: int, dtype: torch.dtype, device: torch.device, mates: Tensor
    ) -> None:
        width = math.prod(shape[1])
        if width % 2:
            raise UserError(f"int4 is two values a byte, and a head has {width}, an odd number: use cache='int8'")
        self.mates = mates
        super().__init__(shape, pages, page, dtype, device)

    def values(self, slots: Tensor) -> Tensor:
        """The values in these slots [slots, heads, width], fp32."""
        narrow = slots % PLACES >= NARROW
        if not narrow.any():
            return super().values(slots)
        pages, which = torch.unique(slots[narrow] // PLACES, return_inverse=True)
        pairs = self.codes[pages].view(len(pages), 2 * self.page, self.heads, self.width // 2)
        x_PSKE = self._meant(unpaired(pairs), pages)
        found = slots.new_empty(len(slots), self.heads, self.width, dtype=torch.float32)
        found[narrow] = x_PSKE[which, slots[narrow] % NARROW]
        found[~narrow] = super().values(slots[~narrow])
        return found

    def _meant(self, codes_PSKE: Tensor, pages: Tensor) -> Tensor:
        """Values of all tokens of pages."""
        raise NotImplementedError

    def pack(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Write the group that stands in the pages `old` into `new`, half as many, in four bits."""
        pages = torch.tensor(old, device=self.codes.device)
        places = torch.arange(self.page, device=pages.device)
        x_SKE = super().values((pages[:, None] * PLACES + places).flatten())
        codes_SKE, marks = self._narrowed(x_SKE)
        into = torch.tensor(new, device=pages.device)
        self.codes[into] = paired(codes_SKE).view(len(new), -1)
        self.marks[into, : marks.shape[1]] = marks

    def _narrowed(self, x_SKE: Tensor) -> tuple[Tensor, Tensor]:
        """Codes 0 to 15 of a group, and the marks of each of its pages."""
        raise NotImplementedError


class NarrowTokens(Narrow):
    """Four bits with a step a token and head."""

    def _marked(self) -> int:
        return 2 * self.page * self.heads

    def _meant(self, codes_PSKE: Tensor, pages: Tensor) -> Tensor:
        step_PSK = steps(self.marks[pages]).view(codes_PSKE.shape[:3])
        return (codes_PSKE.float() - 8) * step_PSK[..., None]

    def _narrowed(self, x_SKE: Tensor) -> tuple[Tensor, Tensor]:
        codes_SKE, found = by_token(x_SKE, 4)
        return codes_SKE + 8, found.view(-1, self._marked())


class NarrowChannels(Narrow):
    """Four bits with a step and an offset a channel; each page of a group holds a part of them."""

    def _marked(self) -> int:
        return max(super()._marked(), self._part)

    @property
    def _part(self) -> int:
        return -(-2 * self.heads * self.width // self.mates.shape[1])

    def _meant(self, codes_PSKE: Tensor, pages: Tensor) -> Tensor:
        marks = self.marks[self.mates[pages].int(), : self._part].flatten(1)
        channels = self.heads * self.width
        step, offset = marks[:, :channels], marks[:, channels : 2 * channels].contiguous().view(torch.int8)
        shape = (-1, 1, self.heads, self.width)
        return (codes_PSKE.float() + offset.view(shape)) * steps(step).view(shape)

    def _narrowed(self, x_SKE: Tensor) -> tuple[Tensor, Tensor]:
        codes_SKE, found, offset = by_channel(x_SKE)
        marks = torch.cat((found.flatten(), offset.flatten().view(torch.uint8)))
        count = self.mates.shape[1]
        return codes_SKE, F.pad(marks, (0, self._part * count - len(marks))).view(count, -1)
