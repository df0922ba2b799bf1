"""Weights of a mixture before its run: none read more often than it is worth, and courses of weights over a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nachim.data.mix import stages
from nachim.law.repeat import R_STAR, effective_tokens
from nachim.spec.data import Mixture, Reweight
from nachim.spec.error import UserError, nearest

Array = npt.NDArray[np.float64]
HALF = 0.5
"""A token seen again counts as repeated too often below this worth of a fresh one."""
ROUNDS = 500


@dataclasses.dataclass(frozen=True)
class Portion:
    """What a run reads of one corpus: its share of the run, its tokens, how many times over, and how many fresh tokens
    they are worth (arXiv 2305.16264, eq. 5)."""

    share: float
    tokens: float
    epochs: float
    worth: float


def worth_reading(least: float = HALF) -> float:
    """Times over that a corpus may be read until a token seen once more is worth `least` of a fresh one.

    The slope of D' (arXiv 2305.16264, eq. 5) after R repetitions is e^(-R/R*): 1 + R*·ln(1/least), 11.7 for a half.
    Raises UserError for a `least` that is not above 0 and at most 1.
    """
    if not 0 < least <= 1:
        raise UserError(f"a token seen again is to be worth {least:g} of a fresh one: give more than 0 and at most 1")
    return 1 - R_STAR * math.log(least)


def portions(mixture: Mixture, sizes: Mapping[str, int], tokens: int) -> dict[str, Portion]:
    """What a run of `tokens` reads of each ingredient, by name; `sizes` are their train tokens."""
    shares, lengths = _shares(mixture, sizes), _lengths(mixture, tokens)
    found = {}
    for (name, size), read in zip(sizes.items(), lengths @ shares, strict=True):
        worth = effective_tokens(float(read), float(size)) if read > 0 else 0.0
        found[name] = Portion(float(read) / tokens, float(read), float(read) / size, worth)
    return found


def capped(mixture: Mixture, sizes: Mapping[str, int], tokens: int, most: float) -> tuple[Mixture, list[str]]:
    """`mixture` with weights by which a run of `tokens` reads none of it more than `most` times over, and a sentence
    for each ingredient that had more.

    Such an ingredient's weight is lowered in every stretch of the run; the others share what it leaves as before.
    Raises UserError where all of them together are not enough, or a stretch has nothing else.
    """
    if not most > 0:
        raise UserError(f"a corpus is to be read at most {most:g} times over: give a number above 0")
    held = np.array([float(sizes[one.name]) for one in mixture.ingredients])
    shares, lengths = _shares(mixture, sizes), _lengths(mixture, tokens)
    before = lengths @ shares
    used = held[before > 0].sum()
    if used * most < tokens:
        raise UserError(
            f"the corpora hold {used:,.0f} tokens, which read {most:g} times over are {used * most:,.0f}, fewer than "
            f"the run's {tokens:,}: bring more text, train on fewer tokens, or allow more epochs"
        )
    fixed = np.zeros(len(held), dtype=bool)
    for _ in range(ROUNDS):
        over = lengths @ shares / (most * held)
        fixed |= over > 1 + 1e-9
        if not fixed.any() or np.abs(over[fixed] - 1).max() < 1e-9:
            break
        shares = _lowered(shares, fixed, np.where(fixed, 1 / np.maximum(over, 1e-12), 1.0))
    after = lengths @ shares
    beyond = after > most * held * (1 + 1e-6)
    if names := [one.name for one, is_beyond in zip(mixture.ingredients, beyond, strict=True) if is_beyond]:
        raise UserError(
            f"a stretch of the run has nothing but {' and '.join(names)}, which it reads more than {most:g} times "
            "over: give that stretch another corpus, or make it shorter"
        )
    told = [
        f"{one.name} would be read {had / size:.3g} times over: at {most:.3g} it is {has / tokens:.1%} of the run, "
        f"not {had / tokens:.1%}, and the others have the rest"
        for one, size, had, has in zip(mixture.ingredients, held, before, after, strict=True)
        if had > most * size * (1 + 1e-9)
    ]
    return _with(mixture, shares), told


def course(mixture: Mixture, tokens: int, then: Sequence[tuple[float, Mapping[str, float]]]) -> Mixture:
    """`mixture` with other weights from each share (0 to 1) of a run of `tokens` on: a curriculum.

    A last pair of (0.9, {...}) is an anneal on the last tenth. Weights that are not named are 0. Raises UserError for a
    name that is no ingredient, or shares that are not between 0 and 1 and rising.
    """
    names = [one.name for one in mixture.ingredients]
    for share, weights in then:
        if not 0 < share < 1:
            raise UserError(f"weights are to change at {share:g} of the run: give a share above 0 and below 1")
        for name in weights:
            if name not in names:
                raise UserError(f"the mixture has no corpus {name!r}{nearest(name, names)}")
    changes = tuple(
        Reweight(
            at_tokens=max(1, round(share * tokens)), weights=tuple(float(weights.get(name, 0.0)) for name in names)
        )
        for share, weights in then
    )
    return dataclasses.replace(mixture, changes=changes)


def ramp(mixture: Mixture, tokens: int, last: Mapping[str, float], steps: int = 8) -> Mixture:
    """`mixture` whose weights go over to `last` in `steps` even steps of a run of `tokens`, from its own at first."""
    if steps < 2:
        raise UserError(f"{steps} steps make no ramp: give two or more")
    first = {one.name: one.weight for one in mixture.ingredients}
    first, end = ({name: weights.get(name, 0.0) / sum(weights.values()) for name in first} for weights in (first, last))
    parts = [step / (steps - 1) for step in range(1, steps)]
    return course(
        mixture,
        tokens,
        [
            ((step + 1) / steps, {name: (1 - part) * first[name] + part * end[name] for name in first})
            for step, part in enumerate(parts)
        ],
    )


def _shares(mixture: Mixture, sizes: Mapping[str, int]) -> Array:
    weights = np.array(stages(mixture, sizes))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _lengths(mixture: Mixture, tokens: int) -> Array:
    """Tokens of each stretch of a run."""
    begins = np.minimum([0, *(one.at_tokens for one in mixture.changes), tokens], tokens)
    return np.diff(begins).astype(np.float64)


def _lowered(shares: Array, fixed: npt.NDArray[np.bool_], factor: Array) -> Array:
    """`shares` (stretches, corpora) with those that are `fixed` times their factor, the others filling up each row."""
    held = np.where(fixed, shares * factor, 0.0)
    free = np.where(fixed, 0.0, shares)
    total = free.sum(axis=1, keepdims=True)
    found = np.where(total > 0, held + free * (1 - held.sum(axis=1, keepdims=True)) / np.maximum(total, 1e-300), shares)
    return np.asarray(found)


def _with(mixture: Mixture, shares: Array) -> Mixture:
    """`mixture` with the `shares` (stretches, corpora), by hand from now on."""
    parts = tuple(
        dataclasses.replace(one, weight=float(share)) for one, share in zip(mixture.ingredients, shares[0], strict=True)
    )
    changes = tuple(
        dataclasses.replace(one, weights=tuple(row.tolist()))
        for one, row in zip(mixture.changes, shares[1:], strict=True)
    )
    return dataclasses.replace(mixture, ingredients=parts, changes=changes, temperature=None)
