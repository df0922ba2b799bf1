"""Measuring this machine as a device to plan for: arithmetic, memory, disk, and the way to other devices."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from nachim.spec import Device
from nachim.spec.disk import full_disk_is_an_error
from nachim.train.machine import SQUARES, device_name
from nachim.train.rates import LARGEST_ARRAY, Product, arrays, cores, matmul_rates, memory_bandwidth, on_threads

SKINNY: dict[str, tuple[Product, ...]] = {
    "cpu": tuple((1024, width, 4 * width) for width in (32, 64, 128, 256)),
    "cuda": tuple((8192, width, 4 * width) for width in (256, 512, 1024, 2048)),
}
"""What the feed-forwards of small models multiply: tokens, width, four times the width."""
PRECISIONS = ("fp32", "bf16", "fp8", "int8")
RATE_SECONDS, BANDWIDTH_SECONDS, DISK_SECONDS = 0.06, 0.25, 0.7
BLOCK = 32 * 2**20
LARGEST_FILE = 8 * BLOCK
LINK_BYTES, LINK_ROUNDS = 32 * 2**20, 8
PATIENCE = datetime.timedelta(seconds=30)

Progress = Callable[[str], None]
"""Called with what is measured next."""


@dataclass(frozen=True)
class Measured:
    """A measured machine: the `device` that plans use, and what does not fit into one.

    `matmul` is FLOP/s by (threads, shape, precision), `bandwidth` bytes/s by threads (a GPU has no threads: 0);
    `disk_write` and `disk_read` are bytes/s of the file system at `folder`; `load` is the load average when it began.
    """

    device: Device
    cores: int
    matmul: Mapping[tuple[int, Product, str], float]
    bandwidth: Mapping[int, float]
    folder: Path
    disk_write: float
    disk_read: float
    load: float | None


@dataclass(frozen=True)
class Link:
    """Between two devices, or two processes of one: bytes/s in one direction, and seconds before the first byte."""

    bandwidth: float
    latency: float


def measure_device(folder: Path, kind: str, say: Progress) -> Measured:
    """Measure the device `kind` ("cpu" or "cuda") in a few seconds; `folder` is where checkpoints would go.

    A busy machine only ever makes a figure smaller: everything is the best of several tries.
    Raises UserError when `folder` cannot be written.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    counts = sorted({1, cores()}) if kind == "cpu" else [0]
    matmul, bandwidth = {}, {}
    abc = arrays(array_bytes(kind), kind)
    for threads in counts:
        with on_threads(threads or torch.get_num_threads()):
            say(f"matrix multiplications{_on(threads)}")
            for shapes, precisions in ((SQUARES[kind], PRECISIONS), (SKINNY[kind], PRECISIONS[:2])):
                rates = matmul_rates(shapes, precisions, kind, RATE_SECONDS)
                matmul.update({(threads, *case): rate for case, rate in rates.items()})
            say(f"memory{_on(threads)}")
            bandwidth[threads] = memory_bandwidth(abc, kind, BANDWIDTH_SECONDS)
    del abc
    say(f"disk at {folder}")
    write, read = disk_bandwidth(folder)
    say("link between processes")
    link = measure_link(kind)
    best = {precision: _best(matmul, counts[-1], precision) for precision in PRECISIONS}
    device = Device(
        name=device_name(kind),
        kind="cpu" if kind == "cpu" else ("rocm" if torch.version.hip else "cuda"),
        **{f"{precision}_flops": best[precision] for precision in ("fp32", "bf16")},
        **{f"{name}_flops": units(best[name], best["bf16"]) for name in ("fp8", "int8")},
        sustained=1.0,
        memory_bytes=memory_bytes(kind),
        memory_bandwidth=bandwidth[counts[-1]],
        node_devices=1 if kind == "cpu" else torch.cuda.device_count(),
        link_bandwidth=link.bandwidth if link else None,
        link_latency=link.latency if link else 0.0,
        sources=(_source(load),),
    )
    return Measured(device, cores(), matmul, bandwidth, folder, write, read, load)


def _on(threads: int) -> str:
    return f", {threads} thread{'s' * (threads > 1)}" if threads else ""


def _source(load: float | None) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    busy = "" if load is None else f", load average {load:.2f}"
    return f"nachim measure, {now}, torch {torch.__version__}{busy}; peaks are what matrix multiplications reached"


def _best(matmul: Mapping[tuple[int, Product, str], float], threads: int, precision: str) -> float | None:
    found = [rate for (count, _, name), rate in matmul.items() if count == threads and name == precision]
    return max(found, default=None)


def units(rate: float | None, bf16: float | None) -> float | None:
    """`rate` of an 8-bit type, FLOP/s, where it is faster than bf16's; else None: no units, but an emulation."""
    return rate if rate and bf16 and rate > bf16 else None


def memory_bytes(kind: str) -> float:
    """Memory of the GPU; on a CPU what this process may have: the machine's, or its control group's limit."""
    if kind == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(Path("/sys/fs/cgroup/memory.max"))
    return float(min(physical, int(limit)) if limit.isdigit() else physical)


def array_bytes(kind: str) -> int:
    """Bytes of an array that does not fit into the last cache, three of which take a quarter of the memory at most."""
    if kind == "cuda":
        cache = 4 * torch.cuda.get_device_properties(0).L2_cache_size
    else:
        sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        cache = max((int(_read(path).rstrip("K") or 0) * 1024 for path in sizes), default=0)
    most = min(LARGEST_ARRAY, int(memory_bytes(kind)) // 12)
    return max(BLOCK, min(max(4 * BLOCK, cache), most)) // 4096 * 4096


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def disk_bandwidth(folder: Path) -> tuple[float, float]:
    """Bytes/s of writing to `folder`, every block on the disk before the next, and of reading it back.

    The system is asked to forget the file's own pages before it is read. What the file system, its host or the disk
    itself hold in caches of their own stays there, and is part of the figure. Raises UserError when `folder` refuses.
    """
    block = os.urandom(BLOCK)
    with full_disk_is_an_error(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        written, began = 0, time.perf_counter()
        while written < LARGEST_FILE and time.perf_counter() - began < DISK_SECONDS:
            written += file.write(block)
            os.fsync(file.fileno())
        wrote = time.perf_counter() - began
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        into, read = bytearray(BLOCK), 0
        began = time.perf_counter()
        while (got := file.readinto(into)) and time.perf_counter() - began < DISK_SECONDS:
            read += got
        return written / wrote, read / (time.perf_counter() - began)


def measure_link(kind: str) -> Link | None:
    """All-reduce between all GPUs (NCCL), or between two processes of this machine (gloo); None where there is none."""
    backend, ranks = ("nccl", torch.cuda.device_count()) if kind == "cuda" else ("gloo", 2)
    if ranks < 2 or not dist.is_available() or not getattr(dist, f"is_{backend}_available")():
        return None
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        answers = context.SimpleQueue()
        rest = (ranks, backend, f"file://{folder}/meet", answers)
        processes = [context.Process(target=_all_reduce, args=(rank, *rest), daemon=True) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            return None
        seconds, latency = answers.get()
    return Link(bandwidth=2 * (ranks - 1) / ranks * LINK_BYTES / seconds, latency=latency / (2 * (ranks - 1)))


def _all_reduce(rank: int, ranks: int, backend: str, meet: str, answers: multiprocessing.SimpleQueue) -> None:
    """One process of `measure_link`: rank 0 puts the fastest seconds of a large and of a tiny all-reduce.

    A ring passes 2 (n - 1) / n of the array through each device, in 2 (n - 1) turns (Patarasuk and Yuan 2009).
    """
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=meet, rank=rank, world_size=ranks, timeout=PATIENCE)
    times = []
    for count in (LINK_BYTES // 4, 1):
        array = torch.ones(count, device=device)
        best = float("inf")
        for _ in range(LINK_ROUNDS):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(array)
            if backend == "nccl":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        times.append(best)
    dist.destroy_process_group()
    if rank == 0:
        answers.put(tuple(times))
