"""The embedded corpus cleaned: `nachim data build recipes/clean_stdlib.py --out clean`.

A recipe is a function that returns a Pipeline. Copy it, put your own origins and stages in: the pipeline is a value,
and what is built keeps it.
"""

from __future__ import annotations

from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline
from nachim.data.quality import MaskPII, Rules, rules_of
from nachim.spec import BPE, Data, Stdlib


def pipeline() -> Pipeline:
    """The source of Python's standard library: near duplicates out, addresses masked, scored, tokens to train on.

    The rules are for prose, so nothing is dropped by them here: the card shows how code scores.
    """
    return Pipeline(
        title="Python's standard library",
        origins=(Origin(corpus=Stdlib(), licence="PSF-2.0"),),
        stages=(Deduplicate(threshold=0.8), MaskPII(), Rules(rules=rules_of(["gopher-quality"]), drop=False)),
        tokens=Data(tokenizer=BPE(vocab_size=4096), seq_len=256),
        shard_bytes=4_000_000,
    )
