"""Code against prose at five shares: what each held-out text loses, whether the mixture law knows it, what is best.

    python ideas/code_share.py --out runs/ideas/code_share --prose ../shared/data/text/tinyshakespeare.txt

The model of recipes/stdlib.py is trained on Python's library and a text of English at five shares of code, by two
seeds; the mixture law is fitted to these runs. Its best share is sealed with what runs at it and at an even share will
measure on as many tokens and on twice as many; then they are trained. So are two other shares.
Finished runs are not repeated. What came of it: code_share.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from nachim.app.ask import CACHE
from nachim.app.mix_law import show_law, show_verdict, summarise
from nachim.app.mix_page import write_law
from nachim.app.train import run_of
from nachim.app.view import TerminalView
from nachim.lab.mixture import Simplex, climb
from nachim.lab.mixture_study import MixQuestion, MixStudy
from nachim.lab.work import Place
from nachim.law.mixture import MixtureFit, fit_mixture
from nachim.law.mixture_runs import MixtureRuns
from nachim.spec import Files, Ingredient, Mixture, Run, Validation

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "stdlib.py"
TOKENS = 512_000
FITTED, ASKED = (0.1, 0.5, 0.9, 0.3, 0.7), (0.2, 0.6)
"""Shares of code: those that the law is fitted to, and those that it is asked for."""


def base(prose: Path) -> Run:
    """The recipe on both texts, half and half; both are validated."""
    run = run_of(RECIPE)
    parts = (
        Ingredient(name="code", corpus=run.data.corpus, weight=0.5),
        Ingredient(name="prose", corpus=Files(path=str(prose.resolve()), validation_bytes=100_000), weight=0.5),
    )
    data = replace(run.data, corpus=Mixture(ingredients=parts))
    return replace(run, data=data, train=replace(run.train, tokens=TOKENS), validation=Validation(tokens=65_536))


class Study(MixStudy):
    """A mixture study of five shares by two seeds, and of others that its law is asked for."""

    def design(self) -> Simplex:
        """The shares that the law is fitted to."""
        return self._at(FITTED, (2, 1))

    def asked(self) -> MixtureRuns:
        """Runs at other shares, at all tokens."""
        chains = self._at(ASKED, (1,)).chains()
        return climb(chains, self.root / "runs", self.place, self.workers, self.view.event, self.view.stopping)

    def _at(self, shares: tuple[float, ...], parts: tuple[int, ...]) -> Simplex:
        weights = tuple((share, round(1 - share, 6)) for share in shares)
        return Simplex(base=self._plain(), weights=weights, parts=parts, seeds=(0, 1))


def rows(runs: MixtureRuns) -> list[str]:
    """A line a share: the mean of each text's loss over seeds, and how far seeds lie apart."""
    found = []
    for one in sorted(set(runs.shares[:, 0].tolist())):
        here = runs.losses[runs.shares[:, 0] == one]
        cells = [f"{column.mean():.3f} ({np.ptp(column):.3f})" for column in (*here.T, here.mean(axis=1))]
        found.append(f"| {one:.2f} | {' | '.join(cells)} |")
    return found


def main(
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    prose: Annotated[Path, tyro.conf.arg(metavar="FILE")],
) -> None:
    """Train what is missing, and print the tables."""
    with TerminalView() as view:
        question = MixQuestion(base=base(prose), seeds=2)
        study = Study(out, question, Place(CACHE), 1, view)
        study.claim()
        runs = study.climb()
        alone = runs.subset(runs.scales["tokens"] == TOKENS)
        print(f"bits per byte after {TOKENS:,} tokens, mean of two seeds (how far they lie apart)")
        print("| share of code | code | prose | mean |\n|--:|--:|--:|--:|")
        print("\n".join(rows(alone)), flush=True)
        law, both, sealed = fit_mixture(alone), study.law(), study.forecast()
        target = law.target()
        told = summarise(law, target, law.best(target), law.largest)
        view.console.print(*show_law(told))
        summary = summarise(both, target, study.best(both), both.largest)
        summary |= {"sealed": sealed, "verdict": study.verdict()}
        write_law(out / "report.html", "code against prose", both, target, study.best(both), summary)
        view.console.print(*show_law(summary), *show_verdict(summary))
        print("\n".join(beside(law, study.asked())))


def beside(law: MixtureFit, runs: MixtureRuns) -> list[str]:
    """A line a run: what was measured, what the law says, and how far off that is."""
    found = []
    for shares, losses in zip(runs.shares, runs.losses, strict=True):
        pairs = zip(runs.texts, losses, law.losses(shares), strict=True)
        cells = [
            f"{name} {had:.3f}, by the law {said:.3f} ({100 * (had / said - 1):+.1f} %)" for name, had, said in pairs
        ]
        found.append(f"{shares[0]:.2f}: {'; '.join(cells)}")
    return found


if __name__ == "__main__":
    tyro.cli(main)
