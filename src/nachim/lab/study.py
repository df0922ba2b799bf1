"""The line from budget to verdict, as stages over one folder: each leaves a file, and is not repeated once it has."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import nachim
from nachim.budget.shape import shape
from nachim.budget.throughput import Throughput
from nachim.data.prepare import prepare
from nachim.data.prepared import Prepared
from nachim.lab.claim import claim
from nachim.lab.forecast import choose_shape, forecast, most_tokens, open_seal, seal
from nachim.lab.ladder import Design, Ladder, make_ladder
from nachim.lab.launch.local import Event, carry_out_all, event_of
from nachim.lab.recipe import Recipe
from nachim.lab.size import REACH, Pace, Plan, anchored, chain_seconds, repeat, size, total, useful
from nachim.lab.speed import measure_throughput
from nachim.lab.store import diverged, doubts, finished, observe, run_noise
from nachim.lab.sweep import settle
from nachim.lab.verdict import judge
from nachim.lab.work import Place, carry_out, result_of
from nachim.law import Study as Reading
from nachim.law import study as read_law
from nachim.law.early import SHARE, late
from nachim.law.regime import check_regime
from nachim.spec import Data, Machine, Part, Run, UserError
from nachim.spec.disk import locked, write_text
from nachim.train.loop import Watch
from nachim.train.machine import measure_machine
from nachim.train.rates import threads_given

PACE_WIDTHS = (32, 48, 64, 96, 160)
PACE_SECONDS = 0.7
TARGET_VALIDATIONS = 8
FARTHEST = 14.0
"""A target is never more than this many times the ladder's top: time left over does not make a forecast bolder."""
REPORT_SECONDS = 10.0
LR_FACTOR, BATCH_FACTOR = 0.5, 0.2
"""Where the sweeps of learning rate and batch begin, times DeepSeek's laws: Muon's best rate is about half of AdamW's
here, and small ladders do better with more, smaller steps."""


class Refused(UserError):
    """The ladder shows that a forecast would be wrong; the message says why."""


class View(Protocol):
    """Who hears how a study goes."""

    def stage(self, name: str, seconds: float | None = None) -> None:
        """A stage begins; `seconds` is what it is predicted to take."""

    def say(self, text: str) -> None:
        """One sentence worth reading."""

    def event(self, event: Event) -> None:
        """News of a training run."""

    def share(self, what: str, done: float) -> None:
        """`done` (0 to 1) of `what` within the stage."""

    def knows(self, machine: Machine) -> None:
        """The machine, as measured: what MFU is held against."""

    def stopping(self) -> bool:
        """Whether the study was asked to end after the step it is at, with everything saved."""


@dataclass(frozen=True, kw_only=True)
class Question(Part):
    """What a study is asked: `minutes` of this machine, on `data`, by a ladder of `design`, from `seed`."""

    minutes: float
    data: Data
    design: Design = "trunks"
    seed: int = 0

    def check(self) -> None:
        self.require_positive("minutes")


@dataclass(frozen=True)
class Study:
    """A folder and what it was asked. Every method is a stage; call them in order, or `run` for all."""

    root: Path
    question: Question
    cache: Path
    view: View
    began: float

    def run(self) -> dict[str, Any]:
        """The whole line; returns the verdict. Goes on where an earlier process stopped.

        Raises Refused, UserError, and Stopped when the view says so.
        """
        self.claim()
        with locked(self.root / "lock"):
            self.note_command()
            plan = self.plan()
            self.sweep(plan)
            self.ladder(plan)
            self.forecast(plan)
            return self.verdict()

    def claim(self) -> None:
        """Make the folder this question's. Raises UserError when it holds another."""
        claim(self.root / "study.json", self.question)

    def note_command(self) -> None:
        """Add this command to the folder's list."""
        path = self.root / "commands.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {
            "argv": ["nachim", *sys.argv[1:]],
            "at": now,
            "version": nachim.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        write_text(path, json.dumps([*known, entry], indent=2) + "\n")

    def corpus(self) -> Prepared:
        """The tokens, prepared or from the cache; their counts in `corpus.json`."""
        self.view.stage("corpus")
        prepared = prepare(self.question.data, self.cache, self.view.share)
        manifest = prepared.manifest
        about = {
            "name": manifest["source"],
            "fingerprint": prepared.fingerprint,
            "bytes": manifest["read"]["bytes"],
            "train": {"tokens": prepared.unique_tokens, "bytes": prepared.train_bytes},
            "validation": {"tokens": len(prepared.validation), "bytes": prepared.validation_bytes},
            "notes": prepared.notes(),
        }
        write_text(self.root / "corpus.json", json.dumps(about, indent=2) + "\n")
        return prepared

    def machine(self) -> Machine:
        """This machine's measured peaks, in `machine.json`."""
        path = self.root / "machine.json"
        if not path.exists():
            self.view.stage("machine")
            measure_machine("cuda" if torch.cuda.is_available() else "cpu").save(path)
        machine = Machine.load(path)
        self.view.knows(machine)
        return machine

    def recipe(self) -> Recipe:
        """The recipe as the sweep left it, or the prior before it."""
        path = self.root / "recipe.json"
        if path.exists():
            return Recipe.load(path)
        prepared = prepare(self.question.data, self.cache)
        data = dataclasses.replace(self.question.data, fingerprint_of_tokens=prepared.fingerprint)
        machine = self.machine()
        return Recipe(
            data=data,
            precision=machine.precision,
            lr_factor=LR_FACTOR,
            batch_factor=BATCH_FACTOR,
            seed=self.question.seed,
        )

    def place(self, threads: int) -> Place:
        """Where runs go, on `threads` threads each."""
        return Place(cache=self.cache, device=self.machine().device, threads=threads)

    def pace(self) -> Pace:
        """Measured throughput, in `pace.json`."""
        path = self.root / "pace.json"
        if not path.exists():
            recipe, machine = self.recipe(), self.machine()
            self.view.stage("speed")
            vocab_size = recipe.data.tokenizer.vocab_size
            models = [shape(width, vocab_size) for width in PACE_WIDTHS]
            runs = [recipe.run(model, 1e12, 1e6) for model in models]
            workers = 1 if machine.device == "cuda" else machine.cores
            small = [recipe.run(model, 1e11, 1e6) for model in models]  # a ladder's batch, and most of its steps
            beside = measure_throughput(small, self.place(1), workers, PACE_SECONDS)
            counts = sorted({threads_given() or n for n in (1, machine.cores)})
            tries = [measure_throughput(runs[2:], self.place(n), 1, PACE_SECONDS) for n in counts]
            alone = min(tries, key=lambda throughput: math.prod(throughput.seconds))
            pace = {"alone": alone.to_json(), "beside": beside.to_json(), "workers": workers}
            write_text(path, json.dumps(pace, indent=2) + "\n")
        found = json.loads(path.read_text(encoding="utf-8"))
        return Pace(
            Throughput.from_json(found["alone"]), Throughput.from_json(found["beside"]), workers=found["workers"]
        )

    def plan(self) -> Plan:
        """The ladder and target that fit into the minutes, in `plan.json`."""
        path = self.root / "plan.json"
        if not path.exists():
            prepared = self.corpus()
            pace = self.pace()
            left = 60 * self.question.minutes - (time.monotonic() - self.began) - REPORT_SECONDS
            plan = size(self.recipe(), left, prepared.unique_tokens, pace, self.question.design)
            if total(plan) > left:
                minutes = total(plan) / 60
                self.view.say(f"this machine is slow now: the smallest useful ladder takes {minutes:.1f} minutes")
            elif total(plan) < 0.7 * left:
                self.view.say(f"the text is not enough for more than {total(plan) / 60:.1f} minutes: bring more of it")
            plan.save(path)
        return Plan.load(path)

    def sweep(self, plan: Plan) -> None:
        """The sweep of learning rate and batch on the bottom rung; its correction makes `recipe.json`."""
        path = self.root / "recipe.json"
        if path.exists():
            return
        self.view.stage("sweep", plan.sweep_seconds)
        recipe = anchored(self.recipe(), plan.levels, plan.design)
        swept = settle(recipe, plan.sweep.runs[0].model, plan.levels[0], self._try, self.view.say)
        unique = prepare(self.question.data, self.cache).unique_tokens
        if not useful(plan, swept, unique):
            self.view.say("the sweep's best batch would leave runs of too few steps: the planned batch stays")
            swept = dataclasses.replace(swept, batch_factor=recipe.batch_factor)
        swept.save(path)

    def make_ladder(self, plan: Plan) -> Ladder:
        """The ladder of `plan` with the swept recipe, its repeated rung last."""
        recipe = self.recipe()
        unique = prepare(self.question.data, self.cache).unique_tokens
        ladder = make_ladder(recipe, plan.shapes, plan.levels, unique, plan.design, plan.least_tokens)
        return Ladder(chains=ladder.chains + repeat(recipe, ladder).chains)

    def ladder(self, plan: Plan) -> None:
        """Every run of the ladder; the table of what they measured in `observations.csv`."""
        ladder = self.make_ladder(plan)
        ladder.save(self.root / "ladder.json")
        table = self.root / "observations.csv"
        if table.exists():
            return
        self.view.stage("ladder", plan.ladder_seconds)
        self._carry_out(ladder, "ladder")
        observed = observe(self.root / "ladder", ladder.runs)
        for doubt in doubts(self.root / "ladder", ladder, observed):
            self.view.say(doubt)
        observed.write(table)

    def summary(self) -> dict[str, Any]:
        """The finished study in one object."""
        files = ("corpus", "forecast", "verdict")
        corpus, sealed, verdict = (json.loads((self.root / f"{name}.json").read_text()) for name in files)
        ladder = Ladder.load(self.root / "ladder.json")
        keys = ("flops", "bpb", "low", "high", "sealed_at", "sha256")
        return {
            "corpus": corpus,
            "ladder": {"runs": len(ladder.runs), "flops": ladder.flops},
            "law": sealed["law"],
            "forecast": {key: sealed[key] for key in keys},
            "measured": {"bpb": verdict["measured"]},
            "error_percent": verdict["error_percent"],
            "inside": verdict["inside"],
        }

    def _try(self, tries: Ladder) -> dict[Run, float]:
        """The loss of each run of a sweep that ended well."""
        self._carry_out(tries, "sweep")
        if lost := diverged(self.root / "sweep", tries):
            self.view.say(f"diverged, and left out of the sweep: {', '.join(lost)}")
        return {run: result["validation"]["bpb"] for run, result in finished(self.root / "sweep", tries.runs)}

    def _carry_out(self, ladder: Ladder, folder: str) -> None:
        pace = self.pace()
        chains = sorted(ladder.chains, key=lambda chain: -chain_seconds(chain, pace.beside))
        carry_out_all(chains, self.root / folder, self.place(1), pace.workers, self.view.event, self.view.stopping)

    def reading(self, target_tokens: float = 0) -> Reading:
        """The law through the ladder, but for what is early for so many tokens, with the noise its repeats measured."""
        ladder = Ladder.load(self.root / "ladder.json")
        observed = observe(self.root / "ladder", ladder.runs)
        return read_law(late(observed, target_tokens), noise=run_noise(observed), seed=self.question.seed)

    def forecast(self, plan: Plan, flops: float | None = None) -> dict[str, Any]:
        """The sealed forecast of the target run, of `flops` where given, in `forecast.json`.

        Raises Refused across a change of regime.
        """
        path = self.root / "forecast.json"
        if path.exists():
            return open_seal(path)
        if not (self.root / "observations.csv").exists():
            raise UserError(
                f"the ladder in {self.root} is not finished: go on with `nachim ladder` or `quickstart` first"
            )
        self.view.stage("forecast")
        every = self.reading()
        run = self.target(plan, every, flops)
        reading = self.reading(run.train.tokens)
        if early := int((reading.fit.sample.weight == 0).sum()):
            short = f"take less than 1/{SHARE} of the target's {run.train.tokens:,} tokens"
            self.view.say(f"{early} of {len(reading.fit.sample.weight)} runs {short}, and are left out of its law")
        try:
            check_regime(every.regime, run.flops)
            prediction = forecast(reading, run)
        except UserError as error:
            write_text(self.root / "refused.json", json.dumps({"why": str(error)}) + "\n")
            raise Refused(str(error)) from error
        sealed = seal(prediction, reading, self.root / "observations.csv", path, self.root / "target")
        self.view.say(
            f"sealed: {run.model.n_layers} layers x {run.model.d_model} on {run.train.tokens:,} tokens will reach "
            f"{sealed['bpb']:.4f} bpb ({sealed['low']:.4f} to {sealed['high']:.4f})"
        )
        return sealed

    def target(self, plan: Plan, reading: Reading, wanted: float | None) -> Run:
        """The run to forecast: the best real shape for what the time left pays, at least 10 times the ladder's top."""
        recipe = self.recipe()
        unique = prepare(self.question.data, self.cache).unique_tokens
        floor = REACH * max(run.flops for run in Ladder.load(self.root / "ladder.json").runs)
        runs = self.make_ladder(plan).runs  # of an active ladder not all were made, and what it planned for stays
        model = choose_shape(reading, recipe.data, runs, wanted or max(floor, plan.target_flops), unique)
        per_token = model.flops_per_token(recipe.data.seq_len)
        if wanted is None:
            left = 60 * self.question.minutes - (time.monotonic() - self.began) - REPORT_SECONDS
            affordable = left / self.pace().alone.seconds_per_token(model, recipe.data.seq_len) * per_token
            most = most_tokens(runs, unique) * per_token
            wanted = max(floor, min(affordable, FARTHEST / REACH * floor, most))
        tokens = wanted / per_token + recipe.batch_tokens(wanted)
        return recipe.run(model, wanted, tokens, times=TARGET_VALIDATIONS)

    def verdict(self) -> dict[str, Any]:
        """Train the forecast run and hold its result against the seal, in `verdict.json`."""
        self.machine()
        sealed = open_seal(self.root / "forecast.json")
        run = Run.from_json(sealed["run"])
        pace = self.pace().alone
        self.view.stage("target", pace.seconds_per_token(run.model, run.data.seq_len) * run.train.tokens)

        def on_step(run: Run, step: int, loss: float) -> None:
            self.view.event(event_of("target", run, step, loss, pace.threads))

        watch = Watch(self.view.say, self.view.stopping)
        carry_out(run, self.root / "target", self.place(pace.threads), on_step, watch=watch)
        return judge(sealed, result_of(self.root / "target"), self.root / "verdict.json")
