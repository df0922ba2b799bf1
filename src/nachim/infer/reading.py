"""A block of a prompt on its way through the layers: it may stand between two of them while others get their tokens.

Half a block cannot be read, its shape is what makes it exact; half the layers can (layered prefill, arXiv 2510.08055).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor


class Reading:
    """The stream [1, T, D] of a block after each of `layers`, which `passes` computes when it is asked."""

    def __init__(self, passes: Iterator[Tensor], layers: int) -> None:
        self._passes, self._left = passes, layers

    def go(self, seconds: float) -> Tensor | None:
        """Go on through one layer at least, and those for which `seconds` of this thread are likely to last.

        The stream after the last layer; None before it.
        """
        began = time.thread_time()
        for done, x_1TD in enumerate(self._passes, 1):
            self._left -= 1
            if not self._left:
                return x_1TD
            if (time.thread_time() - began) * (done + 1) > seconds * done:
                break
        return None
