"""Calibrations of the classifier beside each other: Platt's, which it has, and isotonic regression.

    python bench/calibration.py [--texts 400 2000 10000] [--seeds 3] [--json]

Texts are pieces of 200 characters of the standard library, of its tests and of the rest. A classifier is trained and
calibrated on some, and judged on 8,000 of other files: expected calibration error (10 bins), Brier score and loss in
nats, means over seeds. Isotonic regression sees the same texts as Platt's, and is scipy's pool of adjacent violators;
what it says is kept off 0 and 1 by half a text, for one miss would make the loss endless.
"""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from rich.console import Console
from rich.table import Table
from scipy.optimize import isotonic_regression
from scipy.special import softmax

from nachim.data.classify import LEAST_TEXTS, _parts, calibration_error, features, train
from nachim.data.source import open_source
from nachim.spec import Stdlib

PIECE, JUDGED = 200, 8000
LABELS = ("rest", "test")
Floats = npt.NDArray[np.float64]


def pieces(paths: list[Path], chance: np.random.Generator, count: int) -> list[bytes]:
    """So many pieces of files, drawn at random."""
    texts = [path.read_bytes() for path in paths]
    cut = [text[at : at + PIECE] for text in texts for at in range(0, len(text) - PIECE, PIECE)]
    return [cut[i] for i in chance.choice(len(cut), count, replace=False)]


def drawn(side: int, count: int, seed: int) -> tuple[list[bytes], list[str]]:
    """`count` pieces, half of them of tests, from one side of the files or the other."""
    chance, files, of = np.random.default_rng(seed), list[bytes](), list[str]()
    for label in LABELS:
        paths = [path for path in open_source(Stdlib()).files if ("test" in path.parts) == (label == "test")]
        files += pieces(paths[side::2], chance, count // 2)
        of += [label] * (count // 2)
    return files, of


def isotonic(seen: Floats, y: npt.NDArray[np.int64], asked: Floats) -> Floats:
    """Probabilities of `asked` logits, by the rising steps that fit `y` at the logits `seen` best, joined by lines."""
    order = np.argsort(seen, kind="stable")
    steps = isotonic_regression(y[order].astype(float)).x
    return np.clip(np.interp(asked, seen[order], steps), 0.5 / len(y), 1 - 0.5 / len(y))


def judged(said: Floats, y: npt.NDArray[np.int64]) -> list[float]:
    """Calibration error, Brier score, and loss in nats of the second label's probabilities."""
    error = calibration_error(np.column_stack((1 - said, said)), y)[0]
    likely = np.where(y == 1, said, 1 - said)
    return [error, float(((said - y) ** 2).mean()), -float(np.log(np.maximum(likely, 1e-12)).mean())]


def compared(count: int, fit: Any, seeds: int) -> dict[str, list[float]]:
    """Error, score and loss of each calibration, means over seeds."""
    found: dict[str, list[list[float]]] = {"none": [], "platt": [], "isotonic": []}
    for seed in range(seeds):
        texts, labels = drawn(0, max(count, 4 * LEAST_TEXTS), seed)
        others, theirs = drawn(1, JUDGED, seed)
        y, truth = (np.array([label == LABELS[1] for label in of]).astype(np.int64) for of in (labels, theirs))
        model, _ = train(texts, labels, fit=fit, seed=seed)
        part = _parts(y, seed) == 1
        own, asked = (model.logits(features(some, model.units, model.bits)) for some in (texts, others))
        found["none"].append(judged(softmax(asked, axis=1)[:, 1], truth))
        found["platt"].append(judged(model.calibrated(asked)[:, 1], truth))
        margin = own[part, 1] - own[part, 0]
        found["isotonic"].append(judged(isotonic(margin, y[part], asked[:, 1] - asked[:, 0]), truth))
    return {name: np.mean(rows, axis=0).tolist() for name, rows in found.items()}


def main(texts: tuple[int, ...] = (400, 2000, 10_000), seeds: int = 3, json: bool = False) -> None:
    """Compare, and print the table."""
    found = {f"{fit}, {count} texts": compared(count, fit, seeds) for fit in ("regression", "bayes") for count in texts}
    if json:
        print(jsonlib.dumps(found))
        return
    table = Table("classifier", "calibration", "calibration error", "Brier score", "loss, nats")
    for name, rows in found.items():
        for calibration, values in rows.items():
            table.add_row(name, calibration, *(f"{value:.4f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
