"""What `nachim train` accepts as a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from nachim.app.train import run_of
from nachim.budget.shape import shape
from nachim.spec import Muon, UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_a_recipe_is_a_function_that_returns_a_run(tmp_path: Path) -> None:
    run = run_of(RECIPES / "stdlib.py")
    assert run.model == shape(64, 512)  # the quickstart's own family
    assert isinstance(run.train.optimizer, Muon)
    run.save(tmp_path / "run.json")
    assert run_of(tmp_path) == run_of(tmp_path / "run.json") == run


@pytest.mark.parametrize("name", ["plain_adamw", "grouped"])
def test_every_recipe_makes_a_run_of_its_own(name: str) -> None:
    assert run_of(RECIPES / f"stdlib.py:{name}") != run_of(RECIPES / "stdlib.py")


def test_what_is_no_recipe_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def run():\n    return 3\n")
    with pytest.raises(UserError, match=r"run\(\) returns 3, which is not a nachim.spec.Run"):
        run_of(tmp_path / "a.py")
    with pytest.raises(UserError, match=r"has no function 'groupd'; did you mean 'grouped'\?"):
        run_of(RECIPES / "stdlib.py:groupd")
    with pytest.raises(UserError, match="no such file"):
        run_of(tmp_path / "b.py")
