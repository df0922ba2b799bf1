"""The laws on published runs: fitted on the cheaper ones, measured on the dearer ones.

    python bench/laws.py ../shared/data/scaling

DIR holds one folder a source with an observations.csv. A table that marks its rows `train` and `test` is split there,
else the dearest whole budgets are held out, a tenth of the runs or more. Groups are fitted apart, but for Gemstones'.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nachim.law import Observations, fit, read
from nachim.law.backtest import split
from nachim.law.laws import ALL
from nachim.spec.error import UserError

NAMES = ("chinchilla", "coupled", "farseer", "overtraining", "kaplan", "power-flops", "constrained")


def main() -> None:
    shown = Table("runs", "fitted", "held out", *NAMES, title="mean error of the fitted / held-out runs, %")
    found = []
    for path in track(sorted(Path(sys.argv[1]).glob("*/observations.csv")), console=Console(stderr=True)):
        for name, (fitted, rest) in settings(path.parent.name, best_of_sweep(read(path))).items():
            errors = [measure(law, fitted, rest) for law in NAMES]
            found.append([out for _, out in errors])
            cells = ["" if np.isnan(out) else f"{mape:.2f} / {out:.2f}" for mape, out in errors]
            shown.add_row(name, str(len(fitted)), str(len(rest)), *cells)
    for what, of in (("median held out", np.nanmedian), ("worst held out", np.nanmax)):
        shown.add_row(what, "", "", *[f"{each:.2f}" for each in of(found, axis=0)])
    Console(width=190).print(shown)


def best_of_sweep(obs: Observations) -> Observations:
    """Of runs alike in group and in all that a law reads, the best: the others say what a poor setting costs."""
    read_by_laws = {name for law in ALL.values() for name in law.inputs} | {"params", "group"}
    alike = [column for name, column in obs.columns().items() if name in read_by_laws - {"flops"}]
    best: dict[tuple[float, ...], int] = {}
    for row, key in enumerate(zip(*alike, strict=True)):
        if key not in best or obs.loss[row] < obs.loss[best[key]]:
            best[key] = row
    return obs.subset(np.array(sorted(best.values())))


def settings(name: str, obs: Observations) -> dict[str, tuple[Observations, Observations]]:
    """Fitted and held-out runs of each setting in a table."""
    if obs.group is None or name == "gemstones":
        return {name: dearest(obs)}
    if set(obs.group) == {"train", "test"}:
        return marked(name, obs)
    return {f"{name} {label}": dearest(obs.subset(obs.group == label)) for label in np.unique(obs.group)}


def marked(name: str, obs: Observations) -> dict[str, tuple[Observations, Observations]]:
    """The split that a table makes itself; and once more without the fitted runs whose loss rose with more of anything,
    which no law here can follow, as arXiv 2305.16264 leaves them out."""
    fitted, rest = obs.subset(obs.group == "train"), obs.subset(obs.group == "test")
    found = {name: (fitted, rest)}
    if "unique_tokens" in obs.extra:
        found[f"{name}, overfitted left out"] = fitted.subset(~overfitted(fitted)), rest
    return found


def overfitted(obs: Observations) -> np.ndarray:
    """Runs beaten by one of as many unique tokens that has fewer parameters, or fewer tokens, and the other alike."""
    x, tokens, unique = np.log(obs.params), np.log(obs.tokens), np.log(obs.extra["unique_tokens"])

    def more(column: np.ndarray) -> np.ndarray:
        return column[:, None] > column + 0.01

    same = [~more(column) & ~more(column).T for column in (x, tokens, unique)]
    worse = obs.loss[:, None] > obs.loss
    return ((same[0] & more(tokens) | same[1] & more(x)) & same[2] & worse).any(axis=1)


def dearest(obs: Observations) -> tuple[Observations, Observations]:
    """The cheaper runs, and the dearest whole budgets."""
    cheap, dear = split(obs)
    return obs.subset(cheap), obs.subset(dear)


def measure(name: str, fitted: Observations, rest: Observations) -> tuple[float, float]:
    """Mean error in percent of the fitted and of the held-out runs; NaN where the runs do not determine the law."""
    law = ALL[name]
    try:
        found = fit(fitted, law, "params")
    except UserError:
        return np.nan, np.nan
    said = found.predict(**{each: rest.column(each, "params") for each in law.inputs})
    return found.mape, float(100 * np.mean(np.abs(said / rest.loss - 1)))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main()
    else:
        print("give a folder of published runs: python bench/laws.py ../shared/data/scaling")
