"""Tokens as text that grows: no half characters, and nothing shown that a stop string takes back."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What bytes that are no character yet are decoded to."""
LONGEST = 4
"""Bytes of a character: a text that still ends in a broken one after so many tokens is broken for good."""


class Text:
    """The text of one sample. `shown` is what was given out, `whole` what the tokens say up to a stop string."""

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.whole = ""
        self.stopped = False
        self._ids: list[int] = []
        self._begin = self._read = self._shown = 0
        self._hold = max((len(text) for text in stop), default=1) - 1

    def add(self, token: int) -> None:
        """Take in a token."""
        self._ids.append(token)
        self._take(last=False)

    def close(self) -> str:
        """No token comes any more: what was not shown yet."""
        if not self.stopped:
            self._take(last=True)
        return self.show(last=True)

    def _take(self, last: bool) -> None:
        if self.tokenizer is None:
            return
        known = self.tokenizer.decode(self._ids[self._begin : self._read])
        found = self.tokenizer.decode(self._ids[self._begin :])
        waits = found.endswith(BROKEN) and len(self._ids) - self._read < LONGEST and not last
        if waits or len(found) <= len(known):
            return
        before = len(self.whole)
        self.whole += found[len(known) :]
        self._begin, self._read = self._read, len(self._ids)
        self._find(max(0, before - self._hold))

    def _find(self, first: int) -> None:
        places = [(self.whole.find(text, first), text) for text in self.stop]
        places = [place for place in places if place[0] >= 0]
        if places:
            self.whole = self.whole[: min(places)[0]]
            self.stopped = True

    def show(self, last: bool = False) -> str:
        """What may be shown now and was not before."""
        end = len(self.whole) if last or self.stopped else max(self._shown, len(self.whole) - self._held())
        new, self._shown = self.whole[self._shown : end], max(self._shown, end)
        return new

    def _held(self) -> int:
        """Characters at the end that may begin a stop string."""
        longest = 0
        for text in self.stop:
            for size in range(min(len(text) - 1, len(self.whole)), longest, -1):
                if self.whole.endswith(text[:size]):
                    longest = size
                    break
        return longest
