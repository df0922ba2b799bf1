"""The verb `nachim data`: files of records without their duplicates, and held against benchmarks."""

from __future__ import annotations

import json as jsonlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from nachim.app.data_build import Build
from nachim.app.data_memory import Exposed, Membership
from nachim.app.data_quality import Mask, NGramModel, Resampled, Score, TrainClassifier
from nachim.app.data_tokenizer import TokenizerReport
from nachim.app.data_vocab import Vocab
from nachim.app.data_worth import DataWorth
from nachim.app.synth import Synth
from nachim.app.view import TerminalView
from nachim.data.contamination import Unit, contamination
from nachim.data.distinct import Keep, distinct_records

Input = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN.jsonl")]
SHOWN = 10


@dataclass(frozen=True)
class Dedup:
    """Write the records of a file without exact and near duplicates; every removal names who stays for it.

    A record is removed only for one that stays, when the Jaccard similarity of their 5-word shingles, counted
    exactly, reaches the threshold: texts are never chained together. Lines that stay are written byte for byte.

    Example: nachim data dedup docs.jsonl.zst --out clean.jsonl.zst --threshold 0.8
    """

    source: Input
    """Records, one JSON object a line, with `text` and, if they have one, `id` (.jsonl, .jsonl.gz, .jsonl.zst)."""
    out: Path
    """The file to write; its suffix says how it is compressed."""
    threshold: float = 0.8
    """Remove what is at least this similar to a record that stays: above 0, at most 1."""
    keep: Keep = "longest"
    """Which of two alike stays; of equal ones the first."""
    text_column: str = "text"
    """The key that holds the text."""
    json: bool = False
    """Print one JSON object: kept, removed (id, keeper, jaccard of each), skipped lines by reason, seconds."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was found, for a script and for a person."""
        view.stage("looking for duplicates")
        found = distinct_records(self.source, self.out, self.threshold, self.keep, self.text_column, view.share)
        lines = [f"{found.read:,} records: {found.kept:,} kept in {self.out}, {len(found.removed):,} removed"]
        for one in found.removed[:SHOWN]:
            lines.append(f"  {one.id} for {one.keeper}, Jaccard {one.jaccard:.3f}")
        if len(found.removed) > SHOWN:
            lines.append(f"  and {len(found.removed) - SHOWN:,} more (--json lists all)")
        return found.to_json(), "\n".join([*lines, *found.notes])


@dataclass(frozen=True)
class Contamination:
    """Say which items of a benchmark share an n-gram with training text; --out takes the text that shares none.

    The benchmark's n-grams stand in a Bloom filter that training text streams past, and what the filter holds is
    looked up exactly: nothing is missed, nothing is taken for what it is not.

    Example: nachim data contamination train.jsonl benchmark.jsonl --ngram 13 --out clean.jsonl
    """

    train: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN.jsonl")]
    """Training records (.jsonl, .jsonl.gz, .jsonl.zst)."""
    benchmark: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EVAL.jsonl")]
    """Items of the benchmark, as records."""
    ngram: int = 13
    """Words (or characters) in turn that must be shared; shorter items cannot be judged, and are listed."""
    characters: bool = False
    """Count `ngram` in characters, 50 for example, in place of words."""
    text_column: str = "text"
    """The key that holds the text, in both files."""
    out: Path | None = None
    """Where training records that share nothing are written."""
    json: bool = False
    """Print one JSON object: contaminated (ids), rate, false_positive_rate, shares, what was skipped, seconds."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was found, for a script and for a person."""
        view.stage("holding training text against the benchmark")
        unit = Unit(self.ngram, self.characters)
        found = contamination(
            self.train, self.benchmark, unit, self.text_column, self.out, lambda done: view.share("reading", done)
        )
        lines = [
            f"{len(found.contaminated):,} of {found.items:,} items share an n-gram with {found.train_contaminated:,} "
            f"of {found.train_records:,} training records ({found.rate:.2%} of those that can be judged)"
        ]
        for item in sorted(found.contaminated, key=lambda item: -item.share)[:SHOWN]:
            lines.append(f"  {item.id}: {item.share:.1%} of its n-grams")
        if found.too_short:
            lines.append(f"{len(found.too_short):,} items are shorter than {self.ngram} and were not judged")
        if self.out is not None:
            lines.append(f"{found.train_records - found.train_contaminated:,} records written to {self.out}")
        return found.to_json(), "\n".join([*lines, *found.notes])


def data(
    do: Annotated[
        Annotated[Dedup, tyro.conf.subcommand("dedup", prefix_name=False)]
        | Annotated[Build, tyro.conf.subcommand("build", prefix_name=False)]
        | Annotated[Contamination, tyro.conf.subcommand("contamination", prefix_name=False)]
        | Annotated[Membership, tyro.conf.subcommand("membership", prefix_name=False)]
        | Annotated[Exposed, tyro.conf.subcommand("exposure", prefix_name=False)]
        | Annotated[Score, tyro.conf.subcommand("score", prefix_name=False)]
        | Annotated[NGramModel, tyro.conf.subcommand("ngram", prefix_name=False)]
        | Annotated[TrainClassifier, tyro.conf.subcommand("classifier", prefix_name=False)]
        | Annotated[Resampled, tyro.conf.subcommand("resample", prefix_name=False)]
        | Annotated[Mask, tyro.conf.subcommand("mask", prefix_name=False)]
        | Annotated[Synth, tyro.conf.subcommand("synth", prefix_name=False)]
        | Annotated[TokenizerReport, tyro.conf.subcommand("tokenizer", prefix_name=False)]
        | Annotated[DataWorth, tyro.conf.subcommand("worth", prefix_name=False)]
        | Annotated[Vocab, tyro.conf.subcommand("vocab", prefix_name=False)],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Clean text before it is trained on: a whole pipeline, or its duplicates or its benchmarks alone.

    Example: nachim data build recipes/clean_stdlib.py --out clean
    """
    began = time.monotonic()
    with TerminalView() as view:
        found, told = do.run(view)
    if do.json:
        print(jsonlib.dumps({"seconds": round(time.monotonic() - began, 3), **found}))
    else:
        Console(highlight=False).print(told, markup=False, soft_wrap=isinstance(told, str))
    return 0
