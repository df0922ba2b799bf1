"""What keys that see the token before are worth: the family's attention against the same without them.

    nachim ladder --minutes 7 --out runs/base
    nachim compare runs/base ideas/compare_previous_key.py:without_previous_key --out worth.html

All else stays: shapes, tokens, the order of data, seeds. What came of it: compare_previous_key.md.
"""

from __future__ import annotations

from dataclasses import replace

from nachim.spec import Run


def without_previous_key(run: Run) -> Run:
    """The run whose keys see only their own token."""
    return replace(run, model=replace(run.model, attention=replace(run.model.attention, previous_key=False)))
