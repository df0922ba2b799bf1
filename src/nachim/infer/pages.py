"""Pages of the cache: who owns which. Numbers only; the tensors are the store's."""

from __future__ import annotations

from collections.abc import Iterable

GONE = -1
"""Stands in a table for a page whose tokens no window reaches any more."""


class Pages:
    """`count` pages, each free or with as many owners as were told."""

    def __init__(self, count: int) -> None:
        self.owners = [0] * count
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """How many nobody owns."""
        return len(self._free)

    def take(self) -> int:
        """A free page, now with one owner. There must be one."""
        page = self._free.pop()
        self.owners[page] = 1
        return page

    def share(self, page: int) -> int:
        """The page, with one owner more."""
        if not self.owners[page]:
            raise ValueError(f"page {page} is free: nobody can share it")
        self.owners[page] += 1
        return page

    def drop(self, pages: Iterable[int]) -> None:
        """One owner less for each; a page without owners is free."""
        for page in pages:
            if page == GONE:
                continue
            if not self.owners[page]:
                raise ValueError(f"page {page} is free: nobody can drop it")
            self.owners[page] -= 1
            if not self.owners[page]:
                self._free.append(page)
