"""How large should the vocabulary be? One body trained at equal compute with several, judged on the same held-out text.

A larger vocabulary puts more bytes into a token, and so reads more text in as many; but its head costs more for
each, and every token of it is seen less often. What that comes to is measured: a run's compute, its head included, is
spent at each size on as many tokens as it pays for, by every seed; arXiv 2407.13623 holds body and compute too.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nachim.data.prepare import prepare
from nachim.data.prepared import Prepared
from nachim.lab.claim import claim
from nachim.lab.ladder import Chain, name_of
from nachim.lab.launch.local import carry_out_all
from nachim.lab.store import finished, table_of
from nachim.lab.study import View
from nachim.lab.work import Place
from nachim.law.blocks import Blocks
from nachim.spec import BPE, Mixture, Part, Run, Unigram, UserError, Validation
from nachim.spec.disk import locked, write_text

QUESTION, OBSERVATIONS, SUMMARY = "vocabulary.json", "observations.csv", "summary.json"
WHOLE = 1 << 40
"""More validation tokens than there are: all of the held-out text, which is the same whatever it is written in."""


@dataclass(frozen=True, kw_only=True)
class VocabularyQuestion(Part):
    """Which of the `sizes` should the vocabulary of `base` have? Asked by `seeds` seeds (0: nothing is trained) at the
    compute of `base`, its head included, on `held_out_bytes` of its corpus."""

    base: Run
    sizes: tuple[int, ...]
    seeds: int = 2
    held_out_bytes: int = 500_000

    def check(self) -> None:
        self.require_positive("held_out_bytes")
        if self.seeds < 0:
            self.refuse("seeds", f"is {self.seeds}; it must not be negative")
        if isinstance(self.base.data.corpus, Mixture):
            self.refuse("base", "reads a mixture: ask of one corpus")
        if not isinstance(self.base.data.tokenizer, BPE | Unigram):
            self.refuse("base", "reads a tokenizer of a file: ask of one that is trained, BPE or Unigram")
        if len(self.sizes) < 2 or list(self.sizes) != sorted(set(self.sizes)):
            self.refuse("sizes", f"are {self.sizes}; give two or more, each once, smallest first")
        names = Counter(name_of(self.run_of(size, 0)) for size in self.sizes)
        if max(names.values()) > 1:
            self.refuse("sizes", "lie so close that two train on as many tokens: choose them further apart")

    @property
    def flops(self) -> int:
        """Training FLOP of every run, its head included."""
        return self.base.flops + self.base.head_flops

    def run_of(self, size: int, seed: int) -> Run:
        """The base with a vocabulary of `size` on the tokens that its compute pays for, in whole steps; a warm-up
        keeps its share of them."""
        base = self.base
        model, data, train = base.model, base.data, base.train
        model = replace(model, vocab_size=size)
        per_token = model.flops_per_token(data.seq_len) + model.head_flops_per_token
        tokens = max(1, round(self.flops / per_token / train.batch_tokens)) * train.batch_tokens
        warmup = round(train.schedule.warmup_tokens / train.tokens * tokens)
        corpus = replace(data.corpus, validation_bytes=self.held_out_bytes)
        written = replace(data.tokenizer, vocab_size=size)
        return replace(
            base,
            model=model,
            data=replace(data, corpus=corpus, tokenizer=written, seed=data.seed + seed, fingerprint_of_tokens=""),
            train=replace(
                train, tokens=tokens, schedule=replace(train.schedule, warmup_tokens=warmup), seed=train.seed + seed
            ),
            validation=Validation(tokens=WHOLE),
        )


@dataclass(frozen=True)
class VocabularyStudy:
    """A folder and what it was asked; killed at any time, the same call goes on."""

    root: Path
    question: VocabularyQuestion
    place: Place
    workers: int
    view: View

    def run(self) -> dict[str, Any]:
        """Write the corpus in every vocabulary, train all runs, and say what came of them; also in `summary.json`.

        Raises UserError, and Stopped when the view says so.
        """
        claim(self.root / QUESTION, self.question, seeds=self.question.seeds)
        with locked(self.root / "lock"):
            sizes = [self._counted(size, prepared) for size, prepared in self.prepared().items()]
            found: dict[str, Any] = {"flops": self.question.flops, "seeds": self.question.seeds, "sizes": sizes}
            if self.question.seeds:
                found |= judged(self.losses(), sizes)
            write_text(self.root / SUMMARY, json.dumps(found, indent=1) + "\n")
        return found

    def prepared(self) -> dict[int, Prepared]:
        """The corpus in every vocabulary."""
        self.view.stage("writing the corpus in each vocabulary")
        found = {}
        for size in self.question.sizes:

            def heard(stage: str, done: float, size: int = size) -> None:
                self.view.share(f"{size:,} tokens: {stage}", done)

            found[size] = prepare(self.question.run_of(size, 0).data, self.place.cache, heard)
        return found

    def runs(self) -> list[list[Run]]:
        """The runs of each size, by seed."""
        seeds = range(self.question.seeds)
        return [[self.question.run_of(size, seed) for seed in seeds] for size in self.question.sizes]

    def losses(self) -> Blocks:
        """Held-out bits a byte of every size by seed, trained where they are not; the table is `observations.csv`."""
        runs, folder = self.runs(), self.root / "runs"
        everyone = [run for row in runs for run in row]
        todo = [Chain(runs=(run,)) for run in everyone if not (folder / name_of(run) / "result.json").exists()]
        if todo:
            self.view.stage("training with each vocabulary")
            longest = sorted(todo, key=lambda chain: -chain.runs[0].train.tokens)
            carry_out_all(longest, folder, self.place, self.workers, self.view.event, self.view.stopping)
        rows = finished(folder, everyone)
        if len(rows) < len(everyone):
            lost = sorted({name_of(run) for run in everyone} - {name_of(run) for run, _ in rows})
            raise UserError(f"{', '.join(lost)} under {folder} did not finish: lower the run's learning rate")
        held = [float(run.model.vocab_size) for run, _ in rows]
        width = self.question.base.model.d_model
        table = table_of(rows)
        extra = {"vocab_size": np.array(held), "vocab_params": width * np.array(held)}
        replace(table, extra=extra).write(self.root / OBSERVATIONS)
        return Blocks(table.loss.reshape(len(runs), self.question.seeds))

    def _counted(self, size: int, prepared: Prepared) -> dict[str, Any]:
        """What a vocabulary makes of the text, and what it costs."""
        run = self.question.run_of(size, 0)
        model, train = run.model, prepared.manifest["train"]
        bytes_per_token = train["bytes"] / train["tokens"]
        head = model.head_flops_per_token
        return {
            "vocab_size": size,
            "bytes_per_token": bytes_per_token,
            "params_share": model.params_embedding / model.params_total,
            "flops_share": head / (head + run.flops_per_token),
            "tokens": run.train.tokens,
            "bytes": round(run.train.tokens * bytes_per_token),
            "epochs": run.train.tokens / prepared.unique_tokens,
        }


def judged(blocks: Blocks, sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """`sizes` with the bits a byte of each run, their mean (geometric) and what it lies above the best one's; the best
    size, those that its runs cannot be told from, and where a parabola has its bottom."""
    known, told = bool(blocks.freedom), []
    rows = zip(sizes, blocks.loss.tolist(), blocks.means.tolist(), blocks.over_best().tolist(), strict=True)
    for one, losses, mean, (above, low, high) in rows:
        ends = {"low": low if known else None, "high": high if known else None}
        told.append({**one, "bpb": losses, "mean": float(np.exp(mean)), "over_best": above, **ends})
    bottom = blocks.bottom(np.array([one["vocab_size"] for one in sizes], dtype=float))
    return {
        "sizes": told,
        "best": sizes[blocks.best]["vocab_size"],
        "alike": [one["vocab_size"] for one in told if known and one["low"] <= 0],
        "noise": blocks.noise if known else None,
        "optimum": bottom and dict(zip(("vocab_size", "low", "high"), bottom, strict=True)),
    }
