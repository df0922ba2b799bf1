"""The verb `nachim next`: finished runs and candidate runs in, which to make next and when to stop out."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from nachim.law import Advice, Candidates, Target, next_runs, read, read_candidates, study
from nachim.law.forms import Scale

SHOWN = 12


def next_(
    obs: Annotated[Path, tyro.conf.Positional],
    candidates: Annotated[Path, tyro.conf.Positional],
    flops: float | None = None,
    x: float | None = None,
    tokens: float | None = None,
    know: Literal["loss", "allocation"] = "loss",
    within: float | None = None,
    budget: float | None = None,
    scale: Literal["params", "flops_per_token"] | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Say which run to make next: the one that narrows a target's interval most for its cost.

    OBS is a table of finished runs, as for `nachim fit`. CANDIDATES is a table of runs that could be made, one row
    each: `tokens`, `params` or `flops_per_token`, and, where it is not 6·N·D or M·D, their `cost`. Runs of one WSD
    `trunk` share a prefix: `shared` is the part of `cost` that is paid once.

    The plan goes on until the target is known `--within` so many percent, or the `--budget` is spent, or no run helps.

    Example: nachim next ladder.csv candidates.csv --flops 1e21 --within 1

    Args:
        obs: Table of finished runs.
        candidates: Table of runs that could be made.
        flops: The target: the best model at this training compute.
        x: The target instead: a model of this scale (parameters, or FLOP a token with --scale flops_per_token),
        tokens: trained on so many tokens.
        know: What to know at --flops: the loss, or the best allocation (how large a model).
        within: Stop at a 90 % interval of so many percent either way.
        budget: Spend at most this, in the unit of the costs.
        scale: What x is; by default flops_per_token where OBS has that column, else params.
        seed: Seed of the bootstrap.
        json: Print one JSON object instead of a table.
    """
    runs = read(obs)
    used: Scale = scale or runs.scales[0]
    target = Target(what=know, flops=flops, x=x, tokens=tokens)
    offer = read_candidates(candidates, used)
    advice = next_runs(study(runs, scale=used, seed=seed), offer, target, within=within, budget=budget)
    if json:
        print(jsonlib.dumps(summarise(advice, offer)))
    else:
        _show(advice, offer, used, know)
    return 0


def summarise(advice: Advice, offer: Candidates) -> dict[str, Any]:
    """Everything `nachim next` reports, as plain JSON values; rows count from 1, widths are half-widths in percent."""
    cost = offer.charged()
    return {
        "percent": advice.percent,
        "helps": advice.helps,
        "why": advice.why,
        "least": advice.least,
        "floor": advice.floor,
        "plan": [{"row": p.index + 1, "cost": p.cost, "spent": p.spent, "percent": p.percent} for p in advice.picks],
        "ranked": [
            {
                "row": int(i) + 1,
                "cost": float(cost[i]),
                "gain": float(advice.gain[i]),
                "percent": float(advice.alone[i]),
            }
            for i in advice.order
        ],
    }


def _show(advice: Advice, offer: Candidates, scale: Scale, know: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(advice.why, highlight=False, markup=False)
    if not advice.picks:
        return
    table = Table(title=f"runs to make, in this order (the {know} is known to ±{advice.percent:.3g} % now)")
    for head in ("row", scale, "tokens", "cost", "spent", "target after it"):
        table.add_column(head, justify="right")
    for pick in advice.picks[:SHOWN]:
        sizes = (f"{offer.x[pick.index]:.3g}", f"{offer.tokens[pick.index]:.3g}")
        table.add_row(str(pick.index + 1), *sizes, f"{pick.cost:.3g}", f"{pick.spent:.3g}", f"±{pick.percent:.3g} %")
    console.print(table)
    if len(advice.picks) > SHOWN:
        console.print(f"and {len(advice.picks) - SHOWN} more: --json has them all", highlight=False)
    best = int(np.argmin(advice.alone))
    if best != advice.picks[0].index:
        console.print(
            f"cost aside, row {best + 1} alone tells most: ±{advice.alone[best]:.3g} % after it", highlight=False
        )
