"""How fast this machine multiplies matrices and moves memory: the fastest of many short tries.

Other work on the machine can only slow a try down. Kinds of work take turns, so that a burst of it meets all alike.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

TRY_SECONDS = 0.002
"""How long one try should take: longer than the clock's grain and a kernel's launch, shorter than a time slice."""
LONGEST = 0.25
"""A single multiplication that would take longer, seconds, is not measured, unless it is the smallest."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
GIVEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that tell torch how many threads to take."""
LARGEST_ARRAY = 2**30
"""Bytes of the largest array whose streaming is timed."""
Work = Callable[[], object]
Product = tuple[int, int, int]
"""Rows, inner width and columns of a matrix multiplication."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_given() -> int | None:
    """Threads of torch where whoever started this process said how many (`GIVEN`); None where nobody did."""
    return torch.get_num_threads() if any(os.environ.get(name) for name in GIVEN) else None


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest(works: Sequence[Work], device: str, seconds: float) -> list[float]:
    """Seconds that one call of each of `works` takes at its fastest; about `seconds` are spent on each, in turns."""
    repeats = [_repeats(work, device) for work in works]
    best = [float("inf")] * len(works)
    deadline = time.perf_counter() + seconds * len(works)
    while True:
        for i, work in enumerate(works):
            best[i] = min(best[i], _timed(work, repeats[i], device) / repeats[i])
        if time.perf_counter() >= deadline:
            return best


def _repeats(work: Work, device: str) -> int:
    _timed(work, 1, device)
    return max(1, round(TRY_SECONDS / max(_timed(work, 1, device), 1e-6)))


def _timed(work: Work, repeats: int, device: str) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def matmul(shape: Product, precision: str, device: str) -> Work | None:
    """A multiplication of `shape` in `precision`; None where torch has no kernel for it on `device`."""
    rows, inner, columns = shape
    a, b = _filled(rows, inner, precision, device), _filled(columns, inner, precision, device).t()
    one = torch.ones((), device=device)
    work: Work = {
        "int8": lambda: torch._int_mm(a, b),
        "fp8": lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16),
    }.get(precision, lambda: a @ b)
    try:
        work()
    except (RuntimeError, NotImplementedError, AttributeError, ValueError):
        return None
    return work


def _filled(rows: int, columns: int, precision: str, device: str) -> Tensor:
    if precision == "int8":
        return torch.randint(-99, 99, (rows, columns), dtype=torch.int8, device=device)
    return torch.randn(rows, columns, device=device).to(DTYPES[precision])


def matmul_rates(
    shapes: Sequence[Product], precisions: Sequence[str], device: str, seconds: float
) -> dict[tuple[Product, str], float]:
    """Best FLOP/s of each shape in each precision, about `seconds` spent on each; without those torch cannot do."""
    works: dict[tuple[Product, str], Work] = {}
    for precision in precisions:
        rate = float("inf")
        for shape in sorted(shapes, key=math.prod):
            if 2 * math.prod(shape) / rate > LONGEST or (work := matmul(shape, precision, device)) is None:
                break
            works[shape, precision] = work
            rate = 2 * math.prod(shape) / _timed(work, 1, device)
    times = fastest(list(works.values()), device, seconds)
    return {case: 2.0 * math.prod(case[0]) / took for case, took in zip(works, times, strict=True)}


def arrays(array_bytes: int, device: str) -> list[Tensor]:
    """Three arrays of `array_bytes` for `memory_bandwidth`, already in memory."""
    return [torch.ones(array_bytes // 4, device=device) for _ in range(3)]


def memory_bandwidth(abc: Sequence[Tensor], device: str, seconds: float) -> float:
    """Bytes/s of the better of copy and triad (a = b + 3 c) over three arrays, `seconds` spent on each.

    Bytes are counted as STREAM counts them (McCalpin 1995): each array that is read or written, once.
    """
    a, b, c = abc
    copy, triad = fastest([lambda: a.copy_(b), lambda: torch.add(b, c, alpha=3, out=a)], device, seconds)
    return max(2 * a.nbytes / copy, 3 * a.nbytes / triad)
