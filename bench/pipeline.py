"""The embedded corpus cleaned by `recipes/clean_stdlib.py`, and whether workers or kills show in the bytes.

    python bench/pipeline.py [--workers 1] [--kills 20] [--json]

Processor seconds of all processes are counted, by stage where one process does all, and their peak memory; tokens are
made as well. Kills are SIGKILLs of a whole build (near duplicates, a benchmark) at times drawn over its length.
"""

from __future__ import annotations

import json as jsonlib
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from _edited import SPAWN, apart, texts, write
from rich.console import Console
from rich.table import Table

from nachim.app.code import function_in
from nachim.data.decontaminate import Decontaminate
from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline, build
from nachim.spec import Files


def pipeline_of(corpus: Path, bench: Path) -> Pipeline:
    """Reading, near duplicates, a benchmark."""
    stages = (Deduplicate(), Decontaminate(benchmarks=(str(bench),)))
    return Pipeline(origins=(Origin(corpus=Files(path=str(corpus))),), stages=stages, shard_bytes=500_000)


def cleaned(pipeline: Pipeline, out: Path, workers: int) -> None:
    """A build, for a process that may be killed."""
    build(pipeline, out, workers)


def bytes_in(out: Path) -> list[bytes]:
    """The shards of a build, and its ledger."""
    return [path.read_bytes() for path in [*sorted((out / "shards").iterdir()), out / "ledger.json"]]


def killed(pipeline: Pipeline, folder: Path, kills: int) -> dict[str, Any]:
    """Whether builds with 2 and 4 workers, and one that was killed so often, come to the bytes of a calm one."""
    began = time.monotonic()
    cleaned(pipeline, folder / "calm", 1)
    length, chance, done = time.monotonic() - began, random.Random(0), 0
    while done < kills:
        process = SPAWN.Process(target=cleaned, args=(pipeline, folder / "killed", 2))
        process.start()
        process.join(chance.uniform(0, 1.2 * length))
        if process.is_alive():
            process.kill()
            done += 1
        else:  # it came to its end: half of what it made goes, for the next to make again
            made = sorted((folder / "killed" / "stages").rglob("*.*"))
            for path in chance.sample(made, len(made) // 2):
                path.unlink()
        process.join()
    time.sleep(1)  # workers see within half a second that they are alone
    cleaned(pipeline, folder / "killed", 1)
    same = {"kills": kills, "same_after_kills": bytes_in(folder / "killed") == bytes_in(folder / "calm")}
    for workers in (2, 4):
        cleaned(pipeline, folder / str(workers), workers)
        same[f"same_for_{workers}_workers"] = bytes_in(folder / str(workers)) == bytes_in(folder / "calm")
    return same


def main(workers: int = 1, kills: int = 20, json: bool = False) -> None:
    """Build, kill, and print the tables."""
    _, recipe = function_in(Path(__file__).parents[1] / "recipes" / "clean_stdlib.py", "pipeline")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = apart(recipe(), folder / "stdlib", folder / "cache", workers)
        bench = folder / "bench.jsonl"
        items = [" ".join(text.split()[50:70]) for text in texts(2e6)]
        bench.write_text("".join(jsonlib.dumps({"id": i, "text": item}) + "\n" for i, item in enumerate(items[::40])))
        write(folder / "in", 4e6)
        same = killed(pipeline_of(folder / "in", bench), folder, kills)
    if json:
        print(jsonlib.dumps({"stdlib": whole, **same}))
        return
    table = Table("stage", "processor seconds")
    for stage, seconds in whole["stages"].items():
        table.add_row(stage, f"{seconds:.2f}")
    console = Console()
    console.print(table)
    console.print({key: round(value, 2) for key, value in whole.items() if key != "stages"}, same)


if __name__ == "__main__":
    tyro.cli(main)
