"""Settling learning rate and batch on the ladder's bottom rung, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from nachim.lab.ladder import Chain, Ladder
from nachim.lab.recipe import Recipe
from nachim.law.transfer import FEWEST, optimum
from nachim.spec import Decoder, Run, UserError

RATES, BATCHES = (0.5, 1.0, 2.0, 4.0), (0.5, 1.0, 2.0)
"""What a sweep begins with, times the recipe's: an even number of rates keeps workers busy, and the best one is seldom
below the half."""
STEP, EXTENSIONS = 2.0, 2
"""How often a sweep goes on beyond an edge that looks best."""
NOISE = 0.015
"""What the losses of bottom rungs differ by between seeds (`ideas/forecast_60_minutes.md`): a sweep cannot tell apart
what loses less."""

Field = Literal["lr_factor", "batch_factor"]
Try = Callable[[Ladder], Mapping[Run, float]]
"""Carries runs out and returns the loss of each that ended well; a run that diverged has none."""


def sweep(recipe: Recipe, model: Decoder, flops: float) -> tuple[Ladder, Ladder]:
    """The runs a sweep surely makes, for planning: those of its rates, and then those of other batches."""
    rates = [_run(_varied(recipe, "lr_factor", factor), model, flops) for factor in RATES]
    batches = [_run(_varied(recipe, "batch_factor", factor), model, flops) for factor in BATCHES]
    return _ladder(rates), _ladder([run for run in batches if run not in rates])


def settle(recipe: Recipe, model: Decoder, flops: float, carry_out: Try, say: Callable[[str], None]) -> Recipe:
    """`recipe` with its learning rate, then its batch at that rate, as runs of `model` at compute `flops` like them.

    Each goes on beyond an edge that looks best. Of the rates that the sweep cannot tell apart, by NOISE, the lowest is
    taken: longer runs want lower ones (arXiv 2401.02954). The batch comes second because the best batch at a wrong rate
    is a wrong batch; the planned one stays unless another gains more than NOISE, and then the vertex of a parabola
    through log batch and loss is taken. Raises UserError when every run of a sweep diverges.
    """
    losses = _along("lr_factor", RATES, recipe, model, flops, carry_out, say)
    settled = replace(recipe, lr_factor=round(min(_near_best(losses)), 4))
    losses = _along("batch_factor", BATCHES, settled, model, flops, carry_out, say)
    if recipe.batch_factor in _near_best(losses):
        return settled
    return replace(settled, batch_factor=round(_vertex(losses), 4))


def _near_best(losses: Mapping[float, float]) -> list[float]:
    return [value for value, loss in losses.items() if loss < (1 + NOISE) * min(losses.values())]


def _vertex(losses: Mapping[float, float]) -> float:
    values = np.array(sorted(losses))
    best = _least(losses)
    if len(values) < FEWEST or best in (values[0], values[-1]):
        return best
    return optimum(values, np.array([losses[value] for value in values]))


def _along(
    field: Field,
    factors: Sequence[float],
    recipe: Recipe,
    model: Decoder,
    flops: float,
    carry_out: Try,
    say: Callable[[str], None],
) -> dict[float, float]:
    """The loss of every value of `field` that was tried, as factors of DeepSeek's law."""
    centre = getattr(recipe, field)
    runs = {centre * factor: _run(_varied(recipe, field, factor), model, flops) for factor in factors}
    for _ in range(EXTENSIONS):
        losses = _losses(field, runs, carry_out)
        best = _least(losses)
        beyond = best / STEP if best == min(losses) == min(runs) else best * STEP if best == max(runs) else None
        more = beyond and _run(_varied(recipe, field, beyond / centre), model, flops)
        if not more or more in runs.values():
            break
        runs[beyond] = more
    losses = _losses(field, runs, carry_out)
    if _least(losses) in (min(losses), max(losses)):
        name = {"lr_factor": "learning rate", "batch_factor": "batch"}[field]
        say(f"the sweep's best {name} is at its edge")
    return losses


def _least(losses: Mapping[float, float]) -> float:
    return min(losses, key=losses.__getitem__)


def _losses(field: Field, runs: Mapping[float, Run], carry_out: Try) -> dict[float, float]:
    distinct = {run: value for value, run in reversed(sorted(runs.items()))}
    found = carry_out(_ladder(list(distinct)))
    losses = {value: found[run] for run, value in distinct.items() if run in found}
    if not losses:
        raise UserError(
            f"every run of the sweep of {field.removesuffix('_factor')} diverged: the recipe does not train"
        )
    return losses


def _varied(recipe: Recipe, field: Field, factor: float) -> Recipe:
    return replace(recipe, **{field: getattr(recipe, field) * factor})


def _run(recipe: Recipe, model: Decoder, flops: float) -> Run:
    return recipe.run(model, flops, flops / model.flops_per_token(recipe.data.seq_len))


def _ladder(runs: list[Run]) -> Ladder:
    return Ladder(chains=tuple(Chain(runs=(run,)) for run in dict.fromkeys(runs)))
