"""The twin of a ladder: every run of it once more, with an idea. What pairs the two is that all else stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nachim.lab.ladder import Chain, Ladder
from nachim.lab.launch.local import Event, carry_out_all
from nachim.lab.store import observe
from nachim.lab.work import Place
from nachim.spec import Run, UserError
from nachim.spec.disk import locked, write_text


class View(Protocol):
    """Who hears how the training goes."""

    def stage(self, name: str, seconds: float | None = None) -> None:
        """A stage begins."""

    def event(self, event: Event) -> None:
        """News of a training run."""

    def stopping(self) -> bool:
        """Whether to end after the step at hand, with everything saved."""


@dataclass(frozen=True)
class Twin:
    """The ladder of the study in `base`, each run changed by `change`, in the folder `out`; `idea` is its name.

    Budgets, shapes, tokens, seeds, learning rate and batch are the baseline's unless the idea changes them.
    """

    base: Path
    out: Path
    idea: str
    change: Callable[[Run], Run]

    def climb(self, place: Place, workers: int, view: View) -> None:
        """Train what is not trained yet; the table is `out`/observations.csv. Raises UserError: see `ladder`."""
        ladder = self.ladder()
        with locked(self.out / "lock"):
            self._claim(ladder)
            if (self.out / "observations.csv").exists():
                return
            view.stage("ladder")
            chains = sorted(ladder.chains, key=lambda chain: -chain.flops)
            carry_out_all(chains, self.out / "ladder", place, workers, view.event, view.stopping)
            observe(self.out / "ladder", ladder.runs).write(self.out / "observations.csv")

    def ladder(self) -> Ladder:
        """The baseline's ladder with every run changed.

        Raises UserError when there is none, or `change` returns no run, or changes nothing.
        """
        path = self.base / "ladder.json"
        if not path.exists():
            raise UserError(f"{self.base} has no ladder.json: an idea is tried on the ladder of a study's folder")
        found = Ladder.load(path)
        twin = Ladder(chains=tuple(Chain(runs=tuple(map(self._changed, chain.runs))) for chain in found.chains))
        if twin == found:
            raise UserError(f"{self.idea} changes nothing in the runs of {self.base}")
        return twin

    def _changed(self, run: Run) -> Run:
        changed = self.change(run)
        if not isinstance(changed, Run):
            raise UserError(f"{self.idea} returns {changed!r}, which is not a nachim.spec.Run")
        return changed

    def _claim(self, ladder: Ladder) -> None:
        path = self.out / "ladder.json"
        if path.exists() and Ladder.load(path) != ladder:
            raise UserError(f"{self.out} holds the ladder of another idea: remove it, or name the function otherwise")
        ladder.save(path)
        write_text(self.out / "idea.json", json.dumps({"base": str(self.base), "idea": self.idea}) + "\n")
