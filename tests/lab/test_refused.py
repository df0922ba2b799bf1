"""A change of regime that the whole ladder shows refuses a forecast, however few runs its law is then fitted to."""

from __future__ import annotations

from pathlib import Path

import pytest

from nachim.app.ask import open_study
from nachim.app.view import TerminalView
from nachim.lab.study import Refused, Study
from tests.app.studies import Faker, begin_study, climb


@pytest.mark.parametrize("fall", [0.0, 0.2])
def test_a_change_of_regime_refuses_the_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fall: float) -> None:
    root = tmp_path / "study"
    recipe, plan = begin_study(root)
    climb(root, recipe, plan, Faker(fall=fall, begins=plan.levels[-1] / 1.5))
    model = plan.shapes[-1]
    tokens = plan.target_flops / model.flops_per_token(recipe.data.seq_len)
    target = recipe.run(model, plan.target_flops, tokens)
    monkeypatch.setattr(Study, "target", lambda *asked: target)
    with TerminalView() as view:
        study = open_study(root, view)
        if fall:
            with pytest.raises(Refused, match="one law does not describe both sides"):
                study.forecast(plan)
            assert (root / "refused.json").exists() and not (root / "forecast.json").exists()
        else:
            assert study.forecast(plan)["runs"] > 0
