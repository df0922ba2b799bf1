"""Asked to stop, a ladder and a study's target save where they are; the next command goes on, to the same bits."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tiny import tiny_recipe

from nachim.app import cli
from nachim.app.view import TerminalView
from nachim.budget.shape import shape
from nachim.lab import study as stages
from nachim.lab.ladder import Chain, Ladder, name_of
from nachim.lab.launch.local import Event, carry_out_all
from nachim.lab.work import Place, carry_out_chain
from nachim.spec import UserError
from nachim.train import checkpoint
from nachim.train.heartbeat import pulse
from nachim.train.manifest import read_result
from nachim.train.stopping import Stopped
from tests.train.tiny import differing, tiny_run, weights


def test_signals_to_a_ladder_save_its_runs_and_lose_no_bit(tmp_path: Path) -> None:
    recipe, place = tiny_recipe(tmp_path), Place(cache=tmp_path / "cache", checkpoint_seconds=1e9)
    batch = recipe.batch_tokens(1e9)
    chains = tuple(Chain(runs=(recipe.run(shape(16, 300), 1e9, steps * batch),)) for steps in (150, 12))
    root, news = tmp_path / "ladder", list[Event]()

    def signals(event: Event) -> None:
        news.append(event)
        if len(news) == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(event.worker, number)  # ctrl-C and systemd signal every process of a group
            os.kill(os.getpid(), signal.SIGTERM)

    with TerminalView() as view, pytest.raises(Stopped):
        carry_out_all(chains, root, place, 1, signals, view.stopping)
    first, second = (root / name_of(chain.runs[0]) for chain in chains)
    found = pulse(first)
    assert found is not None and found.state in ("stopped", "finished")
    assert max(checkpoint.steps(first / "checkpoint")) == found.step > 0
    assert not (second / "result.json").exists(), "what had not begun did not begin"

    for chain in chains:
        carry_out_chain(chain, root, place, lambda run, step, loss: None)
        carry_out_chain(chain, tmp_path / "whole", place, lambda run, step, loss: None)
        name = name_of(chain.runs[0])
        assert not differing(weights(root / name), weights(tmp_path / "whole" / name))


def test_a_stopped_run_travels_between_processes_as_what_it_is() -> None:
    import pickle

    for step in (None, 7):
        again = pickle.loads(pickle.dumps(Stopped(step)))
        assert isinstance(again, Stopped) and (again.step, str(again)) == (step, str(Stopped(step)))


def test_nothing_that_handles_errors_swallows_a_stop() -> None:
    assert not issubclass(Stopped, Exception)


def test_before_anybody_asks_a_signal_ends_the_work_at_once() -> None:
    with TerminalView(), pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
    with TerminalView(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_target_of_a_study_is_told_by_the_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = object()

    class View:
        def __getattr__(self, name: str):
            return asked if name == "stopping" else lambda *given: None

    class Trained(Exception):
        pass

    def carry_out(run, out, place, on_step, *, watch) -> None:
        assert out == tmp_path / "target" and watch.stopping is asked
        raise Trained

    monkeypatch.setattr(stages, "carry_out", carry_out)
    monkeypatch.setattr(stages, "open_seal", lambda path: {"run": tiny_run(4).to_json()})
    monkeypatch.setattr(stages.Study, "machine", lambda self: None)
    monkeypatch.setattr(stages.Study, "place", lambda self, threads: None)
    rate = type("Rate", (), {"threads": 1, "seconds_per_token": lambda self, model, length: 1.0})()
    monkeypatch.setattr(stages.Study, "pace", lambda self: type("Pace", (), {"alone": rate})())
    study = stages.Study(tmp_path, None, tmp_path, View(), 0.0)
    with pytest.raises(Trained):
        study.verdict()


@pytest.mark.parametrize("json_too", [False, True])
def test_a_verb_that_was_stopped_ends_with_0_and_says_how_to_go_on(json_too, monkeypatch, capsys) -> None:
    def verb(json: bool = False) -> int:
        raise Stopped(None)

    monkeypatch.setitem(cli.VERBS, "ladder", "nachim.app.ladder:ladder")
    monkeypatch.setattr(cli, "function_of", lambda name: verb)
    monkeypatch.setattr(sys, "argv", ["nachim", "ladder", *(["--json"] if json_too else [])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert ended.value.code == 0 and told.err == "nachim: stopped; the same command goes on\n"
    assert (json.loads(told.out) == {"stopped_at": None}) if json_too else not told.out


def test_a_result_that_is_not_what_was_written_is_refused_and_can_be_written_anew(tmp_path: Path) -> None:
    recipe, place = tiny_recipe(tmp_path), Place(cache=tmp_path / "cache")
    run = recipe.run(shape(16, 300), 1e9, 4 * recipe.batch_tokens(1e9))
    chain = Chain(runs=(run,))
    carry_out_chain(chain, tmp_path, place, lambda run, step, loss: None)
    path = tmp_path / name_of(run) / "result.json"
    whole = read_result(path)
    path.write_text(path.read_text().replace('"bpb": ', '"bpb": 1'))
    from nachim.lab.store import observe

    with pytest.raises(UserError, match=r"result\.json is not what was written, its SHA-256 differs: remove it"):
        observe(tmp_path, Ladder(chains=(chain,)).runs)
    carry_out_chain(chain, tmp_path, place, lambda run, step, loss: None)
    assert read_result(path) == whole
    assert "will be written again" in (path.parent / "journal.jsonl").read_text()
