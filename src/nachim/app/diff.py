"""The verb `nachim diff`: two runs in; out, whether they are the same to the bit, and where they first differ."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nachim.spec import Part

if TYPE_CHECKING:
    from nachim.lab.diff import Comparison, Gap


def diff(
    one: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    other: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    json: bool = False,
) -> int:
    """Say whether two runs are the same, bit for bit, and the first step and tensor in which they are not.

    Recipes are compared field by field, metrics step by step (but for the wall time), and every checkpoint that both
    folders hold tensor by tensor, the optimizer's state with it. Ends with 0 when all is identical, 1 when something
    differs, 2 when they cannot be compared.

    Example: nachim diff runs/first runs/again
    """
    from nachim.lab.diff import compare_runs

    found = compare_runs(one, other)
    if json:
        print(jsonlib.dumps(summarise(found)))
    else:
        print("\n".join(told(found)))
    return 0 if found.identical else 1


def summarise(found: Comparison) -> dict[str, Any]:
    """Everything `nachim diff` says, as plain JSON values; `first` is a field of the recipe where no step differs."""
    recipe = [
        {"what": "recipe", "name": each.path, "one": _plain(each.old), "other": _plain(each.new)}
        for each in found.recipe
    ]
    return {
        "identical": found.identical,
        "first": _gap(found.first) or next(iter(recipe), None),
        "recipe": recipe,
        "metrics": _gap(found.metrics),
        "checkpoint": _gap(found.tensor),
        "steps": list(found.steps),
        "checkpoints_compared": list(found.checkpoints),
    }


def told(found: Comparison) -> list[str]:
    """The same in sentences."""
    lines = [f"recipe: {change}" for change in found.recipe]
    if found.metrics:
        gap = found.metrics
        lines.append(f"metrics first differ at step {gap.step}: {gap.name} is {gap.one} and {gap.other}")
    else:
        lines.append(f"metrics: the same at every step (to {found.steps[0]})")
    kept = ", ".join(map(str, found.checkpoints)) or "none"
    if found.tensor:
        gap = found.tensor
        how = f"is {gap.one} and {gap.other}"
        if gap.share is not None:
            size = "by what is not finite" if gap.largest is None else f"by {gap.largest:.3g} at most"
            how = f"differs {size}, in {gap.share:.2%} of its elements"
        lines.append(f"checkpoints first differ after step {gap.step}: {gap.name} {how}")
    else:
        lines.append(f"checkpoints compared, after steps: {kept}" + ("; the same to the bit" * bool(found.checkpoints)))
    return [*lines, "identical" if found.identical else "not identical"]


def _gap(gap: Gap | None) -> dict[str, Any] | None:
    if gap is None:
        return None
    return {name: _plain(value) for name, value in dataclasses.asdict(gap).items()}


def _plain(value: object) -> object:
    if isinstance(value, Part):
        return value.to_json()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
