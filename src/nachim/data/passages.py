"""Long texts to passages of bounded length, so that a model of short context reads and writes whole documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator


def passages(text: str, longest: int) -> Iterator[str]:
    """`text` in passages of at most `longest` characters: whole blocks between blank lines, as many as fit, in order.

    A longer block is cut at line ends; a longer line is left out, and parts blocks as a blank line does. No passage is
    empty, and none begins or ends with a blank line.
    """
    held = ""
    for block in _blocks(text, longest):
        joined = f"{held}\n\n{block}" if held else block
        if len(joined) > longest:
            yield held
            joined = block
        held = joined
    if held:
        yield held


def _blocks(text: str, longest: int) -> Iterator[str]:
    held = list[str]()
    for line in [*text.splitlines(), ""]:
        if held and (not line.strip() or sum(map(len, held)) + len(held) + len(line) > longest):
            yield "\n".join(held)
            held = []
        if line.strip() and len(line) <= longest:
            held.append(line)


def drawn(texts: Iterable[str], size: int) -> list[str]:
    """Different texts of about `size` UTF-8 bytes together, drawn by their hashes: the same whatever their order.

    All of them where there are fewer.
    """
    order = sorted({hashlib.sha256(text.encode()).digest(): text for text in texts}.items())
    found, total = list[str](), 0
    for _, text in order:
        if total >= size:
            break
        found.append(text)
        total += len(text.encode())
    return found
