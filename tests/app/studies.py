"""A study's folder as the stages leave it, its losses drawn from a known law."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nachim.budget.throughput import Throughput
from nachim.lab.forecast import choose_shape, forecast, seal
from nachim.lab.ladder import Ladder, make_ladder, name_of
from nachim.lab.recipe import Recipe
from nachim.lab.size import Pace, Plan, lay_out, repeat
from nachim.lab.store import observe, run_noise
from nachim.lab.verdict import judge
from nachim.law import LAWS, study
from nachim.spec import BPE, Data, Machine, Run
from nachim.train.metrics import Metrics, write

TRUTH = {"E": 0.75, "A": 28.0, "B": 70.0, "alpha": 0.33, "beta": 0.33}
UNIQUE = 200_000_000
NATS_PER_BPB = 2.1
MACHINE = Machine(
    name="test box", device="cpu", cores=8, fp32_one_thread=9e10, fp32_all=5e11, bf16_one_thread=4e10, bf16_all=2e11
)
PACE = Throughput(threads=1, flops=(1e5, 1e6, 1e7), seconds=(4e-6, 2e-5, 1.4e-4))


class Faker:
    """Writes runs that were never trained: bpb of the true law times lognormal noise, lowered by `fall` when dear."""

    def __init__(self, noise: float = 0.002, fall: float = 0.0, begins: float = np.inf) -> None:
        self.rng, self.noise, self.fall, self.begins = np.random.default_rng(0), noise, fall, begins

    def bpb(self, run: Run) -> float:
        """Validation bpb of `run`."""
        true = LAWS["chinchilla"].predict(TRUTH, run.flops_per_token, run.train.tokens)
        true = true * (1 - self.fall) if run.flops >= self.begins else true
        return float(true * np.exp(self.noise * self.rng.standard_normal()))

    def finish(self, out: Path, run: Run, penalty: float = 0.0, threads: int = 1) -> None:
        """`run.json`, `metrics.parquet` and `result.json` of a finished run."""
        bpb = self.bpb(run) * (1 + penalty)
        self.begin(out, run, bpb)
        rate = (1 if threads == 1 else 0.5 * threads) / PACE.seconds_per_token(run.model, run.data.seq_len)
        result = {
            "fingerprint": run.fingerprint,
            "validation": {"loss": bpb * NATS_PER_BPB, "bpb": bpb},
            "tokens": run.train.tokens,
            "steps": run.train.steps,
            "flops": run.flops,
            "head_flops": run.head_flops,
            "steps_taken_here": run.train.steps,
            "seconds": run.train.tokens / rate,
            "tokens_per_second": rate,
            "flops_per_second": run.flops_per_token * rate,
            "head_flops_per_second": run.model.head_flops_per_token * rate,
            "threads": threads,
        }
        (out / "result.json").write_text(json.dumps(result))

    def begin(self, out: Path, run: Run, bpb: float, share: float = 1.0) -> None:
        """`run.json` and metrics of the first `share` of a run's steps; the loss ends at `bpb`."""
        out.mkdir(parents=True)
        run.save(out / "run.json")
        metrics = Metrics()
        steps, times = run.train.steps, run.validation.times
        measured = {round(steps * (i + 1) / times) for i in range(times)}
        kept = {int(step) for step in np.geomspace(1, steps, 200)} | measured
        for step in sorted(step for step in kept if step <= share * steps):
            done = step / steps
            loss = NATS_PER_BPB * bpb * (done**-0.12 if done < 0.8 else 1 + 0.13 * (1 - done))
            seen = {"validation_loss": loss, "bpb": loss / NATS_PER_BPB} if step in measured else {}
            loss *= float(np.exp(0.02 * self.rng.standard_normal()))
            row = {"lr": run.train.optimizer.lr, "grad_norm": 0.5, "seconds": 0.01, **seen}
            metrics.add(step=step, tokens=step * run.train.batch_tokens, loss=loss, **row)
        write(metrics.table(), out / "metrics.parquet")


def begin_study(root: Path) -> tuple[Recipe, Plan]:
    """What stands there before the first run: question, machine, pace, plan, corpus, commands."""
    data = Data(tokenizer=BPE(vocab_size=512), seq_len=128)
    recipe = Recipe(data=data, precision="fp32", validation_tokens=8192)
    plan = lay_out(recipe, 6e12, UNIQUE, Pace(alone=PACE, beside=PACE, workers=8), "trunks")
    root.mkdir(parents=True)
    corpus = {
        "fingerprint": "c0ffee" * 10,
        "name": "standard library",
        "train": {"tokens": UNIQUE, "bytes": 3 * UNIQUE},
        "validation": {"tokens": 500_000, "bytes": 1_500_000},
        "notes": ["12 documents were duplicates of others and were left out"],
    }
    argv = ["nachim", "quickstart", "--minutes", "10", "--out", "a folder"]
    files = {
        "study": {"part": "Question", "minutes": 10.0, "data": data.to_json(), "design": "trunks", "seed": 0},
        "corpus": corpus,
        "pace": {"alone": PACE.to_json(), "beside": PACE.to_json(), "workers": 8},
        "commands": [{"argv": argv, "at": "2026-01-01T00:00:00+00:00", "version": "0.1.0", "torch": "2.9.0"}],
    }
    for name, value in files.items():
        (root / f"{name}.json").write_text(json.dumps(value))
    MACHINE.save(root / "machine.json")
    plan.save(root / "plan.json")
    return recipe, plan


def climb(root: Path, recipe: Recipe, plan: Plan, faker: Faker, skip: int = 0) -> Ladder:
    """Sweep and ladder, all runs but the last `skip` finished; the table of observations where none is skipped."""
    for place, run in enumerate(plan.sweep.runs):
        faker.finish(root / "sweep" / name_of(run), run, penalty=(0.02, 0.0, 0.035, 0.012, 0.02)[place % 5])
    recipe.save(root / "recipe.json")
    ladder = make_ladder(recipe, plan.shapes, plan.levels, UNIQUE, plan.design)
    ladder = Ladder(chains=ladder.chains + repeat(recipe, ladder).chains)
    ladder.save(root / "ladder.json")
    for run in ladder.runs[: len(ladder.runs) - skip]:
        faker.finish(root / "ladder" / name_of(run), run)
    if not skip:
        observe(root / "ladder", ladder.runs).write(root / "observations.csv")
    return ladder


def finished_study(root: Path) -> Path:
    """A study from its question to its verdict."""
    recipe, plan = begin_study(root)
    faker = Faker()
    ladder = climb(root, recipe, plan, faker)
    run = seal_forecast(root, recipe, plan, ladder)
    faker.finish(root / "target", run, threads=8)
    sealed = json.loads((root / "forecast.json").read_text())
    judge(sealed, json.loads((root / "target" / "result.json").read_text()), root / "verdict.json")
    return root


def seal_forecast(root: Path, recipe: Recipe, plan: Plan, ladder: Ladder) -> Run:
    """The sealed forecast; returns the run it is about."""
    observed = observe(root / "ladder", ladder.runs)
    reading = study(observed, noise=run_noise(observed))
    model = choose_shape(reading, recipe.data, ladder.runs, plan.target_flops, UNIQUE)
    tokens = plan.target_flops / model.flops_per_token(recipe.data.seq_len)
    run = recipe.run(model, plan.target_flops, tokens, times=8)
    seal(forecast(reading, run), reading, root / "observations.csv", root / "forecast.json", root / "target")
    return run
