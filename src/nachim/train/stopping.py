"""Ending a run because somebody asked: after a step, with everything saved."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

PATIENCE_SECONDS = 12
"""A supervisor's own is often 20 or 30: what is left is for ending processes on a busy machine."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A run ended on request; all but what came after step `step` is on disk (None: before training, or between runs).

    Like a KeyboardInterrupt it is no error, and nothing that handles errors may swallow it.
    """

    def __init__(self, step: int | None) -> None:
        where = "" if step is None else f" at step {step}"
        super().__init__(f"stopped{where}; the same command goes on")
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        return Stopped, (self.step,)  # it travels between processes


@contextlib.contextmanager
def stop_on_signal(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether one of `signals` has come; for a run to ask after every step.

    As long as nobody has asked there is nothing to save: the first signal ends the work where it stands, by Stopped,
    or by KeyboardInterrupt where it is ctrl-C. So does a second one, and, after somebody asked, the time of
    `PATIENCE_SECONDS` from the first: what the last checkpoint holds stays. Only the main thread may use this.
    """
    asked = heard = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not heard:
            raise KeyboardInterrupt if number == signal.SIGINT and not asked else Stopped(None)
        asked = True
        signal.alarm(PATIENCE_SECONDS)

    def insist(number: int, frame: FrameType | None) -> None:
        raise Stopped(None)

    def stopping() -> bool:
        nonlocal heard
        heard = True
        return asked

    before = {number: signal.signal(number, ask) for number in signals}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, insist)
    try:
        yield stopping
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
