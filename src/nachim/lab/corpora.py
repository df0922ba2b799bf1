"""One ladder climbed on several corpora, so that only the text differs, and one table of what they measured."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from nachim.lab.size import Plan
from nachim.lab.study import Study
from nachim.law import Observations, concat, read
from nachim.spec import UserError

COMMON = ("machine.json", "pace.json", "plan.json")
"""What all studies take from the one that is planned: shapes, budgets and design, and the speed they rest on."""


def plan_all(studies: Mapping[str, Study]) -> Plan:
    """One plan for every corpus: that of the smallest, which no other then runs out of. Each folder holds it."""
    for study in studies.values():
        study.claim()
    unique = {name: _unique(name, study) for name, study in studies.items()}
    first = studies[min(unique, key=lambda name: unique[name])]
    try:
        plan = first.plan()
    except UserError as error:
        raise UserError(f"{error} ({len(studies)} corpora share them evenly)") from None
    for study in studies.values():
        for name in COMMON:
            if not (study.root / name).exists():
                shutil.copyfile(first.root / name, study.root / name)
    return plan


def _unique(name: str, study: Study) -> int:
    try:
        return study.corpus().unique_tokens
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def climb_all(studies: Mapping[str, Study], plan: Plan, table: Path) -> Observations:
    """Climb the ladder on every corpus, its learning rate and batch swept on each; write and return one table, with
    the corpus in `group`. Losses are bits a byte of each corpus's own held-out text."""
    parts = []
    for name, study in studies.items():
        study.sweep(plan)
        study.ladder(plan)
        runs = read(study.root / "observations.csv")
        parts.append(replace(runs, group=np.array([name] * len(runs))))
    joint = concat(parts)
    joint.write(table)
    return joint
