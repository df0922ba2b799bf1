"""Ending a run because somebody asked: after a step, with everything saved."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

PATIENCE_SECONDS = 15
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run ended on request; all but what came after step `step` is on disk (None: before training began)."""

    def __init__(self, step: int | None) -> None:
        where = "" if step is None else f" at step {step}"
        super().__init__(f"stopped{where}; the same command goes on")
        self.step = step


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or SIGINT has come; for a run to ask after every step.

    A run that has not ended `PATIENCE_SECONDS` after the first signal, or at the second one, is ended by Stopped where
    it stands: what its last checkpoint holds stays. Only the main thread may use this.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise Stopped(None)
        asked = True
        signal.alarm(PATIENCE_SECONDS)

    def insist(number: int, frame: FrameType | None) -> None:
        raise Stopped(None)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, insist)
    try:
        yield lambda: asked
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
