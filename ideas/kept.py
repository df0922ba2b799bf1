"""The studies kept in this folder: what their ladders saw, what they forecast, and what was measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nachim.law import Observations, read
from nachim.law.early import late
from nachim.spec import Run

IDEAS = Path(__file__).parent


@dataclass(frozen=True)
class Kept:
    """One study: its target, the bpb that was measured, and all runs of its ladder."""

    name: str
    target: Run
    measured: float
    runs: Observations

    @property
    def late(self) -> Observations:
        """The runs, those that are early for the target with weight 0, as ladders are read for a forecast."""
        return late(self.runs, self.target.train.tokens)

    def error(self, forecast: float) -> float:
        """How much larger than `forecast` the measured bpb is, in percent."""
        return 100 * (self.measured / forecast - 1)


def studies() -> Iterator[Kept]:
    """Every study kept, by name."""
    for folder in sorted(path.parent for path in IDEAS.glob("**/observations.csv")):
        target = Run.from_json(json.loads((folder / "forecast.json").read_text())["run"])
        measured = json.loads((folder / "verdict.json").read_text())["measured"]
        observed = read(folder / "observations.csv")
        alike = dataclasses.replace(observed, weight=np.ones(len(observed)))
        yield Kept(str(folder.relative_to(IDEAS)), target, measured, alike)
