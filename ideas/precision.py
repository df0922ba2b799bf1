"""Each precision at the same tokens: fp32, bf16, fp16 with a loss scale, bf16 weights alone, and 8-bit products.

    python ideas/precision.py --out runs/ideas/precision

Two shapes of the ladder's family, seeds paired, AdamW; a third row of runs takes a tenth of the rate, where updates
are near the spacing of bf16. "nearest" and "stochastic" keep the weights in bf16, with no fp32 copy, and differ in how
an update is rounded; the moments stay fp32. Prints losses, what each loses to fp32 with its 95 % t-interval over pairs,
and seconds. Finished runs are not repeated.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from scipy import stats
from torch import Tensor

from nachim.app.ask import CACHE
from nachim.budget.shape import shape
from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.evaluate.bpb import Windows, measure
from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import BPE, WSD, AdamW, Data, Run, Train
from nachim.spec.disk import write_text
from nachim.train.guard import Guard
from nachim.train.step import Stepper

STEPS, BATCH, WARMUP, VALIDATED = 160, 1024, 16, 32_768
RUNGS = ((32, 0.01), (48, 0.01), (32, 0.001))
"""Width and rate."""
ROUNDED = ("nearest", "stochastic")
WAYS = ("fp32", "bf16", "fp16", *ROUNDED, "fp8")


def stochastic(weight: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 to the bf16 value below or above, each as likely as it is near: its mean is the weight.

    bf16 is the upper half of fp32's bits: a random number is added to the lower half, which is then cut off.
    """
    noise = torch.randint(2**16, weight.shape, generator=generator, dtype=torch.int32)
    return ((weight.view(torch.int32) + noise) & -(2**16)).view(torch.float32)


def rounding(stepper: Stepper, way: str, seed: int) -> None:
    """Have every update rounded to bf16: what the fp32 weights then hold are bf16's values, as if they were kept so."""
    masters, publish = stepper.masters, stepper.masters.publish
    generator = torch.Generator().manual_seed(seed)

    def rounded(*given: Any) -> None:
        with torch.no_grad():
            for weight in masters.weights:
                weight.copy_(weight.bfloat16() if way == "nearest" else stochastic(weight, generator))
        publish(*given)

    masters.publish = rounded  # type: ignore[method-assign]
    rounded()


def trained(way: str, width: int, lr: float, seed: int) -> dict[str, float]:
    """One run: validation bits per byte, and seconds of its steps."""
    precision: Any = "bf16" if way in ROUNDED else way
    run = Run(
        model=shape(width, 512),
        data=Data(tokenizer=BPE(vocab_size=512), seq_len=128, seed=seed),
        train=Train(
            tokens=STEPS * BATCH,
            batch_tokens=BATCH,
            optimizer=AdamW(lr=lr),
            schedule=WSD(warmup_tokens=WARMUP * BATCH),
            precision=precision,
            seed=seed,
        ),
    )
    batches = Batches(prepare(run.data, CACHE), run.data)
    model = build(run.model, run.model.d_model)
    initialise(model, seed)
    stepper, guard = Stepper(run, model, next_token_loss), Guard(lr)
    if way in ROUNDED:
        rounding(stepper, way, seed)
    rows = BATCH // run.data.seq_len
    began = time.process_time()
    for step in range(STEPS):
        stepper.take(step, torch.from_numpy(batches.batch(step * rows, rows)), guard)
    seconds = time.process_time() - began
    ids = batches.validation(VALIDATED)
    return measure(model, Windows(ids, batches.target_bytes(ids))) | {"seconds": seconds}


def measured(way: str, width: int, lr: float, seed: int, out: Path) -> dict[str, float]:
    """`trained`, or what it gave before."""
    path = out / f"{way}-{width}-{lr:g}-{seed}.json"
    if not path.exists():
        write_text(path, json.dumps(trained(way, width, lr, seed)) + "\n")
    return json.loads(path.read_text())


def main(out: Annotated[Path, tyro.conf.arg(metavar="DIR")], seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Train what is missing, all ways of one seed and shape after each other, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    found = {
        (width, lr, seed, way): measured(way, width, lr, seed, out)
        for width, lr in RUNGS
        for seed in seeds
        for way in WAYS
    }
    columns = " | ".join(f"{width} at {lr:g}" for width, lr in RUNGS)
    print(f"{STEPS * BATCH:,} tokens, seeds {seeds}: validation bits per byte, mean over seeds")
    print(f"| weights and products | {columns} | over fp32, 95 % | at the small rate | CPU-seconds over fp32 |")
    print("|---|" + "--:|" * (len(RUNGS) + 3))
    for way in WAYS:
        table = np.array([[found[width, lr, seed, way]["bpb"] for seed in seeds] for width, lr in RUNGS])
        base = np.array([[found[width, lr, seed, "fp32"]["bpb"] for seed in seeds] for width, lr in RUNGS])
        spent = [found[width, lr, seed, way]["seconds"] for width, lr in RUNGS for seed in seeds]
        plain = [found[width, lr, seed, "fp32"]["seconds"] for width, lr in RUNGS for seed in seeds]
        over = table / base - 1
        means = " | ".join(f"{row.mean():.4f}" for row in table)
        ratio = float(np.median(np.array(spent) / np.array(plain)))
        print(f"| {way} | {means} | {interval(over[:-1])} | {interval(over[-1:])} | {ratio:.2f} |")


def interval(over: np.ndarray) -> str:
    """Mean and 95 % t-interval of paired relative differences."""
    flat = over.ravel()
    if not flat.any():
        return "0"
    half = stats.t.ppf(0.975, len(flat) - 1) * flat.std(ddof=1) / len(flat) ** 0.5
    return f"{flat.mean():+.2%} ± {half:.2%}"


if __name__ == "__main__":
    tyro.cli(main)
