"""Small real runs over a design of mixtures, and the table of what each held-out text made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import qmc

from nachim.lab.ladder import Chain, name_of
from nachim.lab.launch.local import Event, carry_out_all
from nachim.lab.store import finished
from nachim.lab.work import Place
from nachim.law.mixture_runs import LOSS, SHARE, MixtureRuns
from nachim.spec import Mixture, Part, Run, UserError
from nachim.train.schedule import stable_steps

LEAST = 0.05
"""The least share of any corpus in a drawn design: at none at all, a loss leaves the law's course."""


@dataclass(frozen=True, kw_only=True)
class Simplex(Part):
    """Runs of `base`, whose corpus is a mixture, at each of `weights` (one a corpus), on its tokens over each of
    `parts`, by each of `seeds`.

    All runs of a seed draw the same weights of the model, and read each corpus in the same order.
    """

    base: Run
    weights: tuple[tuple[float, ...], ...]
    parts: tuple[int, ...] = (2, 1)
    seeds: tuple[int, ...] = (0,)

    def check(self) -> None:
        corpus = self.base.data.corpus
        if not isinstance(corpus, Mixture) or len(corpus.ingredients) < 2:
            self.refuse("base", "reads one corpus: give Data a Mixture of two or more")
        if corpus.changes:
            self.refuse("base", "changes its weights on the way: a design is of mixtures that stay as they are")
        if not self.seeds or min(self.parts, default=0) < 1 or len(self.weights) < 1:
            self.refuse("weights", "parts and seeds must hold one or more each")

    def chains(self) -> list[Chain]:
        """Every mixture by every seed: one trunk with a decay at each length, where the schedule allows it."""
        found = []
        for seed in self.seeds:
            for weights in self.weights:
                runs = [mixed(self.base, weights, part, seed) for part in sorted(self.parts, reverse=True)]
                joined = all(stable_steps(run.train) for run in runs)
                found += [Chain(runs=tuple(runs))] if joined else [Chain(runs=(run,)) for run in runs]
        return found

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, chain by chain."""
        return tuple(run for chain in self.chains() for run in chain.runs)


def mixed(base: Run, weights: Sequence[float], part: float = 1.0, seed: int | None = None) -> Run:
    """`base` with other weights of its corpora, on its tokens over `part` (whole steps), by another seed."""
    corpus, train, data = base.data.corpus, base.train, base.data
    if not isinstance(corpus, Mixture):
        raise UserError("the run reads one corpus: give Data a Mixture of two or more")
    pairs = zip(corpus.ingredients, weights, strict=True)
    corpus = dataclasses.replace(
        corpus, ingredients=tuple(dataclasses.replace(one, weight=float(weight)) for one, weight in pairs)
    )
    tokens = max(1, round(train.tokens / part / train.batch_tokens)) * train.batch_tokens
    if seed is not None:
        train, data = dataclasses.replace(train, seed=seed), dataclasses.replace(data, seed=seed)
    train = dataclasses.replace(train, tokens=tokens)
    return dataclasses.replace(base, data=dataclasses.replace(data, corpus=corpus), train=train)


def simplex(corpora: int, count: int, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    """`count` mixtures of `corpora` corpora, spread over all that give each `LEAST` or more: [count][corpora].

    Two corpora are mixed at even steps; more by the gaps between sorted points of a scrambled Sobol sequence, which
    are spread evenly over the simplex. Raises UserError for fewer than two of either.
    """
    if corpora < 2 or count < 2:
        raise UserError(f"{count} mixtures of {corpora} corpora: give two or more of each")
    if corpora == 2:
        first = np.linspace(0, 1, count)
        spread = np.stack([first, 1 - first], axis=1)
    else:
        drawn = qmc.Sobol(corpora - 1, rng=np.random.default_rng(seed)).random_base2(int(np.ceil(np.log2(count))))
        spread = np.diff(np.sort(drawn[:count], axis=1), axis=1, prepend=0.0, append=1.0)
    shares = LEAST + (1 - corpora * LEAST) * spread
    return tuple(tuple(round(float(share), 6) for share in row) for row in shares)


def climb(
    chains: Sequence[Chain],
    root: Path,
    place: Place,
    workers: int,
    on_event: Callable[[Event], None],
    stopping: Callable[[], bool] = lambda: False,
) -> MixtureRuns:
    """Train what is not trained yet of `chains` into `root`, longest first; what the finished runs measured.

    Raises UserError when none is finished, and Stopped when asked to.
    """
    todo = [chain for chain in chains if not all((root / name_of(run) / "result.json").exists() for run in chain.runs)]
    if todo:
        carry_out_all(sorted(todo, key=lambda chain: -chain.flops), root, place, workers, on_event, stopping)
    return table_of(root, [run for chain in chains for run in chain.runs])


def table_of(root: Path, runs: Sequence[Run]) -> MixtureRuns:
    """The shares, scale and held-out bits a byte of each finished run. Raises UserError when none is."""
    rows = finished(root, runs)
    if not rows:
        raise UserError(f"no run under {root} is finished: run the same command again")
    columns: dict[str, list[float]] = {}
    for run, result in rows:
        assert isinstance(run.data.corpus, Mixture)
        whole = sum(one.weight for one in run.data.corpus.ingredients)
        row = {f"{SHARE}{one.name}": one.weight / whole for one in run.data.corpus.ingredients}
        row |= {f"{LOSS}{name}": found["bpb"] for name, found in result["validation"]["sources"].items()}
        row |= {"tokens": run.train.tokens, "flops_per_token": run.flops_per_token, "seed": run.train.seed}
        for name, value in row.items():
            columns.setdefault(name, []).append(float(value))
    return MixtureRuns.of({name: np.array(column) for name, column in columns.items()})
