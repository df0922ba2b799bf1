"""The verb `nachim convert`: a trained model with fewer key-value heads, to be trained on."""

from __future__ import annotations

import json as jsonlib
import shutil
from pathlib import Path
from typing import Annotated, Any

import tyro

from nachim.data.prepared import TOKENIZER
from nachim.spec.disk import new_folder


def convert(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    kv_heads: int,
    json: bool = False,
) -> int:
    """Write a run's newest weights with fewer heads of keys and values: each the mean of those it takes the place of.

    The cache shrinks in proportion, and the loss rises until training goes on: a twentieth of the first tokens wins
    most of it back in large models (arXiv 2305.13245), half of it in a small one (ideas/uptraining.md). Put what this
    prints as `start` into a recipe, beside the model in DIR/run.json.

    Example: nachim convert runs/first runs/grouped --kv-heads 1

    Args:
        run: The folder of a run, trained here or imported.
        out: The run folder to write; it must be new or empty.
        kv_heads: Heads of keys and values in every attention; it must divide those it has.
        json: Print one JSON object instead of sentences.
    """
    summary = converted(run, out, kv_heads)
    if json:
        print(jsonlib.dumps(summary))
    else:
        before, after = summary["cache_bytes_per_token"]
        print(f"{out}: {summary['params_total']:,} parameters; a token's cache goes from {before:,} to {after:,} bytes")
        print(f'train on with: start=Start(folder="{out}", fingerprint="{summary["fingerprint"]}")')
    return 0


def converted(run: Path, out: Path, kv_heads: int) -> dict[str, Any]:
    """Write the folder; what was written, as plain JSON values."""
    from nachim.model.hf.checkpoint import ORIGIN
    from nachim.model.hf.source import own, save
    from nachim.model.load import RUN, open_run
    from nachim.model.uptrain import pooled
    from nachim.model.weights import CHECKPOINT, WEIGHTS, fingerprint, path_at

    before, source = open_run(run)
    decoder, weights = pooled(before, source, kv_heads)
    with new_folder(out) as folder:
        step = path_at(folder / CHECKPOINT, 0)
        step.mkdir(parents=True)
        save({name: own(tensor) for name, tensor in weights.items()}, step / WEIGHTS)
        decoder.save(folder / RUN)
        if (run / TOKENIZER).is_file():
            shutil.copyfile(run / TOKENIZER, folder / TOKENIZER)
        if (run / ORIGIN).is_dir():
            shutil.copytree(run / ORIGIN, folder / ORIGIN)
    return {
        "out": str(out),
        "params_total": decoder.params_total,
        "cache_bytes_per_token": [shape.cache_bytes(2) - shape.cache_bytes(1) for shape in (before, decoder)],
        "fingerprint": fingerprint(out),
    }
