"""Whole pipelines: the embedded corpus cleaned, what size costs, and whether workers or kills show in the bytes.

    python bench/pipeline.py [--megabytes 4 8 16 32] [--kills 20] [--json]

Processor seconds of one process are counted, and its peak memory. Texts of each size are the standard library's,
repeated: of each repetition half is edited a little (near duplicates) and half much (texts of their own). The exponent
is that of a power law through the seconds. Kills are SIGKILLs of the whole build at times drawn over its length.
"""

from __future__ import annotations

import json as jsonlib
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from nachim.data.decontaminate import Decontaminate
from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline, build
from nachim.data.read import Report
from nachim.data.source import open_source
from nachim.spec import Corpus, Files, Stdlib

LITTLE, MUCH = 0.004, 0.4
"""Shares of words that are changed."""
SPAWN = multiprocessing.get_context("spawn")


def edited(words: list[str], share: float, chance: random.Random) -> str:
    """The words with a share of them changed, as one text."""
    words = list(words)
    for place in chance.sample(range(len(words)), round(share * len(words))):
        words[place] = f"w{chance.randrange(10**6)}"
    return " ".join(words)


def texts(size: float) -> Iterator[str]:
    """About `size` bytes: the corpus, then edited again and again."""
    found = [raw.decode().split(" ") for raw in open_source(Stdlib()).documents(Report())]
    chance, done = random.Random(0), 0
    while True:
        for i, words in enumerate(found):
            text = " ".join(words) if not done else edited(words, LITTLE if i % 2 else MUCH, chance)
            done += len(text)
            yield text
            if done > size:
                return


def write(path: Path, size: float) -> None:
    """Texts of `size` bytes as JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for i, text in enumerate(texts(size)):
            file.write(jsonlib.dumps({"id": i, "text": text}) + "\n")


def pipeline_of(corpus: Corpus, bench: Path) -> Pipeline:
    """Reading, near duplicates, a benchmark."""
    stages = (Deduplicate(), Decontaminate(benchmarks=(str(bench),)))
    return Pipeline(origins=(Origin(corpus=corpus),), stages=stages, shard_bytes=2_000_000)


def measured(corpus: Corpus, bench: Path, out: Path) -> dict[str, Any]:
    """Processor seconds and peak memory (GiB) of a build in this process, and what stayed."""
    began = time.process_time()
    built = build(pipeline_of(corpus, bench), out)
    seconds = time.process_time() - began
    read, last = built.passed[0].ledger.kept, built.passed[-1].ledger.kept
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told = {"megabytes": read.bytes / 1e6, "documents": read.rows, "stay": last.rows}
    return {**told, "seconds": seconds, "peak_gib": peak}


def apart(corpus: Corpus, bench: Path, out: Path) -> dict[str, Any]:
    """`measured` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(measured, corpus, bench, out).result()


def cleaned(corpus: Corpus, bench: Path, out: Path, workers: int) -> None:
    """A build, for a process that may be killed."""
    build(pipeline_of(corpus, bench), out, workers)


def bytes_in(out: Path) -> list[bytes]:
    """The shards of a build, and its ledger."""
    return [path.read_bytes() for path in [*sorted((out / "shards").iterdir()), out / "ledger.json"]]


def killed(corpus: Corpus, bench: Path, folder: Path, kills: int) -> dict[str, Any]:
    """Whether builds with 2 and 4 workers, and one that was killed so often, come to the bytes of a calm one."""
    began = time.monotonic()
    cleaned(corpus, bench, folder / "calm", 1)
    length, chance, done = time.monotonic() - began, random.Random(0), 0
    while done < kills:
        process = SPAWN.Process(target=cleaned, args=(corpus, bench, folder / "killed", 2))
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
    cleaned(corpus, bench, folder / "killed", 1)
    same = {"kills": kills, "same_after_kills": bytes_in(folder / "killed") == bytes_in(folder / "calm")}
    for workers in (2, 4):
        cleaned(corpus, bench, folder / str(workers), workers)
        same[f"same_for_{workers}_workers"] = bytes_in(folder / str(workers)) == bytes_in(folder / "calm")
    return same


def main(megabytes: tuple[float, ...] = (4, 8, 16, 32), kills: int = 20, json: bool = False) -> None:
    """Build, kill, and print the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench, rows = folder / "bench.jsonl", []
        for i, text in enumerate(texts(2e6)):
            rows.append({"id": i, "text": " ".join(text.split()[50:70])})
        bench.write_text("".join(jsonlib.dumps(row) + "\n" for row in rows[::40]))
        whole = apart(Stdlib(), bench, folder / "stdlib")
        sizes = []
        for size in megabytes:
            write(folder / f"{size}.jsonl", size * 1e6)
            sizes.append(apart(Files(path=str(folder / f"{size}.jsonl")), bench, folder / f"out{size}"))
        logs = [np.log([one[key] for one in sizes]) for key in ("megabytes", "seconds")]
        exponent = float(np.polyfit(logs[0], logs[1], 1)[0])
        write(folder / "small.jsonl", 3e6)
        same = killed(Files(path=str(folder / "small.jsonl")), bench, folder, kills)
    found = {"stdlib": whole, "sizes": sizes, "exponent": exponent, **same}
    if json:
        print(jsonlib.dumps(found))
        return
    table = Table("text", "MB", "documents", "stay", "processor seconds", "peak, GiB")
    for what, one in [("stdlib", whole), *(("edited and repeated", one) for one in sizes)]:
        row = (
            f"{one['megabytes']:.1f}",
            one["documents"],
            one["stay"],
            f"{one['seconds']:.1f}",
            f"{one['peak_gib']:.2f}",
        )
        table.add_row(what, *map(str, row))
    console = Console()
    console.print(table)
    console.print({"exponent": round(exponent, 3), **same})


if __name__ == "__main__":
    tyro.cli(main)
