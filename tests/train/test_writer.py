"""One piece of work at a time, in the background, and what goes wrong in it is heard of."""

from __future__ import annotations

import threading

import pytest

from nachim.spec import UserError
from nachim.train.writer import Writer


def test_work_is_done_elsewhere_and_one_piece_at_a_time():
    writer, gate, done = Writer(), threading.Event(), []

    def first() -> None:
        gate.wait(60)
        done.append(threading.current_thread().name)

    writer.submit(first)
    writer.check()
    assert not done, "it is waiting, and we are not"
    gate.set()
    writer.submit(lambda: done.append(len(done)))
    assert done[0] == "checkpoint", "the second began when the first had ended"
    writer.wait()
    assert done == ["checkpoint", 1]


def test_what_went_wrong_comes_up_once_at_the_next_call():
    def fail() -> None:
        raise UserError("disk full")

    for call in ("check", "wait", "submit"):
        writer = Writer()
        writer.submit(fail)
        writer._thread.join()
        with pytest.raises(UserError, match="disk full"):
            writer.submit(lambda: None) if call == "submit" else getattr(writer, call)()
        writer.check()
        writer.wait()
