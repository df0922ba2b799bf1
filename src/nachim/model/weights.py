"""Where the weights of a run stand in its folder."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = "checkpoint"
WEIGHTS = "weights.safetensors"
PREFIX = "step-"


def path_at(root: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps under `root`."""
    return root / f"{PREFIX}{step:09d}"


def latest(root: Path) -> Path | None:
    """The newest whole checkpoint under `root`; None when there is none."""
    return max(root.glob(f"{PREFIX}*"), default=None)
