"""What a decision about data is worth: paired ladders on data sets that differ in it, and a larger rung to check."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nachim.budget.cost import makespan
from nachim.budget.shape import family, ladder_shapes, nearest_shape, shape
from nachim.budget.throughput import Throughput
from nachim.lab.data_sides import Sides, Source, make_sides
from nachim.lab.forecast import WIDER, digest, open_seal
from nachim.lab.ladder import FEWEST_STEPS, Chain, Ladder, budgets, make_ladder, name_of
from nachim.lab.launch.local import carry_out_all
from nachim.lab.recipe import Recipe
from nachim.lab.size import anchored, chain_seconds, family_opt, span_of_shapes
from nachim.lab.speed import measure_throughput
from nachim.lab.store import finished, table_of
from nachim.lab.study import BATCH_FACTOR, LR_FACTOR, PACE_SECONDS, View
from nachim.lab.work import MIXTURE, Place, open_batches
from nachim.law import Observations, concat
from nachim.law.compare import Worth, compare_all
from nachim.law.compare_ahead import ahead, multiplier_of
from nachim.spec import BPE, Data, Decoder, Part, Run, UserError
from nachim.spec.disk import locked, read_json, write_text

QUESTION, PLAN, FORECAST, VERDICT = "worth.json", "plan.json", "forecast.json", "verdict.json"
LEVELS, SPAN, SHAPES, SPREAD = 4, 6.0, 3, 3.0
"""Budgets of the ladder and their range; shapes, and how many times the smallest's M the largest's is at least. With
two seeds that is six trunks, which an interval can be told from, and enough shapes for a law."""
VALIDATION_TOKENS = 32_768
SMALLEST_TOP, FINE = 1e10, 1.05
PACE_WIDTHS = (32, 48, 80)
LEVEL = 0.95


@dataclass(frozen=True)
class Question:
    """Data sets by name, the baseline first, and how much training they are worth: `minutes` for all of it, `seeds` of
    every run, a check at `times` the ladder's largest budget, which is `flops` where that is given, whatever it
    takes; of that rung as many `pairs` as seeds, or so many. A `share` of the text is held out."""

    sources: Mapping[str, Source]
    minutes: float = 30.0
    seeds: int = 2
    times: float = 4.0
    share: float = 0.1
    vocab_size: int = 512
    seq_len: int = 128
    seed: int = 0
    flops: float | None = None
    pairs: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**vars(self), "sources": {name: source.to_json() for name, source in self.sources.items()}}


@dataclass(frozen=True, kw_only=True)
class WorthPlan(Part):
    """What is trained on each data set: `shapes` at budgets of `levels` FLOP, and `target` at `target_flops`. All of
    it, on all data sets, is predicted to take `seconds`."""

    levels: tuple[float, ...]
    shapes: tuple[Decoder, ...]
    target: Decoder
    target_flops: float
    seconds: float


@dataclass(frozen=True)
class WorthStudy:
    """A folder and what it was asked. Every method is a stage, and leaves files; `run` takes them all in turn."""

    root: Path
    question: Question
    place: Place
    workers: int
    view: View

    def run(self) -> tuple[dict[str, Worth], dict[str, Any]]:
        """The whole line: the worth of each idea by the ladders, and the verdict on its forecast.

        Goes on where an earlier process stopped. Raises UserError, and Stopped when the view says so.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / "lock"):
            self.claim()
            sides = self.sides()
            recipes = self.recipes(sides)
            plan = self.plan(recipes)
            tables = self.climb(sides, recipes, plan)
            found = worth_of(tables)
            self.forecast(found, recipes, plan)
            return found, self.verdict(found, tables, sides, recipes, plan)

    def claim(self) -> None:
        """Make the folder this question's. Raises UserError when it holds another, or there is nothing to compare."""
        if len(self.question.sources) < 2:
            raise UserError("a data set is worth something beside another: name two or more, the baseline first")
        if self.question.seeds < 1 or not self.question.times > 1 or not self.question.minutes > 0:
            raise UserError("give at least one seed, some minutes, and a check at more than once the ladder's top")
        asked, path = json.dumps(self.question.to_json(), indent=1) + "\n", self.root / QUESTION
        if not path.exists():
            write_text(path, asked)
        if path.read_text(encoding="utf-8") != asked:
            raise UserError(
                f"{self.root} holds another question, or its recipes have changed since ({path}): choose another "
                "--out, or remove it"
            )

    def sides(self) -> Sides:
        """The data sets, made or there already; what their stages did is in `documents.json`."""
        self.view.stage("data sets")
        found = make_sides(self.question.sources, self.question.share, self.root, self.workers, self.view.share)
        write_text(self.root / "documents.json", json.dumps(found.documents, indent=1) + "\n")
        return found

    def recipes(self, sides: Sides) -> dict[str, Recipe]:
        """How runs on each data set are trained: alike but for what they read, in one tokenizer.

        Raises UserError where two data sets come to the same tokens.
        """
        self.view.stage("corpora")
        found, seen = dict[str, Recipe](), dict[str, str]()
        for name, mixture in sides.mixtures.items():
            data = Data(
                corpus=mixture, tokenizer=BPE(vocab_size=self.question.vocab_size), seq_len=self.question.seq_len
            )
            tokens = open_batches(data, self.place.cache, self.view.share).fingerprint
            key = f"{tokens} {[one.weight for one in mixture.ingredients]}"
            if key in seen:
                raise UserError(f"{name} and {seen[key]} come to the same text, read alike: nothing can be compared")
            seen[key] = name
            found[name] = Recipe(
                data=replace(data, fingerprint_of_tokens=tokens),
                precision="bf16" if self.place.device == "cuda" else "fp32",
                lr_factor=LR_FACTOR,
                batch_factor=BATCH_FACTOR,
                validation_tokens=VALIDATION_TOKENS,
                seed=self.question.seed,
            )
        return found

    def plan(self, recipes: Mapping[str, Recipe]) -> WorthPlan:
        """The largest ladder and check that fit into the minutes at the speed measured here, in `plan.json`."""
        path = self.root / PLAN
        if not path.exists():
            asked, recipe = self.question, next(iter(recipes.values()))
            pace = self.pace(recipe)
            if asked.flops is None:
                plan = largest(asked, recipe, pace, self.workers)
            elif (plan := lay_out(asked, recipe, asked.flops, pace, self.workers)) is None:
                raise UserError(
                    f"ladders up to {asked.flops:.3g} FLOP have too few runs of {FEWEST_STEPS} steps: give more"
                )
            plan.save(path)
        return WorthPlan.load(path)

    def pace(self, recipe: Recipe) -> Throughput:
        """Measured speed of one run on one core, with all workers at work."""
        self.view.stage("speed")
        models = [shape(width, recipe.data.tokenizer.vocab_size) for width in PACE_WIDTHS]
        runs = [recipe.run(model, 1e11, 1e6) for model in models]
        return measure_throughput(runs, replace(self.place, threads=1), self.workers, PACE_SECONDS)

    def climb(self, sides: Sides, recipes: Mapping[str, Recipe], plan: WorthPlan) -> dict[str, Observations]:
        """Every run of every ladder; the table of each is `tables/NAME.csv`, its loss bits a byte of the yardstick."""
        ladders = {name: ladder_of(self.question, recipe, plan) for name, recipe in recipes.items()}
        self._train([chain for ladder in ladders.values() for chain in ladder.chains], "ladder", "ladder")
        found = {name: observe(self.root / "ladder", ladder.runs, sides.judged) for name, ladder in ladders.items()}
        for name, table in found.items():
            table.write(self.root / "tables" / f"{name}.csv")
        return found

    def forecast(self, found: Mapping[str, Worth], recipes: Mapping[str, Recipe], plan: WorthPlan) -> dict[str, Any]:
        """The sealed forecast of the larger rung, in `forecast.json`: of each idea its loss over the baseline's, and
        the multiplier. Raises UserError when those runs have begun without it."""
        path = self.root / FORECAST
        if path.exists():
            return open_seal(path)
        if (self.root / "ahead").exists():
            raise UserError(f"{self.root}/ahead has begun: a forecast comes before its runs, so choose another --out")
        runs = {name: targets(self.question, recipe, plan) for name, recipe in recipes.items()}
        one = next(iter(runs.values()))[0]
        sealed: dict[str, Any] = {
            "flops": one.flops,
            "flops_per_token": one.flops_per_token,
            "tokens": one.train.tokens,
            "pairs": len(next(iter(runs.values()))),
            "runs": {name: [run.fingerprint for run in each] for name, each in runs.items()},
            "ideas": {},
        }
        for name, worth in found.items():
            told = ahead(worth, one.flops_per_token, one.train.tokens, sealed["pairs"])
            sealed["ideas"][name] = {"ratio": list(told.ratio), "multiplier": list(told.multiplier)}
        now = datetime.datetime.now(datetime.UTC)
        sealed |= {"level": LEVEL, "sealed_at": now.isoformat(timespec="seconds")}
        sealed["sha256"] = digest(sealed)
        write_text(path, json.dumps(sealed, indent=2) + "\n")
        return sealed

    def verdict(
        self,
        found: Mapping[str, Worth],
        tables: Mapping[str, Observations],
        sides: Sides,
        recipes: Mapping[str, Recipe],
        plan: WorthPlan,
    ) -> dict[str, Any]:
        """Train the larger rung and hold it against the seal; also in `verdict.json`."""
        sealed = open_seal(self.root / FORECAST)
        runs = {name: targets(self.question, recipe, plan) for name, recipe in recipes.items()}
        if {name: [run.fingerprint for run in each] for name, each in runs.items()} != sealed["runs"]:
            raise UserError(f"{self.root / FORECAST} is about other runs: choose another --out")
        chains = [Chain(runs=(run,)) for each in zip(*runs.values(), strict=True) for run in each]
        self._train(chains, "ahead", "longer runs")
        above = {name: observe(self.root / "ahead", each, sides.judged) for name, each in runs.items()}
        for name, table in above.items():
            if len(table) < sealed["pairs"]:
                raise UserError(f"a run of the larger rung on {name} has diverged: see {self.root / 'ahead'}")
            table.write(self.root / "tables" / f"{name}-ahead.csv")
        together = worth_of({name: concat([table, above[name]]) for name, table in tables.items()})
        base = next(iter(above))
        ideas = {
            name: _judged(worth, sealed, sealed["ideas"][name], above[base], above[name])
            | {"together": _at(together[name], sealed["flops"])}
            for name, worth in found.items()
        }
        losses = {name: [round(loss, 6) for loss in table.loss.tolist()] for name, table in above.items()}
        verdict = {"ideas": ideas, "losses": losses, "epochs": self._epochs(runs), "sha256": sealed["sha256"]}
        write_text(self.root / VERDICT, json.dumps(verdict, indent=2) + "\n")
        return verdict

    def _epochs(self, runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, float]]:
        """How many times over the larger rung read each text of each data set."""
        found = {}
        for name, each in runs.items():
            note = read_json(self.root / "ahead" / name_of(each[0]) / MIXTURE)
            found[name] = {text: one["epochs"] for text, one in note.items() if one["tokens"]}
        return found

    def _train(self, chains: Sequence[Chain], folder: str, stage: str) -> None:
        root = self.root / folder
        left = [
            chain for chain in chains if not all((root / name_of(run) / "result.json").exists() for run in chain.runs)
        ]
        if left:
            self.view.stage(stage)
            order = sorted(left, key=lambda chain: -chain.flops)
            carry_out_all(order, root, self.place, self.workers, self.view.event, self.view.stopping)


def largest(question: Question, recipe: Recipe, pace: Throughput, workers: int) -> WorthPlan:
    """The largest plan that takes the minutes. Raises UserError when the smallest takes longer."""
    best, top = None, SMALLEST_TOP
    while True:
        plan = lay_out(question, recipe, top, pace, workers)
        if plan is not None and plan.seconds > 60 * question.minutes:
            if best is None:
                least = plan.seconds / 60
                raise UserError(f"the smallest ladders take about {least:.1f} minutes: give it more --minutes")
            return best
        best, top = plan or best, FINE * top


def lay_out(question: Question, recipe: Recipe, top: float, pace: Throughput, workers: int) -> WorthPlan | None:
    """The plan whose ladders end at the budget `top`; None where too few shapes or runs suit it.

    M spans from six tenths of the optimum at the lowest budget to that at the check's, as in `nachim.lab.size`.
    """
    data, levels, flops = recipe.data, budgets(top, LEVELS, SPAN), question.times * top
    begun = anchored(recipe, levels, "trunks")
    low, high = span_of_shapes(levels[0], flops)
    smallest = family(data.tokenizer.vocab_size, data.seq_len, begun.layers)[0][0]
    trainable = top / (1.25 * FEWEST_STEPS * begun.batch_tokens(top))
    low = max(low, smallest)
    high = min(max(high, SPREAD * low), trainable)
    if high < SPREAD * low:
        return None
    shapes = tuple(ladder_shapes(low, high, SHAPES, data.tokenizer.vocab_size, data.seq_len, begun.layers))
    wanted = min(max(smallest, family_opt(flops)), WIDER * shapes[-1].flops_per_token(data.seq_len))
    plan = WorthPlan(
        levels=tuple(levels),
        shapes=shapes,
        target=nearest_shape(wanted, data.tokenizer.vocab_size, data.seq_len, begun.layers),
        target_flops=flops,
        seconds=0.0,
    )
    try:
        ladder = ladder_of(question, recipe, plan)
    except UserError:
        return None
    if len({chain.runs[0].model for chain in ladder.chains}) < SHAPES or len(ladder.runs) < 2 * SHAPES * question.seeds:
        return None
    ends = [Chain(runs=(run,)) for run in targets(question, recipe, plan)]
    seconds = [
        makespan([chain_seconds(chain, pace) for chain in each] * len(question.sources), workers)
        for each in (ladder.chains, ends)
    ]
    return replace(plan, seconds=math.fsum(seconds))


def ladder_of(question: Question, recipe: Recipe, plan: WorthPlan) -> Ladder:
    """The runs of a data set: one trunk a shape and seed, with a decay at each budget. Text may be read again: whether
    there is enough of it is part of what a decision about data decides."""
    chains: list[Chain] = []
    for seed in range(question.seed, question.seed + question.seeds):
        begun = replace(anchored(recipe, plan.levels, "trunks"), seed=seed)
        chains += make_ladder(begun, plan.shapes, plan.levels, 1 << 62, "trunks").chains
    return Ladder(chains=tuple(chains))


def targets(question: Question, recipe: Recipe, plan: WorthPlan) -> list[Run]:
    """The larger rung of a data set, by each seed that it has."""
    begun = anchored(recipe, plan.levels, "trunks")
    tokens = plan.target_flops / plan.target.flops_per_token(recipe.data.seq_len)
    seeds = range(question.seed, question.seed + (question.pairs or question.seeds))
    return [begun.run(plan.target, plan.target_flops, tokens, seed=seed) for seed in seeds]


def observe(root: Path, runs: Sequence[Run], judged: Mapping[str, float]) -> Observations:
    """One observation a finished run under `root`; `loss` is bits a byte of held-out texts, by the weights `judged`.

    Raises UserError when none is finished.
    """
    rows = finished(root, runs)
    if not rows:
        raise UserError(f"no run under {root} is finished: run the same command again")
    losses = [
        sum(weight * result["validation"]["sources"][name]["bpb"] for name, weight in judged.items())
        for _, result in rows
    ]
    return replace(table_of(rows), loss=np.array(losses))


def worth_of(tables: Mapping[str, Observations]) -> dict[str, Worth]:
    """Each table against the first."""
    (_, base), *ideas = tables.items()
    return compare_all(base, dict(ideas))


def _judged(
    worth: Worth, sealed: Mapping[str, Any], told: Mapping[str, Any], base: Observations, idea: Observations
) -> dict[str, Any]:
    """What was sealed of one idea, beside what its pairs of runs measured."""
    each = np.exp(np.log(idea.loss) - np.log(base.loss))
    ratio = float(np.exp(np.log(each).mean()))
    _, low, high = told["ratio"]
    measured = multiplier_of(worth, sealed["flops_per_token"], sealed["tokens"], ratio)
    found = {"ratio": ratio, "ratios": each.tolist(), "multiplier": measured}
    return {"sealed": dict(told), "measured": found, "inside": bool(low <= ratio <= high)}


def _at(worth: Worth, flops: float) -> dict[str, float]:
    """The multiplier at `flops` by all runs together, with its 95 % interval."""
    value, low, high = (float(one[0]) for one in worth.at(np.array([flops])))
    return {"flops": flops, "multiplier": value, "low": low, "high": high}
