"""Every recipe of a part is a run that the loop can train: its loss falls within some steps."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import FFN, WSD, Mixer, Norm, Position, Residual, Run, Scaling
from nachim.train.guard import Guard
from nachim.train.step import Stepper
from recipes import parts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parts.md"

RECIPES = [name for name, made in vars(parts).items() if inspect.isfunction(made) and made.__module__ == parts.__name__]


@pytest.mark.parametrize("name", RECIPES)
def test_the_loop_trains_it(name):
    run = getattr(parts, name)()
    assert Run.from_json(run.to_json()) == run
    run = replace(run, train=replace(run.train, schedule=WSD()))
    model = build(run.model, run.model.d_model)
    initialise(model, run.train.seed)
    stepper, guard = Stepper(run, model, next_token_loss), Guard(run.train.optimizer.lr)
    x_BT = torch.randint(30, (4, 65))
    losses = [stepper.take(step, x_BT, guard).loss for step in range(10)]
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("base", [Mixer, FFN, Position, Norm, Residual, Scaling], ids=lambda base: base.__name__)
def test_the_page_names_every_part(base):
    page = PAGE.read_text(encoding="utf-8")
    ours = {part.__name__ for part in descendants(base) if part.__module__.startswith("nachim.spec.")}
    missing = {name for name in ours if f"`{name}`" not in page}
    assert missing <= {"Gated"}, missing  # the base of gated feed-forwards


def descendants(base):
    found = set(base.__subclasses__())
    return found.union(*(descendants(child) for child in found))
