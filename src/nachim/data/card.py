"""What a build says of itself: where the text is from, what became of it, and the command that makes it again."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nachim.data.pack import Batches
from nachim.data.pipeline import Built
from nachim.spec.disk import write_text

CARD = "card.json"
LIBRARIES = ("numpy", "pyarrow", "tokenizers")


def card(built: Built, batches: Batches | None, command: str, seconds: float) -> dict[str, Any]:
    """Everything about a build as plain JSON: the ledger, the tokens, the command, versions, and the seconds it took.

    `made` counts the shards that had to be made: 0 for a stage whose result was there already.
    """
    told = built.to_json()
    for stage, one in zip(told["stages"], built.passed, strict=True):
        stage["made"] = one.made
    return {
        "title": built.pipeline.title,
        **told,
        "tokens": _tokens(batches) if batches else None,
        "command": command,
        "seconds": round(seconds, 2),
        "versions": {"nachim": version("nachim"), "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
    }


def write_card(told: dict[str, Any], out: Path) -> None:
    """Write what `card` says into `out`."""
    write_text(out / CARD, json.dumps(told, indent=1) + "\n")


def _tokens(batches: Batches) -> dict[str, Any]:
    prepared = batches.prepared
    names = ("train", "validation", "exact_duplicates", "near_duplicates", "leakage")
    told = {"fingerprint": prepared.fingerprint, **{name: prepared.manifest[name] for name in names}}
    return {**told, "seq_len": batches.seq_len, "packing": batches.packing()}
