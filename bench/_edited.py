"""Text of any size: the embedded corpus, edited and repeated, as JSON lines; and what a build of it takes."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nachim.data.pipeline import Pipeline, build
from nachim.data.prepare import prepare
from nachim.data.read import Report
from nachim.data.source import open_source
from nachim.spec import Stdlib

LITTLE, MUCH = 0.004, 0.4
"""Shares of words that are changed."""
FILE_BYTES = 32e6
SPAWN = multiprocessing.get_context("spawn")


def texts(size: float, seed: int = 0) -> Iterator[str]:
    """About `size` characters: the corpus, then again and again every second text edited a little, the others much."""
    found = [np.array(raw.decode().split(" "), dtype=object) for raw in open_source(Stdlib()).documents(Report())]
    chance, done = np.random.default_rng(seed), 0
    other = np.array([f"w{number}" for number in range(1 << 17)], dtype=object)
    for number in itertools.count():
        i = number % len(found)
        words = found[i]
        if number >= len(found):
            words = words.copy()
            places = chance.permutation(len(words))[: round((MUCH if i % 2 else LITTLE) * len(words))]
            words[places] = other[chance.integers(0, len(other), len(places))]
        text = " ".join(words.tolist())
        done += len(text)
        yield text
        if done > size:
            return


def write(folder: Path, size: float) -> None:
    """Texts of about `size` bytes, in files of `FILE_BYTES` each."""
    folder.mkdir(parents=True)
    rows = enumerate(texts(size))
    for number in itertools.count():
        written, held = 0, False
        with open(folder / f"{number:04}.jsonl", "w", encoding="utf-8") as file:
            for i, text in rows:
                written += file.write(json.dumps({"id": i, "text": text}) + "\n")
                if held := written > FILE_BYTES:
                    break
        if not held:
            return


@dataclass
class Clock:
    """Processor seconds by stage, and between stages, since `last`."""

    last: float
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, stage: str, done: float) -> None:
        """A stage is heard of when it begins, at 0 done, and then as it goes on."""
        now, stage = spent(), stage if done else "between"
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


def spent() -> float:
    """Processor seconds of this process and of its children that have ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_gib() -> float:
    """The most memory that this program has taken; what stood there before it began does not count."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def measured(pipeline: Pipeline, out: Path, cache: Path | None, workers: int) -> dict[str, Any]:
    """What a build in this process takes, tokens included where there is a `cache` to take them.

    The peak (GiB) is that of this process and, of each worker, of the largest one that has ended.
    """
    began, first = time.monotonic(), spent()
    clock = Clock(first)
    built = build(pipeline, out, workers, clock)
    if cache is not None and built.data is not None:
        prepare(built.data, cache, lambda stage, done: clock(f"tokens: {stage}", done))
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    read, last = built.passed[0].ledger.kept, built.passed[-1].ledger.kept
    return {
        "megabytes": read.bytes / 1e6,
        "documents": read.rows,
        "stay": last.rows,
        "seconds": spent() - first,
        "wall_seconds": time.monotonic() - began,
        "peak_gib": peak_gib() + (workers * worker if workers > 1 else 0.0),
        "stages": {stage: round(seconds, 2) for stage, seconds in clock.seconds.items() if seconds >= 0.005},
    }


def apart(pipeline: Pipeline, out: Path, cache: Path | None, workers: int) -> dict[str, Any]:
    """`measured` in a process of its own, which has taken no memory before."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(measured, pipeline, out, cache, workers).result()


def written(folder: Path, size: float) -> None:
    """`write` in a process of its own: a process begins with the peak of the one that it comes from."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        pool.submit(write, folder, size).result()
