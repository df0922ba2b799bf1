"""Measuring this machine: the matmul peak every MFU is held against."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from nachim.spec import Machine
from nachim.train.rates import Product, cores, matmul_rates, on_threads

SQUARES: dict[str, tuple[Product, ...]] = {
    "cpu": tuple((size,) * 3 for size in (256, 512, 1024)),
    "cuda": tuple((size,) * 3 for size in (1024, 2048, 4096, 8192)),
}
"""Sizes over which the peak is looked for, by device; smallest first."""
SECONDS = 0.15


def measure_machine(device: str = "cpu") -> Machine:
    """Best matmul rate, FLOP/s, for fp32 and bf16, on one thread and on all cores; takes a few seconds."""
    kind = "cuda" if device == "cuda" else "cpu"
    peaks = {}
    for label, count in (("one_thread", 1), ("all", cores())):
        with on_threads(count):
            rates = matmul_rates(SQUARES[kind], ("fp32", "bf16"), kind, SECONDS)
        for precision in ("fp32", "bf16"):
            found = [rate for (_, name), rate in rates.items() if name == precision]
            peaks[f"{precision}_{label}"] = max(found)
    return Machine(name=device_name(kind), device=kind, cores=cores(), **peaks)


def device_name(device: str) -> str:
    """The GPU's name, or the processor's own where the system tells it, else its architecture."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
