"""From corpora to weights that were checked: small runs over mixtures, the law, a sealed forecast, longer runs."""

from __future__ import annotations

import dataclasses
import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nachim.data.mix import Mixed, stages
from nachim.lab.claim import claim
from nachim.lab.forecast import LEVEL, digest, open_seal
from nachim.lab.ladder import Chain, name_of
from nachim.lab.launch.local import carry_out_all
from nachim.lab.mixture import Simplex, climb, mixed, simplex, table_of
from nachim.lab.study import View
from nachim.lab.work import Place, open_batches
from nachim.law.forms import Array
from nachim.law.mixture import Best, MixtureFit, fit_mixture, plain
from nachim.law.mixture_runs import MixtureRuns
from nachim.law.mixture_runs import read as read_runs
from nachim.spec import Mixture, Part, Run, UserError
from nachim.spec.disk import locked, write_text
from nachim.train.schedule import stable_steps

QUESTION, OBSERVATIONS, FORECAST, VERDICT = "mixing.json", "observations.csv", "forecast.json", "verdict.json"
DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class MixQuestion(Part):
    """Which weights should `base`, whose corpus is a mixture, have? Asked of `mixtures` mixtures (0: as many as the law
    needs and three more) by `seeds` seeds, at half and all of its tokens; checked at `times` its tokens.

    The loss to be least is bits a byte of each corpus's held-out text, by the weights `target` (all alike if empty).
    Where `most_epochs` is given no corpus is chosen to be read more often over the longest run.
    """

    base: Run
    mixtures: int = 0
    seeds: int = 1
    times: float = 2.0
    target: tuple[float, ...] = ()
    most_epochs: float | None = None

    def check(self) -> None:
        self.require_positive("seeds", "times")
        corpus = self.base.data.corpus
        if not isinstance(corpus, Mixture) or len(corpus.ingredients) < 2:
            self.refuse("base", "reads one corpus: give its Data a Mixture of two or more")
        if self.target and len(self.target) != len(corpus.ingredients):
            self.refuse("target", f"has {len(self.target)} weights; it needs {len(corpus.ingredients)}, one a corpus")
        if self.mixtures and self.mixtures < len(corpus.ingredients) + 2:
            self.refuse("mixtures", f"is {self.mixtures}; the law of these needs {len(corpus.ingredients) + 2} or more")


@dataclass(frozen=True)
class MixStudy:
    """A folder and what it was asked. Every method is a stage, and leaves a file; `run` takes them all in turn."""

    root: Path
    question: MixQuestion
    place: Place
    workers: int
    view: View

    def run(self) -> dict[str, Any]:
        """The whole line; returns the verdict. Goes on where an earlier process stopped.

        Raises UserError, and Stopped when the view says so.
        """
        claim(self.root / QUESTION, self.question)
        with locked(self.root / "lock"):
            self.climb()
            self.forecast()
            return self.verdict()

    def design(self) -> Simplex:
        """The mixtures to train: the base's own, and others spread over the simplex."""
        base, corpora = self.question.base, len(self._names)
        count = self.question.mixtures or corpora + 5
        own = tuple(round(float(share), 6) for share in self.base_shares())
        drawn = simplex(corpora, count - 1, self.question.base.train.seed)
        seeds = tuple(base.train.seed + one for one in range(self.question.seeds))
        return Simplex(base=self._plain(), weights=(own, *(one for one in drawn if one != own)), seeds=seeds)

    def climb(self) -> MixtureRuns:
        """Every run of the design; what they measured is in `observations.csv`."""
        path = self.root / OBSERVATIONS
        if not path.exists():
            self.view.stage("corpora")
            open_batches(self.question.base.data, self.place.cache, self.view.share)
            self.view.stage("mixtures")
            folder = self.root / "runs"
            climb(self.design().chains(), folder, self.place, self.workers, self.view.event, self.view.stopping).write(
                path
            )
        return read_runs(path)

    def law(self) -> MixtureFit:
        """The mixture law through the design's runs."""
        return fit_mixture(self.climb(), seed=self.question.base.train.seed)

    def best(self, law: MixtureFit) -> Best:
        """The weights of least loss at the base's tokens, none read too often over the longest run."""
        most = None
        if self.question.most_epochs is not None:
            longest = self.question.times * self.question.base.train.tokens
            most = [self.question.most_epochs * size / longest for size in self.sizes().values()]
        return law.best(self.target(law), None, most)

    def target(self, law: MixtureFit) -> Array:
        """How much each held-out text counts."""
        weights = dict(zip(self._names, self.question.target, strict=True)) if self.question.target else None
        return law.target(weights)

    def forecast(self) -> dict[str, Any]:
        """The sealed forecast, in `forecast.json`: the chosen weights, what runs at them and at the base's will
        measure, and what choosing them is worth. Raises UserError when those runs have begun without it."""
        path = self.root / FORECAST
        if path.exists():
            return open_seal(path)
        if (self.root / "ahead").exists():
            raise UserError(f"{self.root}/ahead has begun: a forecast comes before its runs, so choose another --out")
        law = self.law()
        best, target = self.best(law), self.target(law)
        chosen = np.round(best.point, DIGITS)
        chosen = chosen / chosen.sum()
        runs = [self._sealed(law, target, name, chain) for name, chain in self.ahead(chosen).items()]
        worth = law.worth(self.base_shares(), chosen, target, runs[0][-1]["scale"])
        sealed = {
            "chosen": dict(zip(self._names, chosen.tolist(), strict=True)),
            "interval90": best.interval90,
            "base": dict(zip(self._names, self.base_shares().tolist(), strict=True)),
            "held": list(best.held),
            "runs": [row for rows in runs for row in rows],
            "worth": plain(worth),
            "level": LEVEL,
            "sealed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        sealed = json.loads(json.dumps(sealed))
        sealed["sha256"] = digest(sealed)
        write_text(path, json.dumps(sealed, indent=2) + "\n")
        return sealed

    def ahead(self, chosen: Array) -> dict[str, Chain]:
        """What a forecast is about: the chosen weights at the base's tokens and at more, the base's at more."""
        base, seed, more = self._plain(), self.question.base.train.seed, 1 / self.question.times
        return {
            "chosen": _joined([mixed(base, chosen, 1.0, seed), mixed(base, chosen, more, seed)]),
            "base": Chain(runs=(mixed(base, self.base_shares(), more, seed),)),
        }

    def _sealed(self, law: MixtureFit, target: Array, name: str, chain: Chain) -> list[dict[str, Any]]:
        found = []
        for run in chain.runs:
            shares = shares_of(run)
            scale = {"tokens": float(run.train.tokens), "flops_per_token": float(run.flops_per_token)}
            one = law.forecast(shares, target, scale)
            found.append(
                {
                    "name": name,
                    "run": run.to_json(),
                    "run_fingerprint": run.fingerprint,
                    "scale": scale,
                    "loss": one.loss,
                    "texts": one.texts,
                }
            )
        return found

    def verdict(self) -> dict[str, Any]:
        """Train the runs of the forecast, and hold what they measured against it; also in `verdict.json`."""
        sealed = open_seal(self.root / FORECAST)
        law, folder = self.law(), self.root / "ahead"
        runs = [Run.from_json(row["run"]) for row in sealed["runs"]]
        chains = list(self.ahead(np.array(list(sealed["chosen"].values()))).values())
        if not all((folder / name_of(run) / "result.json").exists() for run in runs):
            self.view.stage("longer runs")
            carry_out_all(chains, folder, self.place, self.workers, self.view.event, self.view.stopping)
        target, rows = self.target(law), []
        for row, run in zip(sealed["runs"], runs, strict=True):
            table = table_of(folder, [run])
            losses = dict(zip(table.texts, table.losses[0].tolist(), strict=True))
            measured = float(target @ [losses[name] for name in law.runs.texts])
            rows.append(_judged(row, measured, losses))
        chosen, base = rows[-2]["measured"], rows[-1]["measured"]
        scale = sealed["runs"][-1]["scale"]
        worth = law.worth(self.base_shares(), self.base_shares(), target, scale, ratio=chosen / base)
        verdict = {
            "runs": rows,
            "worth": plain(worth),
            "better": chosen < base,
            "inside": all(row["inside"] for row in rows),
            "sha256": sealed["sha256"],
        }
        write_text(self.root / VERDICT, json.dumps(verdict, indent=2) + "\n")
        return verdict

    def sizes(self) -> dict[str, int]:
        """Train tokens of each corpus."""
        batches = open_batches(self.question.base.data, self.place.cache)
        assert isinstance(batches, Mixed)
        return {name: source.prepared.unique_tokens for name, source in batches.sources.items()}

    def base_shares(self) -> Array:
        """The base's own shares."""
        corpus = self.question.base.data.corpus
        assert isinstance(corpus, Mixture)
        weights = np.array(stages(corpus, self.sizes() if corpus.temperature is not None else {})[0])
        return np.asarray(weights / weights.sum())

    @property
    def _names(self) -> list[str]:
        corpus = self.question.base.data.corpus
        assert isinstance(corpus, Mixture)
        return [one.name for one in corpus.ingredients]

    def _plain(self) -> Run:
        """The base without what changes weights on the way or by size: a design is of weights as they stand."""
        base = self.question.base
        assert isinstance(base.data.corpus, Mixture)
        corpus = dataclasses.replace(base.data.corpus, changes=(), temperature=None, most_epochs=None)
        return dataclasses.replace(base, data=dataclasses.replace(base.data, corpus=corpus))


def _judged(row: dict[str, Any], measured: float, losses: dict[str, float]) -> dict[str, Any]:
    """A row of the forecast with what was measured: the sum, and the loss of each text."""

    def held(value: float, forecast: list[float]) -> dict[str, Any]:
        middle, low, high = forecast
        return {"measured": value, "error_percent": 100 * (value / middle - 1), "inside": low <= value <= high}

    texts = {name: held(loss, row["texts"][name]) for name, loss in losses.items()}
    return {"name": row["name"], "tokens": row["scale"]["tokens"], **held(measured, row["loss"]), "texts": texts}


def shares_of(run: Run) -> Array:
    """The shares of a run's corpora by their weights."""
    assert isinstance(run.data.corpus, Mixture)
    weights = np.array([one.weight for one in run.data.corpus.ingredients])
    return np.asarray(weights / weights.sum())


def _joined(runs: list[Run]) -> Chain:
    """Runs of rising length as one chain where their schedule allows it; else the longest, which is whole by itself."""
    whole = all(stable_steps(run.train) for run in runs) and runs[0].train.tokens < runs[-1].train.tokens
    return Chain(runs=tuple(runs) if whole else (runs[-1],))
