"""Measuring this machine: the matmul peak every MFU is held against."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch

from nachim.spec import Machine

SIZES = (256, 512, 1024)
SECONDS = 0.25


def measure_machine(device: str = "cpu") -> Machine:
    """Best matmul rate, FLOP/s, for fp32 and bf16, on one thread and on all cores; takes a few seconds."""
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    peaks = {}
    try:
        for label, count in (("one_thread", 1), ("all", cores)):
            torch.set_num_threads(count)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                peaks[f"{name}_{label}"] = _peak(dtype, device)
    finally:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return Machine(name=name, device="cuda" if device == "cuda" else "cpu", cores=cores, **peaks)


def _peak(dtype: torch.dtype, device: str) -> float:
    """The best rate over `SIZES`, without the sizes whose one multiplication would take `SECONDS`."""
    best = _rate(SIZES[0], dtype, device)
    for size in SIZES[1:]:
        if 2 * size**3 / best > SECONDS:
            break
        best = max(best, _rate(size, dtype, device))
    return best


def _rate(size: int, dtype: torch.dtype, device: str) -> float:
    """Fastest FLOP/s of a `size` x `size` matmul within `SECONDS`: other work on the machine can only slow one down."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    began = time.perf_counter()
    fastest = _seconds(a, b, device)
    while time.perf_counter() - began < SECONDS:
        fastest = min(fastest, _seconds(a, b, device))
    return 2 * size**3 / fastest


def _seconds(a: torch.Tensor, b: torch.Tensor, device: str) -> float:
    began = time.perf_counter()
    a @ b
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
