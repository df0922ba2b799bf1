"""What `nachim train` accepts as a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nachim.app.train import _machine, _threads, run_of, train
from nachim.app.view import TerminalView
from nachim.budget.shape import shape
from nachim.lab import speed
from nachim.spec import Machine, Muon, UserError
from nachim.train import rates
from tests.train.tiny import tiny_run

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


def test_a_machine_is_measured_once_a_run_and_again_where_its_file_is_damaged(tmp_path: Path, monkeypatch) -> None:
    measured = []

    def measure(device: str) -> Machine:
        measured.append(device)
        return Machine(
            name="test", device="cpu", cores=2, fp32_one_thread=1e9, fp32_all=2e9, bf16_one_thread=1e9, bf16_all=2e9
        )

    monkeypatch.setattr("nachim.train.machine.measure_machine", measure)
    with TerminalView() as view:
        assert _machine(tmp_path, view, "cpu") == _machine(tmp_path, view, "cpu") and measured == ["cpu"]
        (tmp_path / "machine.json").write_text("{")
        assert _machine(tmp_path, view, "cpu") == Machine.load(tmp_path / "machine.json") and len(measured) == 2
        (tmp_path / "machine.json").unlink()
        (tmp_path / "result.json").write_text("{}")
        assert _machine(tmp_path, view, "cpu") is None, "what is over need not be measured"


def test_what_cannot_be_sampled_or_traced_is_said_before_anything_runs(tmp_path: Path) -> None:
    run_of(RECIPES / "stdlib.py").save(tmp_path / "run.json")
    for flags, said in ({"statistics": -1}, "--statistics -1"), ({"profile": 0}, "--profile 0"):
        with pytest.raises(UserError, match=said):
            train(tmp_path, **flags)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "study").mkdir()
    with pytest.raises(UserError, match="single run"):
        train(tmp_path / "study", profile=3)


def test_threads_are_those_asked_for_or_those_that_steps_are_fastest_on(tmp_path: Path, monkeypatch) -> None:
    run = run_of(RECIPES / "stdlib.py")
    seconds = {1: 1.0, 2: 2.0}
    monkeypatch.setattr(rates, "cores", lambda: 2)
    monkeypatch.setattr(speed, "cores", lambda: 2)
    monkeypatch.setattr(speed, "stepping", lambda run, device: lambda: None)
    monkeypatch.setattr(speed, "step_seconds", lambda steps, spent: [[9.0, seconds[1]], [9.0, seconds[2]]])
    for name in rates.GIVEN:
        monkeypatch.delenv(name, raising=False)
    with TerminalView() as view:
        assert _threads(run, tmp_path, view, "cpu") == 1
        seconds[2] = 0.5
        assert _threads(run, tmp_path, view, "cpu") == 2
        seconds[2] = 2.0
        large = replace(run, train=replace(run.train, tokens=2**24, batch_tokens=2**18))
        assert _threads(large, tmp_path, view, "cpu") == 2, "a step of seconds is shortened by every core"
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        with rates.on_threads(3):
            assert _threads(run, tmp_path, view, "cpu") == 3


def test_threads_are_tried_on_real_steps(monkeypatch) -> None:
    run, before = tiny_run(), torch.get_num_threads()
    monkeypatch.setattr(speed, "cores", lambda: 2)
    assert speed.fastest_threads(run, 0.01) in (1, 2)
    assert torch.get_num_threads() == before
