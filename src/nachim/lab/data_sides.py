"""Data sets side by side: each made by its own recipe, none of them with the text that all are judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nachim.data.held_out import FarFrom, HoldOut
from nachim.data.ingest import Origin
from nachim.data.pipeline import Built, Listen, Pipeline, build
from nachim.spec import Corpus, Files, Ingredient, Mixture, UserError

Source = Pipeline | Corpus | Mixture
YARDSTICK, TEXT = "held-out", "text"
PARTS = 6
"""The yardstick is one part in so many of what is held out; its tokenizer is trained on the others."""
LEAST = 20_000
"""Bytes of yardstick with which anything can be told."""


@dataclass(frozen=True)
class Sides:
    """What runs on each data set read, by name, and how much each held-out text counts in their loss.

    `documents` has of each data set what came, what stayed and what each stage dropped; none of mixtures.
    """

    mixtures: dict[str, Mixture]
    judged: dict[str, float]
    documents: dict[str, list[dict[str, Any]]]


def make_sides(sources: Mapping[str, Source], share: float, root: Path, workers: int, listen: Listen) -> Sides:
    """The data sets of `sources`, the baseline first, made under `root`; what stands there is not made again.

    Pipelines (a corpus is one without stages) lose the same `share` of documents before their first stage, chosen by
    content; those of the baseline's that are far from all others are the yardstick, and documents near to the yardstick
    are in no data set. Mixtures must read the same corpora, whose own held-out texts judge them, all alike.
    Raises UserError for a mixture beside a pipeline, other corpora, or too little held-out text.
    """
    mixtures = {name: source for name, source in sources.items() if isinstance(source, Mixture)}
    if mixtures and len(mixtures) < len(sources):
        odd = next(name for name in sources if name not in mixtures)
        raise UserError(f"{odd} is no mixture, as {next(iter(mixtures))} is: compare mixtures with mixtures alone")
    if mixtures:
        return _mixed(mixtures)
    pipelines = {name: _pipeline(source) for name, source in sources.items()}
    yardstick, texts = _yardstick(next(iter(pipelines.values())), share, root / YARDSTICK, workers, listen)
    found, told = dict[str, Mixture](), dict[str, list[dict[str, Any]]]()
    for name, pipeline in pipelines.items():
        kept = (HoldOut(share=share), FarFrom(texts=texts), *pipeline.stages)
        built = build(replace(pipeline, stages=kept, tokens=None), root / "data" / name, workers, listen)
        size = yardstick.validation_bytes  # a run validates all that it reads, though its own text judges nothing
        text = Files(path=str(built.out / "shards"), validation_bytes=size, near_duplicates=True)
        parts = (
            Ingredient(name=YARDSTICK, corpus=yardstick, weight=0.0),
            Ingredient(name=TEXT, corpus=text, weight=1.0),
        )
        found[name] = Mixture(ingredients=parts)
        told[name] = _stages(built)
    return Sides(found, {YARDSTICK: 1.0}, told)


def _mixed(mixtures: Mapping[str, Mixture]) -> Sides:
    (first, one), *others = mixtures.items()
    read = {each.name: each.corpus for each in one.ingredients}
    for name, mixture in others:
        if {each.name: each.corpus for each in mixture.ingredients} != read:
            raise UserError(f"{name} and {first} are mixtures of other corpora: give both the same, with other weights")
    return Sides(dict(mixtures), {name: 1 / len(read) for name in read}, {})


def _pipeline(source: Source) -> Pipeline:
    if isinstance(source, Pipeline):
        return source
    assert isinstance(source, Corpus)
    return Pipeline(origins=(Origin(corpus=source),))


def _yardstick(base: Pipeline, share: float, root: Path, workers: int, listen: Listen) -> tuple[Files, tuple[str, ...]]:
    """The corpus that judges, and the files it stands in: what is held out of the baseline's documents, unless it is
    near to what is not, so that it tests no copying."""
    bare = replace(base, stages=(HoldOut(share=share),), tokens=None)
    rest = build(bare, root / "rest", workers, listen)
    stages = (HoldOut(share=share, only=True), FarFrom(texts=_files(rest)))
    judge = build(replace(bare, stages=stages), root / "judge", workers, listen)
    size = sum(shard.ledger.kept.bytes for shard in judge.shards)
    if size // PARTS < LEAST:
        raise UserError(
            f"{size:,} bytes of text are held out and near to no other: {PARTS * LEAST:,} are needed; hold out a "
            "larger share, or bring more text"
        )
    return Files(path=str(judge.out / "shards"), validation_bytes=size // PARTS), _files(judge)


def _files(built: Built) -> tuple[str, ...]:
    """Where the documents stand."""
    return tuple(str(built.out / "shards" / one.path.name) for one in built.shards if one.ledger.kept.rows)


def _stages(built: Built) -> list[dict[str, Any]]:
    """What each stage was given and let pass: rows and bytes of text."""
    return [
        {"stage": one.name, "came": vars(one.ledger.came), "kept": vars(one.ledger.kept)}
        | {"dropped": {reason: vars(count) for reason, count in one.ledger.dropped.items()}}
        for one in built.passed
    ]
