"""What a ladder's folder says of its runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny import tiny_data

from nachim.budget.shape import shape
from nachim.lab.ladder import make_ladder, name_of
from nachim.lab.recipe import Recipe
from nachim.lab.store import doubts
from nachim.law import Observations
from nachim.spec.disk import write_text


def test_a_ladder_tells_of_rungs_that_diverged_or_are_badly_tuned(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    shapes = [shape(width, data.tokenizer.vocab_size) for width in (32, 40)]
    recipe = Recipe(data=data, precision="fp32", batch_factor=0.02)
    planned = make_ladder(recipe, shapes, [1e10, 2e10, 4e10], 10**9, "isoflop")
    runs = planned.runs
    tokens = np.array([float(run.train.tokens) for run in runs])
    scale = np.array([float(run.flops_per_token) for run in runs])
    loss = 1.0 + scale**-0.1 + tokens**-0.1
    good = Observations(tokens, loss, flops_per_token=scale)
    assert doubts(tmp_path, planned, good) == []
    bad = Observations(tokens, loss * np.where(np.arange(len(runs)) == 2, 1.1, 1.0), flops_per_token=scale)
    (found,) = doubts(tmp_path, planned, bad)
    assert found.startswith("observations.csv, row 3: under-tuned, its loss is")
    write_text(tmp_path / name_of(runs[-1]) / "diverged.json", "{}")
    assert doubts(tmp_path, planned, good) == [f"diverged, and left out of the law: {name_of(runs[-1])}"]
