"""Where the tokens of one forward pass stand: what all its layers share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class Frame:
    """The `T` new tokens of `B` sequences, after `start` tokens that a cache already holds: `S` tokens in all.

    `documents_BS` numbers the document of every one of the S tokens; None means that a sequence is one document.
    Documents are runs of one number. A token meets tokens of its own document only, and positions begin again with
    each; padding is a document of its own, by convention -1. `positions`, [T], [B, T] or (time, height, width)
    [3, B, T], stand in place of those counted from the documents.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: torch.device,
        start: int = 0,
        documents_BS: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> None:
        self.B, self.T = shape
        self.start, self.S = start, start + self.T
        self.device = device
        self.documents_BS = None if documents_BS is None else _runs(documents_BS)
        self._given = positions
        self._memo: dict[Hashable, Any] = {}
        self.look: Callable[..., None] | None = None  # for whom looks on: called with what attention is made of

    @functools.cached_property
    def positions(self) -> Tensor:
        """Those given, or counted from the beginning [T], or within documents [B, T]."""
        if self._given is not None:
            return self._given
        index_S = torch.arange(self.S, device=self.device)
        if self.documents_BS is None:
            return index_S[self.start :]
        begins_BS = torch.where(self._begins_BS(), index_S, 0).cummax(1).values
        return (index_S - begins_BS)[:, self.start :]

    def _begins_BS(self) -> Tensor:
        return _begins(self.documents_BS)

    @property
    def placed(self) -> bool:
        """Whether positions were given."""
        return self._given is not None

    @property
    def counts_from_start(self) -> bool:
        """Whether positions are start, start + 1, ... in every sequence."""
        return self.documents_BS is None and self._given is None

    @property
    def begins_BT(self) -> Tensor | None:
        """Which new tokens begin a document [B, T]; None where none does but the very first of a sequence."""
        if self.documents_BS is None:
            return None
        return self.once("begins", lambda: self._begins_BS()[:, self.start :])

    @property
    def behind(self) -> list[int] | None:
        """How many tokens of its own document stand before each new one, in the sequence where they are most."""
        if self.documents_BS is None:
            return None
        counted = Frame((self.B, self.T), self.device, self.start, self.documents_BS)
        return self.once("behind", lambda: counted.positions.amax(0).tolist())

    def part(self, begin: int, end: int) -> Frame:
        """The frame of the new tokens from `begin` to `end` alone, after all that stand before them."""
        start, stop = self.start + begin, self.start + end
        documents = None if self.documents_BS is None else self.documents_BS[:, :stop]
        given = None if self._given is None else self._given[..., begin:end]
        return Frame((self.B, end - begin), self.device, start, documents, given)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make()` gives, made by the first layer that asks for `key`."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def allowed(self, window: int | None = None, keys: int | None = None) -> Tensor | None:
        """Which of the last `keys` tokens (all S) each new token may attend to: bool [B or 1, 1, T, keys].

        Those of its document, not after it, and less than `window` before it. None where all may be attended to.
        """
        keys = self.S if keys is None else keys
        if self.T == 1 and self.documents_BS is None and (window is None or keys <= window):
            return None
        return self.once(("allowed", window, keys), lambda: self._allowed(window, keys))

    def _allowed(self, window: int | None, keys: int) -> Tensor:
        query_T1 = torch.arange(self.start, self.S, device=self.device)[:, None]
        key_S = torch.arange(self.S - keys, self.S, device=self.device)
        allowed = key_S <= query_T1
        if window is not None:
            allowed &= query_T1 - key_S < window
        if self.documents_BS is None:
            return allowed[None, None]
        documents = self.documents_BS
        same_BTS = documents[:, self.start :, None] == documents[:, None, self.S - keys :]
        return (same_BTS & allowed)[:, None]


def _begins(documents_BS: Tensor) -> Tensor:
    """Which tokens begin a run of one number."""
    same_BS = documents_BS[:, 1:] == documents_BS[:, :-1]
    return torch.cat((same_BS.new_ones(len(documents_BS), 1), ~same_BS), 1)


def _runs(documents_BS: Tensor) -> Tensor:
    """Documents numbered anew, so that a number that comes again is another document; padding stays negative."""
    run_BS = _begins(documents_BS).cumsum(1)
    return torch.where(documents_BS < 0, -run_BS, run_BS)
