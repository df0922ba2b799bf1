"""What a decoder remembers of the tokens it has read, so that each is read once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nachim.spec import UserError

Mix = Callable[..., Tensor]
"""Queries [B, H, T, E], then what is remembered by its names, then a frame, to what the tokens get [B, H, T, E]."""


class Apart(dict[str, Tensor]):
    """A layer's memory of sequences that differ in length, one new token each: what mixes tokens is called for each.

    Whatever works on tokens one by one works on all of them at once, as on any batch.
    """

    def mixed(self, mix: Mix, q_BHTE: Tensor, new: dict[str, Tensor]) -> Tensor:
        """Remember what is `new` of each sequence; `mix(queries, all that it remembers, its frame)` of each."""
        raise NotImplementedError


class Cache:
    """One dict of tensors a layer, the batch as their first axis; each mixer keeps in its own what it needs.

    `length` tokens of every sequence have been read, and `documents_BS` numbers their documents where that was told.
    """

    def __init__(self, n_layers: int) -> None:
        self.layers: list[dict[str, Tensor]] = [{} for _ in range(n_layers)]
        self.length = 0
        self.documents_BS: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes kept for all sequences over all layers."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values())

    def select(self, rows: Tensor) -> Cache:
        """The cache of the sequences `rows` (int64 indices, repeated to fork one), its tensors its own."""
        chosen = Cache(len(self.layers))
        chosen.length = self.length
        chosen.documents_BS = None if self.documents_BS is None else self.documents_BS[rows]
        chosen.layers = [{name: tensor[rows] for name, tensor in layer.items()} for layer in self.layers]
        return chosen

    def extend(self, documents_BT: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor | None:
        """Take in `shape` [B, T] new tokens; the documents of all tokens now, None while each sequence is one document.

        New tokens without documents go on with the last one of their sequence. Raises UserError for another batch.
        """
        batch, new = shape
        past = self.documents_BS
        held = next((tensor.shape[0] for layer in self.layers for tensor in layer.values()), batch)
        if held != batch:
            raise UserError(f"the cache holds {held} sequences, and {batch} were given")
        if documents_BT is None and past is not None:
            documents_BT = past[:, -1:].expand(batch, new)
        if documents_BT is not None:
            past = torch.zeros(batch, self.length, dtype=torch.int64, device=device) if past is None else past
            self.documents_BS = torch.cat((past, documents_BT), 1)
        self.length += new
        return self.documents_BS


def documents_of(attention_mask_BT: Tensor) -> Tensor:
    """Documents [B, T] of padded sequences: -1 where the mask is 0 (padding), 0 elsewhere."""
    return attention_mask_BT.to(torch.int64) - 1
