"""Weights found while a small model trains: more of what it is behind a reference in (DoReMi, arXiv 2305.10429).

The proxy is a chain of runs, each of which goes on from the checkpoint of the one before with one more change of
weights in its mixture. So each is an ordinary run, whose data are a pure function of its seed and index: the last,
trained from its first step, has the same weights bit for bit, and a killed one goes on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nachim.data.mix import Mixed
from nachim.evaluate.bpb import Windows, measure
from nachim.lab.claim import claim
from nachim.lab.launch.local import event_of
from nachim.lab.mixture import mixed
from nachim.lab.study import View
from nachim.lab.work import Place, Share, carry_out, open_batches
from nachim.law.forms import Array
from nachim.model.load import load
from nachim.spec import Constant, Mixture, Part, Reweight, Run
from nachim.spec.disk import locked, write_text
from nachim.train import checkpoint
from nachim.train.loop import Watch

QUESTION, WEIGHTS, PROBE = "online.json", "weights.json", "probe.json"


@dataclass(frozen=True, kw_only=True)
class Online(Part):
    """How weights are found: `base` on its own weights is the reference, and a proxy of the same shape is trained for
    as many tokens in `stretches`. After each, a corpus' weight is times e^(`rate` · excess), then mixed with an even
    share `smoothing` (arXiv 2305.10429, algorithm 1).

    The excess is how far the proxy's loss is above the reference's, in nat/token, at least 0, on `probe_tokens` tokens
    of the corpus: the last that an epoch reads. Both models train at a constant rate, so that a difference is one of
    text. The paper weighs losses of evenly drawn texts at every step; here weights decide what is read, a stretch long.
    """

    base: Run
    stretches: int = 10
    rate: float = 1.0
    smoothing: float = 1e-3
    probe_tokens: int = 32_768

    def check(self) -> None:
        self.require_positive("rate", "probe_tokens")
        if not 0 <= self.smoothing < 1:
            self.refuse("smoothing", f"is {self.smoothing}; it must be at least 0 and below 1")
        corpus = self.base.data.corpus
        if not isinstance(corpus, Mixture) or len(corpus.ingredients) < 2:
            self.refuse("base", "reads one corpus: give its Data a Mixture of two or more")
        if corpus.changes:
            self.refuse("base", "changes its weights on the way: the reference has one mixture throughout")
        if not 2 <= self.stretches <= self.base.train.steps:
            self.refuse(
                "stretches", f"is {self.stretches}; it must be from 2 to the run's {self.base.train.steps} steps"
            )
        if (warmup := self.base.train.schedule.warmup_tokens) > self.token(1):
            self.refuse("stretches", f"is {self.stretches}: one is shorter than the warm-up of {warmup:,}; take fewer")

    @property
    def reference(self) -> Run:
        """The run that a corpus' loss is held against."""
        train = self.base.train
        schedule = Constant(warmup_tokens=train.schedule.warmup_tokens)
        return dataclasses.replace(self.base, train=dataclasses.replace(train, schedule=schedule))

    def proxy(self, weights: list[tuple[float, ...]]) -> Run:
        """The proxy until the end of its stretch number `len(weights)`, `weights` being those of the stretches."""
        run = mixed(self.reference, weights[0])
        assert isinstance(run.data.corpus, Mixture)
        changes = tuple(
            Reweight(at_tokens=self.token(number), weights=one) for number, one in enumerate(weights[1:], start=1)
        )
        corpus = dataclasses.replace(run.data.corpus, changes=changes, temperature=None)
        train = dataclasses.replace(run.train, tokens=self.token(len(weights)))
        return dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=corpus), train=train)

    def token(self, stretch: int) -> int:
        """Where stretch number `stretch`, from 0, begins."""
        train = self.base.train
        return train.token_at(round(train.steps * stretch / self.stretches))


def reweighed(weights: Array, excess: Array, rate: float, smoothing: float) -> Array:
    """The weights after one step of exponentiated gradient (arXiv 2305.10429, algorithm 1), all (corpora,).

    `excess` is in nat/token; what is below 0 counts as 0.
    """
    logs = np.log(weights) + rate * np.maximum(excess, 0.0)
    found = np.exp(logs - logs.max())
    return np.asarray((1 - smoothing) * found / found.sum() + smoothing / len(weights))


@dataclass(frozen=True)
class OnlineStudy:
    """A folder and how its weights are to be found."""

    root: Path
    question: Online
    place: Place
    view: View

    def run(self) -> dict[str, Any]:
        """Train reference and proxy, stretch by stretch; what came of it, also in `weights.json`, is

        `stretches`, of each its weights, the `loss` of the proxy and its `excess` by corpus, `reference`, the losses of
        the reference, and `weights`, the average over stretches: the mixture to use. Goes on where an earlier process
        stopped. Raises UserError, and Stopped when the view says so.
        """
        claim(self.root / QUESTION, self.question, "search")
        with locked(self.root / "lock"):
            self.view.stage("corpora")
            batches = open_batches(self.question.base.data, self.place.cache, self.view.share)
            assert isinstance(batches, Mixed)
            names = list(batches.sources)
            self.view.stage("reference")
            reference = self._trained(self.question.reference, self.root / "reference", None, batches)
            weights, told = [tuple([1 / len(names)] * len(names))], list[dict[str, Any]]()
            self.view.stage("proxy")
            for number in range(1, self.question.stretches + 1):
                loss = self._stretch(number, weights, batches)
                excess = np.array([loss[name] - reference[name] for name in names])
                told.append(
                    {
                        "tokens": self.question.token(number),
                        "weights": dict(zip(names, weights[-1], strict=True)),
                        "loss": loss,
                        "excess": dict(zip(names, excess.tolist(), strict=True)),
                    }
                )
                after = reweighed(np.array(weights[-1]), excess, self.question.rate, self.question.smoothing)
                weights.append(tuple(after.tolist()))
            average = np.mean(weights[1:], axis=0)
            found = {
                "weights": dict(zip(names, average.tolist(), strict=True)),
                "reference": reference,
                "stretches": told,
            }
            write_text(self.root / WEIGHTS, json.dumps(found, indent=2) + "\n")
            return found

    def _stretch(self, number: int, weights: list[tuple[float, ...]], batches: Mixed) -> dict[str, float]:
        """Train the proxy to the end of a stretch; its loss on each corpus."""
        run, before = self.question.proxy(weights), self._folder(number - 1)
        start = None if number == 1 else checkpoint.latest(before / checkpoint.CHECKPOINT)
        found = self._trained(run, self._folder(number), start, batches)
        if number > 1:
            checkpoint.prune(before / checkpoint.CHECKPOINT, frozenset())
        return found

    def _folder(self, number: int) -> Path:
        return self.root / "proxy" / f"{number:03d}"

    def _trained(self, run: Run, out: Path, start: Path | None, batches: Mixed) -> dict[str, float]:
        """Train `run`, or finish it; the loss of its weights on the end of each corpus, in nat/token."""
        path = out / PROBE
        if not path.exists():
            threads = self.place.threads

            def on_step(run: Run, step: int, loss: float) -> None:
                self.view.event(event_of(out.name, run, step, loss, threads))

            watch = Watch(self.view.say, self.view.stopping)
            carry_out(run, out, self.place, on_step, Share(start=start), watch)
            model = load(out).to(self.place.device)
            found = {name: measure(model, one)["loss"] for name, one in self._windows(batches).items()}
            write_text(path, json.dumps(found) + "\n")
        losses: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return losses

    def _windows(self, batches: Mixed) -> Mapping[str, Windows]:
        """The last sequences of each corpus' first epoch."""
        found = {}
        for name, source in batches.sources.items():
            epoch = source.sequences_per_epoch
            count = min(max(1, self.question.probe_tokens // batches.seq_len), epoch)
            ids = source.at(np.arange(epoch - count, epoch))
            end = source.end if self.question.base.data.mask_documents else None
            found[name] = Windows(ids, source.target_bytes(ids), end)
        return found
