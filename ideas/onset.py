"""Sealed forecasts read again with and without what ends before the onset: python ideas/onset.py

Prints, for every study kept in ideas/, the forecast that all runs of its ladder alike make of its target, that of the
runs after the onset, and by how much the measured loss missed each.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nachim.law import read, study
from nachim.law.onset import weighed
from nachim.spec import Run

IDEAS = Path(__file__).parent


def main() -> None:
    """Print the table."""
    table = Table("study", "runs", "forecast (90 %)", "error", "without", "forecast (90 %)", "error")
    for folder in sorted(path.parent for path in IDEAS.glob("**/observations.csv")):
        run = Run.from_json(json.loads((folder / "forecast.json").read_text())["run"])
        measured = json.loads((folder / "verdict.json").read_text())["measured"]
        observed = read(folder / "observations.csv")
        alike = dataclasses.replace(observed, weight=np.ones(len(observed)))
        cells = []
        for obs in (alike, late := weighed(alike)):
            bpb, low, high = study(obs).predict(x=run.flops_per_token, tokens=run.train.tokens)
            outside = "" if low <= measured <= high else ", outside"
            cells.append([f"{bpb:.4f} ({low:.3f}-{high:.3f})", f"{100 * (measured / bpb - 1):+.2f} %{outside}"])
        early = str(int((late.weight == 0).sum()))
        table.add_row(str(folder.relative_to(IDEAS)), str(len(observed)), *cells[0], early, *cells[1])
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
