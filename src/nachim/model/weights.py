"""Where the weights of a run stand in its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nachim.spec import UserError

CHECKPOINT = "checkpoint"
WEIGHTS = "weights.safetensors"
PREFIX = "step-"


def path_at(root: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps under `root`."""
    return root / f"{PREFIX}{step:09d}"


def latest(root: Path) -> Path | None:
    """The newest whole checkpoint under `root`; None when there is none."""
    return max(root.glob(f"{PREFIX}*"), default=None)


def fingerprint(run: Path) -> str:
    """SHA-256 (hex) of the newest weights of the run in the folder `run`. Raises UserError where there are none."""
    newest = latest(run / CHECKPOINT)
    if newest is None or not (newest / WEIGHTS).is_file():
        raise UserError(f"{run} has no weights: `nachim train`, `nachim import` and `nachim convert` write them")
    with (newest / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
