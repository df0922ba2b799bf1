"""The verb `nachim measure`: what this machine can do, for plans that are made for it."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nachim.budget.measured import HERE, steps_path

if TYPE_CHECKING:
    from nachim.budget.step_cost import StepCost
    from nachim.train.measure import Measured

STEP_SECONDS = 6.0
BUSY = 0.5
"""Load average a core above which the figures are said to be too small."""


def measure(out: Path = HERE, json: bool = False) -> int:
    """Measure this machine in about half a minute: arithmetic, memory, disk, link, and training steps.

    Writes the device that `nachim plan --devices here` plans for, which it prefers to any table; beside it, on a CPU,
    what steps of small models cost. Other work on the machine makes every figure worse: measure when it is quiet.

    Example: nachim measure

    Args:
        out: Where to write the device (JSON).
        json: Print one JSON object instead of tables.
    """
    import torch

    from nachim.lab.speed import measure_step_cost
    from nachim.train.measure import measure_device

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    found = measure_device(Path.cwd(), kind, _progress)
    steps = None
    if kind == "cpu":
        _progress("training steps of small models")
        steps = measure_step_cost(found.cores, STEP_SECONDS)
        steps.save(steps_path(out))
    found.device.save(out)
    summary = summarise(found, steps, out)
    if json:
        print(jsonlib.dumps(summary))
    else:
        _show(summary)
    return 0


def _progress(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr, flush=True)


def summarise(found: Measured, steps: StepCost | None, out: Path) -> dict[str, Any]:
    """Everything `nachim measure` reports, as plain JSON values: FLOP/s, bytes/s, bytes, seconds."""
    return {
        "device": found.device.to_json(),
        "cores": found.cores,
        "load_average": found.load,
        "matmul": [
            {"threads": threads or None, "shape": list(shape), "precision": precision, "flops": rate}
            for (threads, shape, precision), rate in found.matmul.items()
        ],
        "memory_bandwidth": [
            {"threads": threads or None, "bandwidth": rate} for threads, rate in found.bandwidth.items()
        ],
        "disk": {"folder": str(found.folder), "write": found.disk_write, "read": found.disk_read},
        "link": {"bandwidth": found.device.link_bandwidth, "latency": found.device.link_latency},
        "steps": steps and steps.to_json(),
        "file": str(out),
        "warnings": _warnings(found),
    }


def _warnings(found: Measured) -> list[str]:
    if found.load is None or found.load < BUSY * found.cores:
        return []
    return [f"load average {found.load:.1f} on {found.cores} cores: other work ran, and every figure is worse for it"]


def _show(summary: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console, device = Console(), summary["device"]
    title = f"{device['name']}, {summary['cores']} cores: FLOP/s of matrix products, by type and threads"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0))
    columns = list(dict.fromkeys((row["threads"], row["precision"]) for row in summary["matmul"]))
    table.add_column("shape", no_wrap=True)
    for threads, precision in columns:
        table.add_column(precision if threads is None else f"{precision}\non {threads}", justify="right", no_wrap=True)
    rates = {(*row["shape"], row["threads"], row["precision"]): row["flops"] for row in summary["matmul"]}
    for shape in dict.fromkeys(tuple(row["shape"]) for row in summary["matmul"]):
        cells = [rates.get((*shape, *column)) for column in columns]
        table.add_row("x".join(map(str, shape)), *("" if cell is None else _short(cell) for cell in cells))
    console.print(table)
    for line in _lines(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(summary: dict[str, Any]) -> list[str]:
    device, disk, link, steps = (summary[name] for name in ("device", "disk", "link", "steps"))
    memory = ", ".join(
        f"{_short(row['bandwidth'])}B/s {_on(row['threads'])}".strip() for row in summary["memory_bandwidth"]
    )
    lines = [
        f"memory: {device['memory_bytes'] / 1e9:.1f} GB; streaming {memory}",
        f"disk at {disk['folder']}: writes {_short(disk['write'])}B/s, reads {_short(disk['read'])}B/s "
        "(the file system's; caches below it included)",
    ]
    if link["bandwidth"]:
        lines.append(f"link: {_short(link['bandwidth'])}B/s one way, {1e6 * link['latency']:.0f} µs (all-reduce)")
    if steps:
        lines.append(
            f"training steps: {steps['points']} measured on {_on(steps['threads'])}, "
            f"given back within {100 * steps['error']:.1f} % (median)"
        )
    load = summary["load_average"]
    lines.append(
        "" if load is None else f"load average {load:.2f} when it began; price and watts: nobody measured them"
    )
    lines.append(f"written: {summary['file']}; plan for it with `nachim plan --devices here`")
    return [line for line in lines if line] + [f"warning: {text}" for text in summary["warnings"]]


def _on(threads: int | None) -> str:
    return f"{threads} thread{'s' * (threads > 1)}" if threads else ""


def _short(value: float) -> str:
    """`value` with three digits and the SI prefix it needs."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
