"""What size costs: a whole clean-up of the embedded corpus edited and repeated to several sizes.

    python bench/linear.py [--megabytes 63 126 252] [--recipe FILE] [--workers 1] [--tokens] [--folder DIR] [--json]

Each build runs the stages of a recipe, `recipes/clean_stdlib.py` if none is named, in a process of its own: processor
seconds and peak memory of all its processes are counted. Of each repetition half the texts are edited a little (near
duplicates, whose clusters grow with the size) and half much (texts of their own). The exponent is that of a power law
through the processor seconds. What is beyond the largest size is projected by it, and called so.
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from _edited import apart, written
from rich.console import Console
from rich.table import Table

from nachim.app.code import function_in
from nachim.data.ingest import Origin
from nachim.spec import Files

RECIPE = Path(__file__).parents[1] / "recipes" / "clean_stdlib.py"
PROJECTED_MB = 10_000.0


def sized(megabytes: float, recipe: Path, workers: int, tokens: bool, folder: Path) -> dict[str, Any]:
    """What the clean-up of so much text takes; nothing of it is left in `folder`."""
    _, pipeline_of = function_in(recipe, "pipeline")
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        written(place / "in", megabytes * 1e6)
        origins = (Origin(corpus=Files(path=str(place / "in"))),)
        pipeline = dataclasses.replace(pipeline_of(), origins=origins, shard_bytes=16_000_000)
        return apart(pipeline, place / "out", place / "cache" if tokens else None, workers)
    finally:
        shutil.rmtree(place)


def fitted(sizes: list[dict[str, Any]]) -> dict[str, float]:
    """The power law through the processor seconds, and what it and the line through the peaks say of 10 GB."""
    x = np.array([one["megabytes"] for one in sizes])
    exponent, log = np.polyfit(np.log(x), np.log([one["seconds"] for one in sizes]), 1)
    slope, level = np.polyfit(x, [one["peak_gib"] for one in sizes], 1)
    return {
        "exponent": float(exponent),
        "projected_seconds_of_10_gb": float(np.exp(log) * PROJECTED_MB**exponent),
        "projected_peak_gib_of_10_gb": float(level + slope * PROJECTED_MB),
    }


def main(
    megabytes: tuple[float, ...] = (63, 126, 252),
    recipe: Path = RECIPE,
    workers: int = 1,
    tokens: bool = False,
    folder: Path | None = None,
    json: bool = False,
) -> None:
    """Build each size, and print the table and the exponent."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        sizes = []
        for size in megabytes:
            sizes.append(sized(size, recipe, workers, tokens, Path(name)))
            Console(stderr=True).print(sizes[-1])
    found = {"sizes": sizes, **(fitted(sizes) if len(sizes) > 1 else {})}
    if json:
        print(jsonlib.dumps(found))
        return
    table = Table("MB", "documents", "stay", "processor seconds", "MB/s", "wall seconds", "peak, GiB")
    for one in sizes:
        rate, texts = one["megabytes"] / one["seconds"], (f"{one['documents']:,}", f"{one['stay']:,}")
        numbers = (f"{one['seconds']:.1f}", f"{rate:.2f}", f"{one['wall_seconds']:.0f}", f"{one['peak_gib']:.2f}")
        table.add_row(f"{one['megabytes']:.0f}", *texts, *numbers)
    console = Console()
    console.print(table)
    console.print({name: round(value, 3) for name, value in found.items() if name != "sizes"})


if __name__ == "__main__":
    tyro.cli(main)
