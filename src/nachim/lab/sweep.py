"""Settling learning rate and batch on the ladder's bottom rung, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from nachim.lab.ladder import Chain, Ladder
from nachim.lab.recipe import Recipe
from nachim.law.transfer import FEWEST, optimum
from nachim.spec import Decoder, Run, UserError

STEP = 2.0
EXTENSIONS = 2
"""How often a sweep goes on beyond an edge that looks best."""
NOISE = 0.015
"""What the losses of bottom rungs differ by between seeds (`ideas/forecast_60_minutes.md`): a batch that gains less is
no better than the planned one."""

Field = Literal["lr_factor", "batch_factor"]
Try = Callable[[Ladder], Mapping[Run, float]]
"""Carries runs out and returns the loss of each that ended well; a run that diverged has none."""


def sweep(recipe: Recipe, model: Decoder, flops: float) -> Ladder:
    """The runs a sweep surely makes, for planning: half, one and two times the recipe's rate, then its batch."""
    varied = [_varied(recipe, field, factor) for field in ("lr_factor", "batch_factor") for factor in (0.5, 1.0, 2.0)]
    return _ladder([_run(each, model, flops) for each in varied])


def settle(recipe: Recipe, model: Decoder, flops: float, carry_out: Try, say: Callable[[str], None]) -> Recipe:
    """`recipe` with its learning rate, then its batch at that rate, as runs of `model` at compute `flops` like them.

    Each goes on beyond an edge that looks best, and ends at the vertex of a parabola through log value and loss. The
    batch comes second because the best batch at a wrong rate is a wrong batch: a rate twice too high asks for one
    twice too large. The loss is flat in the batch, so the planned one stays unless another gains more than NOISE.
    Raises UserError when every run of a sweep diverges.
    """
    rate, losses = _along("lr_factor", recipe, model, flops, carry_out, say)
    at_best = replace(recipe, lr_factor=_least(losses))
    batch, losses = _along("batch_factor", at_best, model, flops, carry_out, say)
    planned = losses.get(recipe.batch_factor, math.inf)
    if planned < (1 + NOISE) * min(losses.values()):
        batch = recipe.batch_factor
    return replace(recipe, lr_factor=round(rate, 4), batch_factor=round(batch, 4))


def _along(
    field: Field, recipe: Recipe, model: Decoder, flops: float, carry_out: Try, say: Callable[[str], None]
) -> tuple[float, dict[float, float]]:
    """The vertex of `field`, and the loss of every value tried, as factors of DeepSeek's law."""
    centre = getattr(recipe, field)
    runs = {centre * factor: _run(_varied(recipe, field, factor), model, flops) for factor in (1 / STEP, 1.0, STEP)}
    for _ in range(EXTENSIONS):
        losses = _losses(field, runs, carry_out)
        best = _least(losses)
        beyond = best / STEP if best == min(losses) == min(runs) else best * STEP if best == max(runs) else None
        more = beyond and _run(_varied(recipe, field, beyond / centre), model, flops)
        if not more or more in runs.values():
            break
        runs[beyond] = more
    losses = _losses(field, runs, carry_out)
    best = _least(losses)
    name = {"lr_factor": "learning rate", "batch_factor": "batch"}[field]
    if best in (min(losses), max(losses)):
        say(f"the sweep's best {name} is at its edge: it is taken as it is")
        return best, losses
    if len(losses) < FEWEST:
        return best, losses
    values = np.array(sorted(losses))
    return optimum(values, np.array([losses[value] for value in values])), losses


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
