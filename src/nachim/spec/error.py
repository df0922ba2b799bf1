"""The one error a person is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, said in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'd_model'?`` for a `word` misspelt in letters or case, or the known words."""
    names = sorted(known)
    spelt = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), spelt, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {spelt[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
