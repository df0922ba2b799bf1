"""The ladder: budgets by shapes, as chains of runs that share what they can."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nachim.lab.recipe import Recipe
from nachim.spec import Decoder, Mixture, Part, Run, UserError
from nachim.train.schedule import stable_steps

Design = Literal["trunks", "isoflop"]
FEWEST_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class Chain(Part):
    """Runs that differ in their tokens alone, shortest first: each starts from the one before, where both are the same.

    A chain of one run shares nothing. The weights are, bit for bit, those of training every run from its first step.
    `rungs` are steps whose checkpoints stay, so that runs which are added later start there.
    """

    runs: tuple[Run, ...]
    rungs: tuple[int, ...] = ()

    def check(self) -> None:
        if not self.runs:
            self.refuse("runs", "is empty; a chain needs at least one run")
        for shorter, longer in zip(self.runs, self.runs[1:], strict=False):
            same = dataclasses.replace(shorter.train, tokens=longer.train.tokens)
            if dataclasses.replace(shorter, train=same) != longer:
                self.refuse("runs", "differ in more than their tokens")
            if stable_steps(shorter.train) >= stable_steps(longer.train) or not stable_steps(shorter.train):
                self.refuse("runs", "do not share a growing first part: give WSD runs, shortest first")

    def begins(self) -> tuple[int, ...]:
        """The step at which each run leaves the one before it: 0 for the first."""
        return (0, *(stable_steps(run.train) for run in self.runs[:-1]))

    @property
    def flops(self) -> int:
        """Training FLOP this chain takes, the shared parts counted once, the head apart."""
        pairs = zip(self.runs, self.begins(), strict=True)
        return sum(run.flops_per_token * (run.train.tokens - run.train.token_at(first)) for run, first in pairs)


@dataclass(frozen=True, kw_only=True)
class Ladder(Part):
    """Chains of real training runs; every run gives one observation of the law."""

    chains: tuple[Chain, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, chain by chain."""
        return tuple(run for chain in self.chains for run in chain.runs)

    @property
    def flops(self) -> int:
        """Training FLOP of the whole ladder, shared parts counted once."""
        return sum(chain.flops for chain in self.chains)


def name_of(run: Run) -> str:
    """The folder name of a run in a ladder: what sets it apart there."""
    model, train = run.model, run.train
    lr, corpus = f"{train.optimizer.lr:.3g}", run.data.corpus
    name = f"{model.n_layers}x{model.d_model}-d{train.tokens}-b{train.batch_tokens}-lr{lr}-s{train.seed}"
    return f"{name}-m{corpus.fingerprint[:10]}" if isinstance(corpus, Mixture) else name


def budgets(top: float, count: int = 9, span: float = 10.0) -> list[float]:
    """`count` budgets evenly spaced in ratio over a `span`-fold range, the largest `top`, smallest first."""
    return [top * span ** (i / (count - 1) - 1) for i in range(count)]


def rung_tokens(
    model: Decoder, recipe: Recipe, levels: Sequence[float], unique_tokens: int, least_tokens: float = 0.0
) -> list[float]:
    """The token counts at which `model` meets each budget of `levels`, as far as they make sense.

    Runs of fewer than 500 steps or `least_tokens` measure the start of training, and tokens beyond the corpus are not
    fresh: both are left out.
    """
    least = max(least_tokens, FEWEST_STEPS * recipe.batch_tokens(levels[-1]))
    wanted = (level / model.flops_per_token(recipe.data.seq_len) for level in levels)
    return [tokens for tokens in wanted if least <= tokens <= unique_tokens]


def make_ladder(
    recipe: Recipe,
    shapes: Sequence[Decoder],
    levels: Sequence[float],
    unique_tokens: int,
    design: Design,
    least_tokens: float = 0.0,
) -> Ladder:
    """Every shape at every budget that suits it and leaves it `least_tokens`.

    `trunks`: one constant-rate run a shape with a decay at each budget (arXiv 2405.18392), batch and rate those of the
    recipe's anchor (of the largest budget, where it has none). `isoflop`: separate runs, batch and rate those of each
    budget. Raises UserError when no run is left.
    """
    chains: list[Chain] = []
    for model in shapes:
        tokens = rung_tokens(model, recipe, levels, unique_tokens, least_tokens)
        if design == "trunks" and tokens:
            chains.append(Chain(runs=tuple(recipe.run(model, levels[-1], count) for count in tokens)))
        elif design == "isoflop":
            per_token = model.flops_per_token(recipe.data.seq_len)
            chains += [Chain(runs=(recipe.run(model, count * per_token, count),)) for count in tokens]
    if not chains:
        raise UserError(
            f"no shape fits budgets of {levels[0]:.3g} to {levels[-1]:.3g} FLOP in at least {FEWEST_STEPS} steps "
            f"within {unique_tokens:,} tokens: choose other budgets, a smaller batch or more text"
        )
    return Ladder(chains=tuple(chains))
