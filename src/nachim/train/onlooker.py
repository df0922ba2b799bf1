"""Who looks on while a run trains: told of every step, they change nothing in it, and their failure is not its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nachim.spec import Run
from nachim.train.step import Stepper


class Onlooker:
    """Base of those who look on; every method may be left out. None may change a weight, a state or a random number."""

    def begin(self, out: Path, run: Run, step: int, say: Callable[[str], None]) -> None:
        """`run` goes on in `out` after `step` steps: what was seen of later ones counts no more.

        Called once when a sitting begins, and after every roll-back. `say` takes a sentence worth reading.
        """

    def before(self, stepper: Stepper, step: int, x_BT: Tensor) -> None:
        """Step number `step` (from 0) is about to be taken on the sequences `x_BT` [B, T + 1]."""

    def after(self, row: Mapping[str, float | None]) -> None:
        """The step was taken; `row` is what the metrics hold of it, validation included."""

    def saving(self, step: int) -> Callable[[], None] | None:
        """A checkpoint of `step` is about to be written: what its thread is to write before it, if anything."""

    def end(self) -> None:
        """The sitting is over, well or not; or this onlooker failed, and will not be asked again."""


class Onlookers:
    """All who look on at one sitting. One that fails is said once and left out from there on."""

    def __init__(self, found: Sequence[Onlooker], note: Callable[[str], None]) -> None:
        self.found, self.note = list(found), note

    def tell(self, what: str, *told: Any) -> list[Any]:
        """Call the method `what` of each with `told`; what those gave that did not fail."""
        answers = []
        for one in list(self.found):
            try:
                answers.append(getattr(one, what)(*told))
            except Exception as error:
                self._leave_out(one, error)
        return answers

    def saving(self, step: int) -> Callable[[], None]:
        """One piece of work of all that is to be written before the checkpoint of `step`."""
        pieces = [(one, work) for one in list(self.found) for work in self._asked(one, step)]

        def write() -> None:
            for one, work in pieces:
                try:
                    work()
                except Exception as error:
                    self._leave_out(one, error)

        return write

    def _asked(self, one: Onlooker, step: int) -> list[Callable[[], None]]:
        try:
            work = one.saving(step)
        except Exception as error:
            self._leave_out(one, error)
            return []
        return [work] if work else []

    def _leave_out(self, one: Onlooker, error: Exception) -> None:
        if one not in self.found:
            return
        self.found.remove(one)
        name = type(one).__name__.lower()
        self.note(f"{name} failed and is left out, the run goes on: {str(error) or repr(error)}")
        try:
            one.end()
        except Exception as again:
            self.note(f"{name} could not be ended either: {str(again) or repr(again)}")
