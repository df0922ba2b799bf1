"""What runs cost: seconds from measured throughput, bytes on disk."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from nachim.budget.states import held_by_block
from nachim.spec import AdamW8, Decoder, Muon, Run

ROW_BYTES = 100
"""Of a step's metrics, about; they stand in every checkpoint and once beside them."""
MOMENT = 4


def disk_bytes(run: Run) -> int:
    """Bytes one run leaves on disk, at most: its metrics, and the checkpoints that its `keep` lets stay.

    Each holds the fp32 weights and the optimizer's state. While it trains the disk holds one checkpoint more, and
    another in the making.
    """
    each = 4 * run.model.params_total + moments_bytes(run)
    rows = ROW_BYTES * run.train.steps
    return checkpoints(run) * (each + rows) + rows


def checkpoints(run: Run) -> int:
    """The most checkpoints that a finished run leaves: its newest, every so many steps', and the best one's."""
    keep, steps = run.train.keep, run.train.steps
    newest = min(keep.last, steps)
    every = 0 if keep.every is None else (steps - 1) // keep.every  # the last step's is among the newest
    best = keep.best and run.validation.times > 1
    return min(steps, newest + every + best)


def moments_bytes(run: Run) -> int:
    """Bytes of optimizer state: two fp32 values a parameter; Muon keeps one of a block's matrix, 8-bit AdamW two bytes
    and their scales."""
    model, optimizer = run.model, run.train.optimizer
    matrices = matrix_params(model)
    of_matrix = 2.0 * MOMENT
    if isinstance(optimizer, Muon):
        of_matrix = 1.0 * MOMENT
    elif isinstance(optimizer, AdamW8):
        of_matrix = 2 * (1 + 4 / AdamW8.BLOCK)
    return round(of_matrix * matrices + 2 * MOMENT * (model.params_total - matrices))


def matrix_params(model: Decoder) -> int:
    """Parameters in matrices of the blocks, those of multi-token prediction too."""
    found = [held_by_block(block, model, 1, 1) for block in model.trained_blocks]
    joining = 0 if model.mtp is None else model.mtp.joining(model.d_model)
    return joining + round(sum(held.matrices + held.experts for held in found))


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Wall time of jobs of `seconds`, longest first, each to the worker that is free first (Graham 1969)."""
    free = [0.0] * workers
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + job)
    return max(free)
