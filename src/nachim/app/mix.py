"""The verb `nachim mix`: how much of which text a run should read, by hand, by law, or while a small model trains."""

from __future__ import annotations

import json as jsonlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console, Group, RenderableType
from rich.table import Table

from nachim.app.mix_law import right, show_law, show_verdict, summarise
from nachim.app.view import TerminalView
from nachim.spec import Mixture, Run, UserError

if TYPE_CHECKING:
    from nachim.lab.work import Place

Given = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Pairs = tuple[str, ...]


@dataclass(frozen=True)
class Weigh:
    """Say what a run reads of each corpus of its mixture, how many times over, and what that is worth; with other
    weights if asked to, and write the run that has them.

    A corpus read again is worth less and less (arXiv 2305.16264): --worth 0.5 lets none be read until a token seen once
    more is worth less than half of a fresh one.

    Example: nachim mix weigh more.py --temperature 3 --worth 0.5 --out run.json

    Example: nachim mix weigh more.py --last 0.1 --then notes=1 --out run.json
    """

    run: Given
    """A run whose corpus is a Mixture: a run.json, a folder with one, or FILE.py[:FUNCTION]."""
    temperature: float | None = None
    """Weights times corpus size to the power 1/T: 1 is by size, higher is flatter."""
    most_epochs: float | None = None
    """Let no corpus be read more often than this."""
    worth: float | None = None
    """Let none be read more often than until a token is worth this share of a fresh one, by the law."""
    last: float | None = None
    """The last share of the run that has the weights of --then: an anneal."""
    ramp: int | None = None
    """Go over to the weights of --then in so many even steps of the whole run."""
    then: Pairs = ()
    """NAME=WEIGHT of the corpora at the end of the run, with --last or --ramp."""
    out: Path | None = None
    """Where to write the run with these weights."""
    json: bool = False
    """Print one JSON object."""

    def work(self, view: TerminalView) -> tuple[dict[str, Any], RenderableType]:
        """Do it; what was found, for a script and for a person."""
        from dataclasses import replace

        from nachim.data.weigh import capped, portions, worth_reading

        run = _mixed(self.run)
        mixture, tokens, notes = self._course(run), run.train.tokens, list[str]()
        if self.temperature is not None:
            mixture = replace(mixture, temperature=self.temperature)
        if self.most_epochs is not None and self.worth is not None:
            raise UserError("--most-epochs and --worth both say how often a corpus may be read: give one of them")
        most = self.most_epochs if self.worth is None else worth_reading(self.worth)
        sizes = _sizes(run, view)
        if most is not None:
            mixture, notes = capped(mixture, sizes, tokens, most)
        found = portions(mixture, sizes, tokens)
        changed = replace(run, data=replace(run.data, corpus=mixture))
        if self.out is not None:
            changed.save(self.out)
        told = {
            "corpora": {name: {"unique_tokens": sizes[name], **vars(one)} for name, one in found.items()},
            "most_epochs": most,
            "notes": notes,
            "run": changed.to_json(),
        }
        table = Table("corpus", *(right(head) for head in ("its tokens", "share", "tokens read", "epochs", "worth")))
        for name, one in found.items():
            cells = (f"{one.share:.1%}", f"{one.tokens:,.0f}", f"{one.epochs:.3g}", f"{one.worth:,.0f}")
            table.add_row(name, f"{sizes[name]:,}", *cells)
        return told, Group(table, *notes, *([f"run: {self.out}"] if self.out else []))

    def _course(self, run: Run) -> Mixture:
        from nachim.data.weigh import course, ramp

        assert isinstance(run.data.corpus, Mixture)
        if not self.then:
            if self.last is not None or self.ramp is not None:
                raise UserError("--last and --ramp go over to other weights: give them as --then NAME=WEIGHT ...")
            return run.data.corpus
        if (self.last is None) == (self.ramp is None):
            raise UserError("--then has the weights of the run's end: say how they come, with --last or with --ramp")
        if self.ramp is not None:
            return ramp(run.data.corpus, run.train.tokens, pairs(self.then, "--then"), self.ramp)
        assert self.last is not None
        return course(run.data.corpus, run.train.tokens, [(1 - self.last, pairs(self.then, "--then"))])


@dataclass(frozen=True)
class Fit:
    """Fit the mixture law (arXiv 2403.16952) to a table of runs, and say which weights are best.

    OBS is a CSV or parquet table, one row a run: `share/NAME` of each corpus that was trained on (any weights), and
    `loss/NAME` on each held-out text (bits a byte). Where runs differ in `tokens`, `params` or `flops_per_token`, what
    a loss is made of falls as powers of each. `seed` tells repeats apart.

    Best are the shares of the least weighted loss within those of the runs. Intervals are of 90 %; the held-out error
    is that of each mixture as the others forecast it.

    Example: nachim mix fit observations.csv --target code=2 prose=1 --out law.html
    """

    obs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OBS")]
    """Table of runs."""
    target: Pairs = ()
    """NAME=WEIGHT of the held-out texts in the loss to be least; all alike by default."""
    at: Pairs = ()
    """COLUMN=NUMBER: the scale to forecast for, such as tokens=1e9; the largest of the runs by default."""
    most: Pairs = ()
    """NAME=SHARE: the most that a corpus may be of the mixture, for want of text."""
    seed: int = 0
    """Seed of the refits."""
    out: Path | None = None
    """Write a page with the law's curves, one file that needs no network."""
    json: bool = False
    """Print one JSON object."""

    def work(self, view: TerminalView) -> tuple[dict[str, Any], RenderableType]:
        """Do it; what was found, for a script and for a person."""
        from nachim.law.mixture import fit_mixture
        from nachim.law.mixture_runs import read

        law = fit_mixture(read(self.obs), self.seed)
        target = law.target(pairs(self.target, "--target") if self.target else None)
        scale = {**law.largest, **pairs(self.at, "--at")}
        if unread := [name for name in scale if name not in law.scales]:
            raise UserError(f"--at names {unread[0]!r}, in which these runs do not differ: the law reads no such scale")
        allowed = pairs(self.most, "--most")
        for name in allowed:
            if name not in law.runs.corpora:
                raise UserError(f"--most names {name!r}; the corpora are {', '.join(law.runs.corpora)}")
        most = [allowed.get(name, 1.0) for name in law.runs.corpora]
        best = law.best(target, scale, most)
        told = summarise(law, target, best, scale)
        if self.out is not None:
            from nachim.app.mix_page import write_law

            write_law(self.out, f"mixtures of {self.obs.name}", law, target, best, told)
        return told, Group(*show_law(told), *([f"page: {self.out}"] if self.out else []))


@dataclass(frozen=True)
class Climb:
    """Train small runs over a design of mixtures, fit the law, seal what the best weights will reach, train them.

    The run's own weights are one of the mixtures, the others are spread over the simplex. The law's best weights are
    then held against the run's own: both are trained --times longer than any run before, after their forecast is
    sealed. Stop it whenever you like: the same command goes on.

    Example: nachim mix climb more.py --out runs/mixing
    """

    run: Given
    """A run whose corpus is a Mixture: a run.json, a folder with one, or FILE.py[:FUNCTION]."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The study's folder: runs, observations.csv, forecast.json, verdict.json, report.html."""
    mixtures: int = 0
    """How many mixtures; by default three more than the law needs."""
    seeds: int = 1
    """Runs of each mixture, by other seeds."""
    times: float = 2.0
    """How many times the run's tokens the weights are checked at."""
    target: Pairs = ()
    """NAME=WEIGHT of the held-out texts in the loss to be least; all alike by default."""
    most_epochs: float | None = None
    """Choose no weights by which a corpus is read more often than this."""
    json: bool = False
    """Print one JSON object."""

    def work(self, view: TerminalView) -> tuple[dict[str, Any], RenderableType]:
        """Do it; what was found, for a script and for a person."""
        from nachim.app.mix_page import write_law
        from nachim.lab.mixture_study import MixQuestion, MixStudy

        run = _mixed(self.run)
        wanted = pairs(self.target, "--target")
        target = tuple(wanted.get(one.name, 0.0) for one in run.data.corpus.ingredients) if wanted else ()
        question = MixQuestion(
            base=run, mixtures=self.mixtures, seeds=self.seeds, times=self.times, target=target,
            most_epochs=self.most_epochs,
        )  # fmt: skip
        place, workers = _place()
        study = MixStudy(self.out, question, place, workers, view)
        verdict = study.run()
        sealed, law = study.forecast(), study.law()
        best = study.best(law)
        told = {**summarise(law, study.target(law), best, law.largest), "sealed": sealed, "verdict": verdict}
        write_law(self.out / "report.html", str(self.out), law, study.target(law), best, told)
        return told, Group(*show_law(told), *show_verdict(told), f"page: {self.out / 'report.html'}")


@dataclass(frozen=True)
class Online:
    """Find weights while a small model trains (DoReMi, arXiv 2305.10429): more of what it is behind a reference in.

    The reference is the run on its own weights. The proxy begins on even ones; after each stretch every corpus' weight
    grows by how far the proxy is behind the reference in it. The mixture to use is the average over stretches, written
    to DIR/run.json. Every number behind a weight is in DIR/weights.json; a stopped search goes on.

    Example: nachim mix online more.py --out runs/online --stretches 10
    """

    run: Given
    """A run whose corpus is a Mixture: a run.json, a folder with one, or FILE.py[:FUNCTION]."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The search's folder."""
    stretches: int = 10
    """Into how many the proxy's run is cut."""
    rate: float = 1.0
    """How fast weights follow the excess, per nat/token and stretch."""
    json: bool = False
    """Print one JSON object."""

    def work(self, view: TerminalView) -> tuple[dict[str, Any], RenderableType]:
        """Do it; what was found, for a script and for a person."""
        from nachim.app.mix_page import write_online
        from nachim.lab.mixture import mixed
        from nachim.lab.mixture_online import Online as Search
        from nachim.lab.mixture_online import OnlineStudy

        run = _mixed(self.run)
        search = Search(base=run, stretches=self.stretches, rate=self.rate)
        found = OnlineStudy(self.out, search, _place()[0], view).run()
        mixed(run, list(found["weights"].values())).save(self.out / "run.json")
        write_online(self.out / "report.html", str(self.out), found)
        table = Table("corpus", *(right(head) for head in ("weight", "first excess", "last excess, nat/token")))
        for name, weight in found["weights"].items():
            first, last = (found["stretches"][place]["excess"][name] for place in (0, -1))
            table.add_row(name, f"{weight:.3f}", f"{first:+.3f}", f"{last:+.3f}")
        lines = (f"run: {self.out / 'run.json'}", f"page: {self.out / 'report.html'}")
        return {**found, "run": str(self.out / "run.json")}, Group(table, *lines)


def mix(
    do: Annotated[
        Annotated[Weigh, tyro.conf.subcommand("weigh", prefix_name=False)]
        | Annotated[Fit, tyro.conf.subcommand("fit", prefix_name=False)]
        | Annotated[Climb, tyro.conf.subcommand("climb", prefix_name=False)]
        | Annotated[Online, tyro.conf.subcommand("online", prefix_name=False)],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Choose how much of which text a run reads: by hand, by the mixture law, or while a small model trains.

    Example: nachim mix fit observations.csv
    """
    with TerminalView() as view:
        found, told = do.work(view)
    if do.json:
        print(jsonlib.dumps(found))
    else:
        Console(highlight=False).print(told)
    return 0


def pairs(given: Sequence[str], option: str) -> dict[str, float]:
    """NAME=NUMBER of an option as a mapping. Raises UserError for what is not of that kind."""
    found = {}
    for each in given:
        name, equals, value = each.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UserError(f"{option} {each}: give NAME=NUMBER, such as code=0.5")
    return found


def _mixed(source: Path) -> Run:
    """The run that `source` names, whose corpus is a mixture. Raises UserError where it is not."""
    from nachim.app.train import run_of

    run = run_of(source)
    if not isinstance(run.data.corpus, Mixture):
        raise UserError(f"{source} reads one corpus: give its Data a Mixture of two or more")
    return run


def _sizes(run: Run, view: TerminalView) -> dict[str, int]:
    """The train tokens of each corpus of a run."""
    from nachim.app.ask import CACHE
    from nachim.data.mix import open_mixture

    view.stage("corpora")
    sources = open_mixture(run.data, CACHE, view.share).sources
    return {name: one.prepared.unique_tokens for name, one in sources.items()}


def _place() -> tuple[Place, int]:
    """Where runs go here, and how many at a time."""
    import torch

    from nachim.app.ask import CACHE
    from nachim.lab.work import Place

    if torch.cuda.is_available():
        return Place(CACHE, "cuda"), 1
    return Place(CACHE), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
