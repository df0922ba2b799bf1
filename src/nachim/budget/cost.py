"""What runs cost: seconds from measured throughput, bytes on disk."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from nachim.spec import Run


def disk_bytes(run: Run) -> int:
    """Bytes one run leaves on disk: fp32 weights and AdamW's two moments, and about 100 bytes of metrics a step."""
    return 12 * run.model.params_total + 100 * run.train.steps


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Wall time of jobs of `seconds`, longest first, each to the worker that is free first (Graham 1969)."""
    free = [0.0] * workers
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + job)
    return max(free)
