"""How much of an old text does a model forget while it learns another, and what do replay and EWC save?

    python ideas/forgetting.py --out runs/ideas/forgetting --prose ../shared/data/text/tinyshakespeare.txt

The run of recipes/stdlib.py (A: Python's library) goes on with a text of English (B): with nothing else, with a share
of A's sequences among B's (replay), with elastic weight consolidation at several strengths, and with both. Prints the
bits per byte of both held-out texts, seeds paired, and the difference from training on with nothing, with its interval;
how far A's loss rose beside what the penalty made of it; and what a step with the penalty costs. Finished runs are not
repeated. What came of it: forgetting.md.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from scipy import stats

from nachim.app.ask import CACHE
from nachim.app.fisher import informed
from nachim.app.train import run_of
from nachim.lab.work import Place, begin, carry_out, next_token_loss
from nachim.model.weights import fingerprint
from nachim.spec import EWC, WSD, AdamW, Data, Files, Ingredient, Mixture, Run, Start, Validation
from nachim.train.ewc import open_penalty
from nachim.train.guard import Guard
from nachim.train.step import Stepper

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "stdlib.py"
TOKENS, RATE = 256_000, 0.003
"""Of the training on B: about half an epoch of it."""
WAYS: dict[str, tuple[float, float | None]] = {
    "nothing": (0.0, None),
    "replay 5 %": (0.05, None),
    "replay 10 %": (0.1, None),
    "replay 25 %": (0.25, None),
    "EWC 1": (0.0, 1.0),
    "EWC 10": (0.0, 10.0),
    "EWC 100": (0.0, 100.0),
    "replay 5 %, EWC 10": (0.05, 10.0),
}
"""Share of A among the sequences, and strength of the penalty."""
SEQUENCES = 1000
"""Of A, for the Fisher information."""


def texts(old: Data, prose: Path, replay: float, seed: int) -> Data:
    """B with a share of A, in A's tokenizer; both are validated."""
    new = Files(path=str(prose), validation_bytes=100_000)
    parts = (
        Ingredient(name="A", corpus=old.corpus, weight=replay),
        Ingredient(name="B", corpus=new, weight=1 - replay),
    )
    return replace(old, corpus=Mixture(ingredients=parts), seed=seed + 1)


def further(old: Run, folder: Path, prose: Path, replay: float, ewc: EWC | None) -> Run:
    """`old`, trained in `folder`, continued on B."""
    train = replace(
        old.train, tokens=TOKENS, optimizer=AdamW(lr=RATE), schedule=WSD(warmup_tokens=16 * 1024, decay=0.5)
    )
    start = Start(folder=str(folder), fingerprint=fingerprint(folder))
    data = texts(old.data, prose, replay, old.train.seed)
    return replace(old, data=data, train=train, start=start, ewc=ewc, validation=Validation(tokens=65_536))


@dataclass(frozen=True)
class Found:
    """What one run reached: bits per byte of A and B, A's loss in nat/token, and the last penalty over its strength."""

    bpb: tuple[float, float]
    loss: float
    estimate: float | None


def measured(root: Path, prose: Path, seed: int) -> dict[str, Found]:
    """What each way came to, by one seed."""
    place, old = Place(cache=CACHE), run_of(RECIPE)
    old, folder = replace(old, train=replace(old.train, seed=seed)), root / f"A-{seed}"

    def trained(one: Run, name: str) -> Found:
        out = root / f"{name}-{seed}"
        found = carry_out(one, out, place, lambda run, step, loss: None)["validation"]["sources"]
        penalty = pq.read_table(out / "metrics.parquet")["penalty"].to_pylist()[-1]
        estimate = penalty / one.ewc.strength if one.ewc else None
        return Found((found["A"]["bpb"], found["B"]["bpb"]), found["A"]["loss"], estimate)

    carry_out(old, folder, place, lambda run, step, loss: None)
    information = root / f"fisher-{seed}"
    if not information.exists():
        informed(folder, information, SEQUENCES)
    held = json.loads((information / "fisher.json").read_text())["fingerprint"]
    found = {"before B": trained(still(further(old, folder, prose, 0.0, None)), "before")}
    for name, (replay, strength) in WAYS.items():
        ewc = EWC(folder=str(information), strength=strength, fingerprint=held) if strength else None
        found[name] = trained(further(old, folder, prose, replay, ewc), name)
    return found


def dearer(root: Path, rounds: int = 40) -> float:
    """CPU time of a step with the penalty over that of one without: medians, in turns, on one thread."""
    torch.set_num_threads(1)
    run = Run.load(root / "EWC 1-0" / "run.json")
    taken: tuple[list[float], list[float]] = ([], [])
    steppers = []
    for held in (False, True):
        model = begin(run, root / "EWC 1-0")
        steppers.append(Stepper(run, model, next_token_loss, open_penalty(run.ewc, model, "cpu") if held else None))
    rows = run.train.batch_tokens // run.data.seq_len
    x_BT = torch.randint(run.model.vocab_size, (rows, run.data.seq_len + 1))
    for step in range(rounds):
        for stepper, seconds in zip(steppers, taken, strict=True):
            began = time.process_time()
            stepper.take(step, x_BT, Guard(RATE))
            seconds.append(time.process_time() - began)
    return float(np.median(taken[1]) / np.median(taken[0]))


def still(run: Run) -> Run:
    """`run` after one step of no length: what it starts from, measured as the others are."""
    rest = replace(run.train, tokens=run.train.batch_tokens, optimizer=AdamW(lr=1e-12), schedule=WSD(decay=1.0))
    return replace(run, train=rest)


def spread(values: np.ndarray) -> str:
    """Mean and half the width of its 95 % interval, by Student's t over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.3f} ± {half:.3f}"


def main(
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    prose: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    seeds: int = 3,
) -> None:
    """Train what is missing, and print the tables."""
    rows = [measured(out, prose, seed) for seed in range(seeds)]
    print(f"bits per byte after {TOKENS:,} tokens of B, mean of {seeds} seeds; differences paired, with 95 % intervals")
    print("| on with B | A | B | A, from nothing | B, from nothing |\n|---|--:|--:|--:|--:|")
    for name in rows[0]:
        both = np.array([row[name].bpb for row in rows])
        apart = both - np.array([row["nothing"].bpb for row in rows])
        cells = [f"{value:.3f}" for value in both.mean(0)] + [spread(column) for column in apart.T]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nhow far A's loss rose, nat/token, and what the penalty over its strength made of it, means")
    for name in [name for name, found in rows[0].items() if found.estimate is not None]:
        rise = np.mean([row[name].loss - row["before B"].loss for row in rows])
        estimate = np.mean([row[name].estimate for row in rows])
        print(f"{name}: {rise:.3f}, {estimate:.4f}, {rise / estimate:.0f} times as far")
    print(f"\na step with the penalty takes {dearer(out):.3f} of the CPU time of one without")


if __name__ == "__main__":
    tyro.cli(main)
