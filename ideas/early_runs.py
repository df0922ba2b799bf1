"""Two sealed forecasts read again without the ladder's shortest runs: python ideas/early_runs.py

Prints, for every seed and every least number of tokens a run must have, the forecast that the same rules would have
made of the same target, and by how much the measured loss missed it.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nachim.law import read, study
from nachim.spec import Run

LADDERS = Path(__file__).with_suffix("")
LEAST = (0.0, 3e5, 5e5, 7e5, 9e5, 1.2e6)


def forecast(folder: Path, least: float) -> tuple[int, float, float, float]:
    """Runs used, and the forecast of the target with its 90 % interval, from runs of at least `least` tokens."""
    run = Run.from_json(json.loads((folder / "forecast.json").read_text())["run"])
    with open(folder / "observations.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["tokens"]) >= least]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "observations.csv"
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        bpb, low, high = study(read(path)).predict(x=run.flops_per_token, tokens=run.train.tokens)
    return len(rows), float(bpb), float(low), float(high)


def main() -> None:
    """Print the table."""
    table = Table("seed", "least tokens", "runs", "forecast (90 %)", "measured", "error")
    for folder in sorted(LADDERS.iterdir()):
        measured = json.loads((folder / "verdict.json").read_text())["measured"]
        for least in LEAST:
            runs, bpb, low, high = forecast(folder, least)
            error = f"{100 * (measured / bpb - 1):+.2f} %{'' if low <= measured <= high else ', outside'}"
            table.add_row(
                folder.name[-1:],
                f"{least:,.0f}",
                str(runs),
                f"{bpb:.4f} ({low:.3f}-{high:.3f})",
                f"{measured:.4f}",
                error,
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
