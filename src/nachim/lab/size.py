"""How large a ladder, and how far a forecast, fit into some minutes of this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nachim.budget.cost import disk_bytes, makespan
from nachim.budget.shape import family, ladder_shapes, middle_layers, nearest_shape
from nachim.budget.throughput import Throughput
from nachim.lab.forecast import reachable
from nachim.lab.ladder import FEWEST_STEPS, Chain, Design, Ladder, budgets, make_ladder
from nachim.lab.recipe import Anchor, Recipe
from nachim.lab.sweep import sweep
from nachim.law.transfer import model_opt
from nachim.spec import CompleteP, Decoder, Part, Run, UserError
from nachim.spec.part import later

REACH = 10.0
"""How many times the ladder's largest budget a target is at least."""
SHAPES = 6
FEWEST_SHAPES, FEWEST_RUNS, SPAN = 5, 20, 10.0
"""A ladder that can carry a law has at least as many shapes and runs, over such a range of compute."""
EARLY = 0.4
"""Shortest run of a trunk, in tokens of the planned optimum at the largest budget: an eighth of what a target of ten
times that budget takes. Wide shapes fall so steeply in shorter ones that a law errs (`ideas/early_runs.md`)."""
FAMILY = 2.0
"""Our family's optimum M over DeepSeek's prior, at 1e11 to 1e12 FLOP on the embedded corpus."""
STRETCH, MOST = 1.5, 0.8
"""A plan may take so many times the time given, where none is shorter; and one without early runs is taken if it is
such a share of one with them."""
SMALLEST_TOP, FINE = 1e10, 1.03
RUN_SECONDS, START_SECONDS = 0.5, 4.0
"""Fixed cost of a run beside its steps (building, checkpoints, results), and of workers that begin."""


@dataclass(frozen=True, kw_only=True)
class Plan(Part):
    """What will be run: budgets, shapes and design of the ladder, its sweep and repeat, and the size of the target.

    No run of the ladder is shorter than `least_tokens`. Seconds are predicted from measured throughput, the ladder's
    with its repeat.
    """

    design: Design
    levels: tuple[float, ...]
    shapes: tuple[Decoder, ...]
    sweep: Ladder
    target_flops: float
    least_tokens: float = later(0.0)
    sweep_seconds: float
    ladder_seconds: float
    target_seconds: float
    disk: int


@dataclass(frozen=True)
class Pace:
    """Measured speed: `alone` of one run on all cores, `beside` of one run on one core while the others train too."""

    alone: Throughput
    beside: Throughput
    workers: int


def lay_out(
    recipe: Recipe, top: float, unique_tokens: int, pace: Pace, design: Design, least_tokens: float = 0.0
) -> Plan:
    """The plan whose ladder ends at the budget `top`, each run of it at least `least_tokens` long.

    M spans from six tenths of the optimum at the lowest budget to the optimum at the target (DeepSeek's, arXiv
    2401.02954, times `FAMILY`), but no shape is too large to take enough tokens at the largest budget. Raises UserError
    where no shape is left, or none for the target.
    """
    levels = budgets(top)
    target = REACH * top
    recipe = anchored(recipe, levels, design)
    data = recipe.data
    low, high = span_of_shapes(levels[0], target)
    smallest = family(data.tokenizer.vocab_size, data.seq_len, recipe.layers)[0][0]
    trainable = top / (1.25 * max(least_tokens, FEWEST_STEPS * recipe.batch_tokens(top)))
    low, high = max(low, smallest), min(high, trainable)
    shapes = tuple(ladder_shapes(low, high, SHAPES, data.tokenizer.vocab_size, data.seq_len, recipe.layers))
    ladder = make_ladder(recipe, shapes, levels, unique_tokens, design, least_tokens)
    extra = repeat(recipe, ladder)
    stages = sweep(recipe, sweep_shape(recipe, levels[0]), levels[0])
    tries = Ladder(chains=tuple(chain for stage in stages for chain in stage.chains))
    made = tuple(dict.fromkeys(chain.runs[0].model for chain in ladder.chains))
    fits, opt = reachable(data, ladder.runs, target, unique_tokens), family_opt(target)
    model = min(fits, key=lambda fit: abs(math.log(fit[0] / opt)))[1]
    target_tokens = target / model.flops_per_token(data.seq_len)
    return Plan(
        design=design,
        levels=tuple(levels),
        shapes=made,
        sweep=tries,
        target_flops=target,
        least_tokens=least_tokens,
        sweep_seconds=sum(_wall(stage.chains, pace) for stage in stages),
        ladder_seconds=_wall((*ladder.chains, *extra.chains), pace),
        target_seconds=target_tokens * pace.alone.seconds_per_token(model, data.seq_len),
        disk=sum(disk_bytes(run) for run in (*ladder.runs, *extra.runs, *tries.runs)),
    )


def family_opt(flops: float) -> float:
    """Optimum M to plan around at compute `flops`; the ladder measures the real one."""
    return FAMILY * float(model_opt(flops))


def span_of_shapes(lowest: float, target: float) -> tuple[float, float]:
    """Smallest and largest M of a ladder whose lowest budget is `lowest` and whose target is `target` FLOP."""
    return 0.6 * family_opt(lowest), family_opt(target)


def sweep_shape(recipe: Recipe, flops: float) -> Decoder:
    """The shape the sweep is made on: the planned optimum of the lowest budget."""
    data = recipe.data
    smallest = family(data.tokenizer.vocab_size, data.seq_len, recipe.layers)[0][0]
    return nearest_shape(max(smallest, family_opt(flops)), data.tokenizer.vocab_size, data.seq_len, recipe.layers)


def anchored(recipe: Recipe, levels: Sequence[float], design: Design) -> Recipe:
    """`recipe` for a ladder of the budgets `levels`: of one depth, that of the middle of all its shapes; for trunks,
    with its anchor at the sweep's rung of the lowest budget and its shape as the base; separate runs have neither.

    Runs of one course have one rate, and the best one falls as fast as width grows (measured in
    `ideas/parametrisation.md`): CompleteP takes that up.
    """
    data = recipe.data
    ends = span_of_shapes(levels[0], REACH * levels[-1])
    recipe = replace(recipe, layers=middle_layers(*ends, data.tokenizer.vocab_size, data.seq_len))
    if design == "isoflop":
        return recipe
    flops = levels[0]
    shape = sweep_shape(recipe, flops)
    tokens = round(flops / shape.flops_per_token(data.seq_len))
    base = CompleteP(base_width=shape.d_model, base_head=shape.attention.d_head, base_depth=shape.n_layers)
    return replace(recipe, anchor=Anchor(flops=flops, tokens=tokens), parametrisation=base)


def repeat(recipe: Recipe, ladder: Ladder) -> Ladder:
    """The second-smallest shape's runs at its three cheapest budgets once more, with another seed: the run noise."""
    by_shape = list(dict.fromkeys(chain.runs[0].model for chain in ladder.chains))
    model = by_shape[min(1, len(by_shape) - 1)]
    again = []
    for chain in ladder.chains:
        if chain.runs[0].model == model:
            again.append(Chain(runs=tuple(reseeded(run, recipe.seed + 1) for run in chain.runs[:3])))
    return Ladder(chains=tuple(again[:3]))


def reseeded(run: Run, seed: int) -> Run:
    """`run` with other weights and another order of the data."""
    return replace(
        run,
        train=replace(run.train, seed=seed),
        data=replace(run.data, seed=seed),
    )


def chain_seconds(chain: Chain, pace: Throughput) -> float:
    """Predicted seconds of a chain on one worker, validation included (a forward pass is a third of a step)."""
    run = chain.runs[0]
    per_token = pace.seconds_per_token(run.model, run.data.seq_len)
    trained = chain.flops / run.flops_per_token
    validated = sum(each.validation.tokens * each.validation.times for each in chain.runs)
    return (trained + validated / 3) * per_token + RUN_SECONDS * len(chain.runs)


def _wall(chains: Sequence[Chain], pace: Pace) -> float:
    """Predicted seconds of `chains` on all workers, which begin together."""
    return START_SECONDS + makespan([chain_seconds(chain, pace.beside) for chain in chains], pace.workers)


def size(recipe: Recipe, seconds: float, unique_tokens: int, pace: Pace, design: Design) -> Plan:
    """The largest plan that takes `seconds`: of trunks without early runs, where such a plan is nearly as large as one
    whose runs are only none shorter than the smallest shape's at the lowest budget.

    The smallest useful plan is taken where it is at most `STRETCH` times as long: on a busy machine a ladder too small
    to fit a law would be no better. Raises UserError when it is longer still, saying how long.
    """
    members = family(recipe.data.tokenizer.vocab_size, recipe.data.seq_len)
    most = unique_tokens * members[-1][0] / REACH

    def largest(shortest: Callable[[float], float]) -> tuple[Plan | None, Plan | None]:
        return _largest(lambda top: _try(recipe, top, unique_tokens, pace, design, shortest(top)), seconds, most)

    late = largest(lambda top: EARLY * top / family_opt(top))[0] if design == "trunks" else None
    # A hundredth less, for those tokens are the shortest run's own, and are rounded.
    best, longer = largest(lambda top: 0.99 * top / SPAN / members[0][0] if design == "trunks" else 0.0)
    if late is not None and (best is None or total(late) >= MOST * total(best)):
        return late
    if best is not None:
        return best
    if longer is not None and total(longer) <= STRETCH * seconds:
        return longer
    needs = f"the smallest takes about {total(longer) / 60:.1f} minutes" if longer else "none fits the corpus"
    raise UserError(
        f"no useful ladder fits into the {max(0.0, seconds) / 60:.1f} minutes left: {needs}; give it more --minutes"
    )


def _largest(lay: Callable[[float], Plan | None], seconds: float, most: float) -> tuple[Plan | None, Plan | None]:
    """The plan of the highest top up to `most` that takes at most `seconds`, and that of the lowest that takes longer.

    Tops are tried upwards in coarse steps, then from the last that fitted in steps of 3 %.
    """
    best = longer = None
    start = SMALLEST_TOP
    for step in (FINE**8, FINE):
        top = start
        while top <= most:
            plan = lay(top)
            if plan is not None and total(plan) > seconds:
                longer = plan
                break
            best, start = plan or best, top
            top *= step
    return best, longer


def total(plan: Plan) -> float:
    """Predicted seconds of the whole plan."""
    return plan.sweep_seconds + plan.ladder_seconds + plan.target_seconds


def _try(
    recipe: Recipe, top: float, unique_tokens: int, pace: Pace, design: Design, least_tokens: float
) -> Plan | None:
    """The plan at `top`; None where it has too few shapes or runs to fit a law."""
    try:
        plan = lay_out(recipe, top, unique_tokens, pace, design, least_tokens)
    except UserError:
        return None
    return plan if useful(plan, anchored(recipe, plan.levels, design), unique_tokens) else None


def useful(plan: Plan, recipe: Recipe, unique_tokens: int) -> bool:
    """Whether the plan's ladder, made with `recipe`, has the shapes, runs and range of compute that a law needs."""
    try:
        runs = make_ladder(recipe, plan.shapes, plan.levels, unique_tokens, plan.design, plan.least_tokens).runs
    except UserError:
        return False
    span = max(run.flops for run in runs) / min(run.flops for run in runs)
    return len({run.model for run in runs}) >= FEWEST_SHAPES and len(runs) >= FEWEST_RUNS and span >= SPAN * 0.98


def describe(plan: Plan) -> Sequence[tuple[str, str]]:
    """The plan as lines of (what, how much), for a dry run."""
    smallest, largest = plan.shapes[0], plan.shapes[-1]
    return [
        ("budgets", f"{len(plan.levels)}, {plan.levels[0]:.2g} to {plan.levels[-1]:.2g} FLOP"),
        ("shapes", f"{len(plan.shapes)}, {_brief(smallest)} to {_brief(largest)}"),
        ("target", f"{plan.target_flops:.2g} FLOP, {plan.target_flops / plan.levels[-1]:.0f} x the ladder's top"),
        ("disk", f"{plan.disk / 1e6:.0f} MB"),
        ("sweep", f"{plan.sweep_seconds:.0f} s"),
        ("ladder", f"{plan.ladder_seconds:.0f} s"),
        ("target", f"{plan.target_seconds:.0f} s"),
    ]


def _brief(model: Decoder) -> str:
    return f"{model.n_layers} layers x {model.d_model}"
