"""What a build says of itself: where the text is from, what became of it, and the command that makes it again."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nachim
from nachim.data.pipeline import Built
from nachim.data.prepared import Prepared
from nachim.spec.disk import write_text

CARD = "card.json"
LIBRARIES = ("numpy", "pyarrow", "tokenizers")


def card(built: Built, prepared: Prepared | None, command: str, seconds: float) -> dict[str, Any]:
    """Everything about a build as plain JSON: the ledger, the tokens, the command, versions, and the seconds it took.

    `made` counts the shards that had to be made: 0 for a stage whose result was there already.
    """
    told = built.to_json()
    for stage, one in zip(told["stages"], built.passed, strict=True):
        stage["made"] = one.made
    return {
        "title": built.pipeline.title,
        **told,
        "tokens": _tokens(prepared) if prepared else None,
        "command": command,
        "seconds": round(seconds, 2),
        "versions": {"nachim": nachim.__version__, "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
    }


def write_card(told: dict[str, Any], out: Path) -> None:
    """Write what `card` says into `out`."""
    write_text(out / CARD, json.dumps(told, indent=1) + "\n")


def _tokens(prepared: Prepared) -> dict[str, Any]:
    names = ("train", "validation", "exact_duplicates", "near_duplicates", "leakage")
    return {"fingerprint": prepared.fingerprint, **{name: prepared.manifest[name] for name in names}}
