"""The most bytes that tensors ever held at once during some work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch.autograd.profiler import profile

from nachim.spec import UserError


def peak_bytes(work: Callable[[], None], device: str = "cpu") -> int:
    """Peak of the bytes that the tensors `work` makes hold at the same time, kernels' temporary ones included.

    Every allocation and release that torch's allocator reports is added up, so that the figure is exact; tensors made
    before `work` began are not counted: let it build what it needs. Raises UserError when `work` makes no tensor.
    """
    if device != "cpu":
        return _peak_cuda(work, device)
    with profile(profile_memory=True, use_kineto=True) as profiler:
        work()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    if not changes:
        raise UserError("peak_bytes was given work that makes no tensor: let it build the model and take the steps")
    return max(accumulate(changes))


def _peak_cuda(work: Callable[[], None], device: str) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
