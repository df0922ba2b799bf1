"""How far the runs of each shape lie off their study's law: python ideas/shapes.py

Every study kept in ideas/ is read by today's rules. A shape's residual is the mean, over its runs that count, of log
measured over fitted loss: negative where they are better than the law of all shapes says.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from kept import studies
from rich.console import Console
from rich.table import Table

from nachim.lab.store import run_noise
from nachim.law import study


def heads(d_model: int) -> int:
    """Heads of the family's member of this width when it had widths of every multiple of 8: about 16 wide."""
    return next(n for n in range(max(1, round(d_model / 16)), 0, -1) if d_model % (2 * n) == 0)


def main() -> None:
    """Print the table."""
    found: dict[tuple[float, str], list[float]] = defaultdict(list)
    for kept in studies():
        obs = kept.late
        reading = study(obs, noise=run_noise(kept.runs), draws=40)
        for shape in sorted(set(obs.group.tolist())):
            rows = (obs.group == shape) & (obs.weight > 0)
            if rows.any():
                scale = float(obs.x("flops_per_token")[rows][0])
                found[scale, shape].append(100 * float(reading.fit.residuals[rows].mean()))
    table = Table("shape", "heads", "width of a head", "studies", "residual, mean", "sd over studies")
    for (_, shape), residuals in sorted(found.items()):
        width = int(shape.split("x")[1])
        spread = f"{np.std(residuals, ddof=1):.2f} %" if len(residuals) > 1 else ""
        cells = str(heads(width)), str(width // heads(width)), str(len(residuals))
        table.add_row(shape, *cells, f"{np.mean(residuals):+.2f} %", spread)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
