"""The engine: requests in, tokens out, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nachim.infer.request import Chunk, Completion, Constraint, Sampling


class Engine:
    """Serves many requests at once. What a request gets does not depend on what else is served (`invariant`)."""

    def __init__(self, folder: Path | str, dtype: str = "float32") -> None:
        raise NotImplementedError

    def add(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        priority: int = 0,
        constraint: Constraint | None = None,
    ) -> int:
        """Queue a request; its number. Raises UserError for one that cannot be served, the others untouched."""
        raise NotImplementedError

    def step(self) -> list[Chunk]:
        """Do one pass of the model; what it says of the requests in it."""
        raise NotImplementedError

    def abort(self, request: int) -> None:
        """End a request now; what it held is free. A number that is not being served is left alone."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        raise NotImplementedError

    def generate(self, prompts: Sequence[str | Sequence[int]], **sampling: Any) -> list[Completion]:
        """The completion of each prompt, in order."""
        raise NotImplementedError
