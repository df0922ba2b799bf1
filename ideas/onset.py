"""Sealed forecasts read again with and without what ends before the onset: python ideas/onset.py

Prints, for every study kept in ideas/, the forecast that all runs of its ladder alike make of its target, that of the
runs after the onset, and by how much the measured loss missed each.
"""

from __future__ import annotations

from kept import studies
from rich.console import Console
from rich.table import Table

from nachim.law import study


def main() -> None:
    """Print the table."""
    table = Table("study", "runs", "forecast (90 %)", "error", "without", "forecast (90 %)", "error")
    for kept in studies():
        cells = []
        for obs in (kept.runs, kept.late):
            bpb, low, high = study(obs).predict(x=kept.target.flops_per_token, tokens=kept.target.train.tokens)
            outside = "" if low <= kept.measured <= high else ", outside"
            cells.append([f"{bpb:.4f} ({low:.3f}-{high:.3f})", f"{kept.error(float(bpb)):+.2f} %{outside}"])
        early = str(int((kept.late.weight == 0).sum()))
        table.add_row(kept.name, str(len(kept.runs)), *cells[0], early, *cells[1])
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
