"""One sample that is being served: its tokens, how far they were read, and what it holds of the cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nachim.infer.prefix import Group


@dataclass(eq=False)
class Sequence:
    """The first `computed` of `tokens` stand in the cache, in the pages of `tables`; `states` is what layers keep
    beside pages. `rank` orders sequences: the lowest is served first."""

    request: int
    sample: int
    tokens: list[int]
    n_prompt: int
    rank: tuple[int, int, int]
    computed: int = 0
    tables: dict[Group, list[int]] = field(default_factory=dict)
    states: list[dict[str, Any]] | None = None
    width: int = 1
    """Samples that will go on from its prompt."""
    drafts: list[int] = field(default_factory=list)
    """Guesses of the tokens after `tokens`, to be read with them."""
    keys: list[bytes] = field(default_factory=list)
    """Hashes of the prompt's whole blocks."""
    recent: tuple[int, list[dict[str, Any]]] | None = None
    """While its prompt is read: so many tokens, and what pages hold of them in each layer, in one piece."""
    reading: Any = None
    """The block of its prompt that stands between two layers."""
    extra: Any = None
    """What the engine keeps with it."""

    @property
    def prefilling(self) -> bool:
        """Whether part of its prompt has not been read."""
        return self.computed < self.n_prompt
