"""A linear classifier of texts by hashed n-grams: is this like the good ones, or the bad; and what language is it?

Weights on log-counts of n-grams in `1 << bits` buckets, each text's features of length 1: by softmax regression,
trained by L-BFGS with a quadratic penalty, or by naive Bayes, which goes through the texts once and takes any number of
labels (as langid.py, Lui and Baldwin 2012, does). What it says is calibrated on texts it was not trained on, by a scale
and shifts of the logits: of two labels this is Platt scaling (Platt 1999), of more its vector form (Guo and others,
arXiv 1706.04599, section 4.2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from nachim.data.shingle import grams, windows
from nachim.spec.disk import replacing
from nachim.spec.error import UserError

Units = Literal["words", "bytes"]
"""Runs of 1 and 2 words, for what a text is about; or runs of 1 to 4 bytes, for the language it is in."""
Fit = Literal["regression", "bayes"]
LENGTHS = {"words": (1, 2), "bytes": (1, 2, 3, 4)}
LEAST_TEXTS = 10
"""Texts of each label: below that nothing can be held out."""
PRIOR = 1e-3
"""What naive Bayes adds to the count of every bucket."""
FORMAT = "nachim.classifier.1"

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def features(texts: Sequence[bytes], units: Units, bits: int) -> sparse.csr_array:
    """Features of each text [texts, 1 << bits]: log(1 + count) of each bucket, the whole of length 1."""
    buckets, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for n in LENGTHS[units]:
        hashes, owner = grams(texts, n, fill=False) if units == "words" else windows(texts, n)
        buckets.append((hashes >> np.uint64(64 - bits)).astype(np.int64))
        owners.append(owner)
    cells, counts = np.unique((np.concatenate(owners) << bits) | np.concatenate(buckets), return_counts=True)
    row, column = cells >> bits, cells & ((1 << bits) - 1)
    value = np.log1p(counts)
    length = np.sqrt(np.bincount(row, weights=value**2, minlength=len(texts)))
    return sparse.csr_array((value / length[row], (row, column)), shape=(len(texts), 1 << bits))


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier: `weights` [1 << bits, labels], `bias` [labels], and the calibration of its logits."""

    labels: tuple[str, ...]
    units: Units
    bits: int
    weights: npt.NDArray[np.float32]
    bias: Floats
    scale: float
    shift: Floats

    def probabilities(self, texts: Sequence[bytes]) -> Floats:
        """The probability of each label [texts, labels], as `labels` are ordered."""
        return self.calibrated(self.logits(features(texts, self.units, self.bits)))

    def logits(self, x: sparse.csr_array) -> Floats:
        """What the linear part says [texts, labels]."""
        return np.asarray(x @ self.weights + self.bias, dtype=np.float64)

    def calibrated(self, logits: Floats) -> Floats:
        """Probabilities of logits."""
        return softmax(self.scale * logits + self.shift, axis=1)

    def save(self, path: Path) -> None:
        """Write the classifier to `path`, buckets without weight left out. Raises UserError when the disk refuses."""
        used = np.flatnonzero(self.weights.any(axis=1))
        told = {"format": FORMAT, "labels": self.labels, "units": self.units, "bits": self.bits, "scale": self.scale}
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file, told=json.dumps(told), used=used, weights=self.weights[used], bias=self.bias, shift=self.shift
            )

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """What `save` wrote. Raises UserError when the file is missing or of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                told = json.loads(str(file["told"]))
                if told["format"] != FORMAT:
                    raise ValueError(f"its format is {told['format']}")
                weights = np.zeros((1 << told["bits"], len(told["labels"])), dtype=np.float32)
                weights[file["used"]] = file["weights"]
                rest = {name: file[name] for name in ("bias", "shift")}
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"{path} is no classifier that can be read ({error}): train one first") from error
        return cls(tuple(told["labels"]), told["units"], told["bits"], weights, scale=told["scale"], **rest)


@dataclass(frozen=True)
class Bin:
    """Texts given a probability from `low` to `high`: how many, the mean of what was said, and how often it was so."""

    low: float
    high: float
    texts: int
    said: float
    true: float


@dataclass(frozen=True)
class Report:
    """How good a classifier is on `texts` that it was neither trained nor calibrated on.

    `error` is the expected calibration error, the mean gap between what was said and what was so, weighted by texts.
    """

    texts: int
    accuracy: float
    log_loss: float
    error: float
    error_before: float
    bins: list[Bin]


def train(
    texts: Sequence[bytes],
    labels: Sequence[str],
    units: Units = "words",
    fit: Fit = "regression",
    bits: int = 18,
    penalty: float = 1e-5,
    seed: int = 0,
    tick: Callable[[float], None] = lambda done: None,
) -> tuple[Classifier, Report]:
    """A classifier trained on 70 % of each label's texts, calibrated on 15 % and judged on the others.

    `penalty` is of the mean loss: penalty/2·|w|²; naive Bayes has none. Raises UserError for fewer than two labels or
    ten texts of one.
    """
    if units not in get_args(Units) or not 8 <= bits <= 24:
        raise UserError(f"features of {units} in 2^{bits} buckets are none: take words or bytes, and 8 to 24 bits")
    names, y = np.unique(np.array(labels), return_inverse=True)
    if len(names) < 2 or np.bincount(y).min() < LEAST_TEXTS:
        raise UserError(f"a classifier needs two labels with {LEAST_TEXTS} texts each: {_counts(names, y)}")
    part = _parts(y, seed)
    x = features(texts, units, bits)
    used = np.flatnonzero(np.asarray(x[part == 0].sum(axis=0)).ravel())
    seen, of = x[part == 0][:, used], y[part == 0]
    if fit == "bayes":
        weights, bias = _bayes(seen, of, len(names))
    else:
        weights, bias = _regression(seen, of, len(names), penalty, tick)
    whole = np.zeros((1 << bits, len(names)), dtype=np.float32)
    whole[used] = weights
    plain = Classifier(tuple(map(str, names)), units, bits, whole, bias, 1.0, np.zeros(len(names)))
    scale, shift = _calibration(plain.logits(x[part == 1]), y[part == 1])
    made = Classifier(plain.labels, units, bits, whole, bias, scale, shift)
    judged = part == 2
    logits = plain.logits(x[judged])
    return made, _judge(made.calibrated(logits), y[judged], calibration_error(softmax(logits, axis=1), y[judged])[0])


def _counts(names: npt.NDArray[Any], y: Ids) -> str:
    return (
        ", ".join(f"{name} has {count}" for name, count in zip(names, np.bincount(y), strict=True)) or "there is none"
    )


def _parts(y: Ids, seed: int) -> Ids:
    """0 for texts to train on, 1 to calibrate on, 2 to judge on; the same shares of each label."""
    chance, part = np.random.default_rng(seed), np.zeros(len(y), dtype=np.int64)
    for label in range(int(y.max()) + 1):
        own = chance.permutation(np.flatnonzero(y == label))
        held = max(2, round(0.15 * len(own)))
        part[own[:held]], part[own[held : 2 * held]] = 1, 2
    return part


def _bayes(x: sparse.csr_array, y: Ids, labels: int) -> tuple[Floats, Floats]:
    """Log of each feature's share in the texts of each label [features, labels]; labels are taken as equally likely."""
    counts = np.asarray((x.T @ sparse.csr_array(np.eye(labels)[y])).todense()) + PRIOR
    return np.log(counts / counts.sum(axis=0)), np.zeros(labels)


def _regression(
    x: sparse.csr_array, y: Ids, labels: int, penalty: float, tick: Callable[[float], None]
) -> tuple[Floats, Floats]:
    """Weights [features, labels] and bias [labels] at the least penalised mean loss, in nats."""
    hit = np.eye(labels)[y]
    transposed = x.T.tocsr()
    steps = 0

    def loss(flat: Floats) -> tuple[float, Floats]:
        w, b = flat[:-labels].reshape(-1, labels), flat[-labels:]
        logits = x @ w + b
        off = (softmax(logits, axis=1) - hit) / len(y)
        value = -float((log_softmax(logits, axis=1) * hit).sum()) / len(y) + penalty / 2 * float((w**2).sum())
        return value, np.concatenate(((transposed @ off + penalty * w).ravel(), off.sum(axis=0)))

    def heard(_: Floats) -> None:
        nonlocal steps
        steps += 1
        tick(steps / (steps + 20))

    start = np.zeros((x.shape[1] + 1) * labels)
    options = {"maxiter": 300, "gtol": 1e-6, "ftol": 1e-13, "maxcor": 8}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", callback=heard, options=options).x
    return found[:-labels].reshape(-1, labels), found[-labels:]


def _calibration(logits: Floats, y: Ids) -> tuple[float, Floats]:
    """The scale and shift [labels] of logits at the least loss; labels are smoothed as Platt does it."""
    labels = logits.shape[1]
    counts = np.bincount(y, minlength=labels)
    # of a label that stands c times, the target is (c + 1)/(c + 2) where it stands; the others share the rest
    sure = ((counts + 1) / (counts + 2))[y][:, None]
    target = np.where(np.eye(labels, dtype=bool)[y], sure, (1 - sure) / (labels - 1))

    def loss(flat: Floats) -> tuple[float, Floats]:
        z = np.exp(flat[0]) * logits + flat[1:]
        off = (softmax(z, axis=1) - target) / len(y)
        value = -float((log_softmax(z, axis=1) * target).sum()) / len(y)
        slope = float((off * logits).sum()) * float(np.exp(flat[0]))
        return value, np.concatenate(([slope], off.sum(axis=0)))

    found = minimize(loss, np.zeros(labels + 1), jac=True, method="L-BFGS-B").x
    return float(np.exp(found[0])), found[1:]


def calibration_error(said: Floats, y: Ids, bins: int = 10) -> tuple[float, list[Bin]]:
    """The expected calibration error of probabilities [texts, labels], and the bins that it is made of.

    Of two labels the second one's probability is binned; of more, that of the label thought likeliest.
    """
    two = said.shape[1] == 2
    p = said[:, 1] if two else said.max(axis=1)
    true = y == 1 if two else said.argmax(axis=1) == y
    place, found = np.minimum((p * bins).astype(int), bins - 1), []
    for i in np.unique(place):
        own = place == i
        found.append(Bin(i / bins, (i + 1) / bins, int(own.sum()), float(p[own].mean()), float(true[own].mean())))
    return sum(one.texts * abs(one.said - one.true) for one in found) / len(y), found


def _judge(said: Floats, y: Ids, error_before: float) -> Report:
    error, bins = calibration_error(said, y)
    likely = np.clip(said[np.arange(len(y)), y], 1e-12, 1)
    return Report(
        texts=len(y),
        accuracy=float((said.argmax(axis=1) == y).mean()),
        log_loss=-float(np.log(likely).mean()),
        error=error,
        error_before=error_before,
        bins=bins,
    )
