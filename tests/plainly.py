"""Models made of torch's operations alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from nachim.model import fused


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Functions of one pass (`nachim.model.fused`) are not used: what parts declare that they keep is without them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "library", lambda: None)
        yield
