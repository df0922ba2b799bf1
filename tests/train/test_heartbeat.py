"""What a run tells others: that it lives, what befell it, and that it stops when it is asked to."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nachim.app import train as verb
from nachim.app.view import TerminalView
from nachim.spec import Machine
from nachim.train import heartbeat
from nachim.train.heartbeat import HEARTBEAT, Heartbeat, Journal, pulse
from nachim.train.loop import Watch
from nachim.train.stopping import SIGNALS, Stopped, stop_on_signal
from tests.train.tiny import ALWAYS, NEVER, Kill, differing, go, kill_at, rows, tiny_run, weights

MACHINE = Machine(
    name="test", device="cpu", cores=2, fp32_one_thread=1e11, fp32_all=2e11, bf16_one_thread=1e9, bf16_all=2e9
)


def gone() -> int:
    """The number of a process that is no more."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def rewritten(out: Path, **changes: object) -> None:
    """The heartbeat in `out`, as another process or machine would have left it."""
    path = out / HEARTBEAT
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_can_be_watched_from_outside_while_it_trains(tmp_path):
    seen = []
    go(tiny_run(3), tmp_path, on_step=lambda step, _: seen.append(pulse(tmp_path)))
    assert all(one.alive and one.state == "training" and one.pid == os.getpid() for one in seen)
    ended = pulse(tmp_path)
    assert (ended.state, ended.step, ended.steps, ended.alive) == ("finished", 3, 3, False)


def test_a_process_that_is_no_more_is_not_alive_and_another_machines_is_not_judged(tmp_path):
    assert pulse(tmp_path) is None
    Heartbeat(tmp_path, 10).beat(4)
    assert pulse(tmp_path).alive is True
    rewritten(tmp_path, pid=gone())
    assert pulse(tmp_path).alive is False
    rewritten(tmp_path, boot="another", time="2026-01-01T00:00:00+00:00")
    assert pulse(tmp_path).alive is None and pulse(tmp_path).seconds > 0
    (tmp_path / HEARTBEAT).write_text("half of")
    assert pulse(tmp_path) is None


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    years = iter(range(1971, 9000))
    monkeypatch.setattr(heartbeat, "_now", lambda: datetime.datetime(next(years), 1, 1, tzinfo=datetime.UTC))
    run = tiny_run(4)
    with pytest.raises(Kill):
        go(run, tmp_path / "jumps", on_step=kill_at(3), checkpoint_seconds=ALWAYS)
    assert 0 <= pulse(tmp_path / "jumps").seconds < 3600
    go(run, tmp_path / "jumps")
    go(run, tmp_path / "whole")
    assert not differing(weights(tmp_path / "jumps"), weights(tmp_path / "whole"))


def test_beats_are_as_rare_as_they_may_be_but_the_last_is_always_written(tmp_path):
    beating = Heartbeat(tmp_path, 10)
    for step in range(5):
        beating.beat(step)
    assert pulse(tmp_path).step == 0
    beating.beat(5, "stopped")
    assert (pulse(tmp_path).step, pulse(tmp_path).state) == (5, "stopped")


def test_a_place_that_cannot_be_written_disturbs_neither_heart_nor_journal(tmp_path):
    said: list[str] = []
    Heartbeat(tmp_path / "nowhere", 10).beat(1)
    Journal(tmp_path / "nowhere", said.append).note("it was said")
    assert said == ["it was said"] and not list(tmp_path.iterdir())


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(tmp_path):
    run, done = tiny_run(6), []
    watch = Watch(stopping=lambda: len(done) == 3)
    with pytest.raises(Stopped, match="stopped at step 3; the same command goes on"):
        go(run, tmp_path / "cut", on_step=lambda step, _: done.append(step), watch=watch, checkpoint_seconds=NEVER)
    assert (pulse(tmp_path / "cut").state, done) == ("stopped", [1, 2, 3])
    go(run, tmp_path / "cut", on_step=lambda step, _: done.append(step), checkpoint_seconds=NEVER)
    go(run, tmp_path / "whole")
    assert done == [1, 2, 3, 4, 5, 6], "no step was lost"
    assert not differing(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_insists(number):
    before = signal.getsignal(number)
    with stop_on_signal() as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping()
        with pytest.raises(Stopped):
            os.kill(os.getpid(), number)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGALRM)  # what comes by itself after some seconds
    assert signal.getsignal(number) is before and signal.alarm(0) == 0


def test_the_verb_ends_well_when_it_was_stopped(tmp_path, monkeypatch, capsys):
    def stopped(*arguments: object, watch: Watch) -> None:
        assert not watch.stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.stopping()
        raise Stopped(5)

    monkeypatch.setattr("nachim.lab.work.carry_out", stopped)
    tiny_run(8).save(tmp_path / "run.json")
    MACHINE.save(tmp_path / "machine.json")
    assert verb.train(tmp_path, json=True) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"stopped_at": 5, "steps": 8}
    assert "stopped at step 5; the same command goes on" in told.err


def test_what_befell_a_run_shows_in_the_terminal(tmp_path, monkeypatch, capsys):
    def told(*arguments: object, watch: Watch) -> dict[str, float]:
        watch.say("a checkpoint is damaged")
        return {"loss": 1.0}

    monkeypatch.setattr("nachim.lab.work.carry_out", told)
    tiny_run(8).save(tmp_path / "run.json")
    MACHINE.save(tmp_path / "machine.json")
    with TerminalView() as view:
        verb._train_file(tmp_path, None, view)
    assert "a checkpoint is damaged" in capsys.readouterr().err
