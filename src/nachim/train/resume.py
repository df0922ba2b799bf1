"""Where a run goes on: its folder held against the recipe, and what is damaged in it found and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nachim.model.weights import CHECKPOINT
from nachim.spec import Run, UserError, diff
from nachim.train import checkpoint, manifest
from nachim.train.manifest import Damaged

Say = Callable[[str], None]


def claim(out: Path, run: Run, say: Say) -> None:
    """Write `out/run.json`, or hold `run` against the one that is there. Raises UserError when they differ.

    A file that was damaged is written again where the checkpoints are those of `run`.
    """
    path = out / "run.json"
    if not path.exists():
        run.save(path)
        if _manifests(out / CHECKPOINT, "run"):
            say(f"{path} was missing, and was written again")
        return
    try:
        found = Run.load(path)
        if found == run:
            return
        changes = "; ".join(str(change) for change in diff(found, run))
        why = f"{out} holds another run ({changes}): choose another folder, or remove it"
    except UserError as error:
        why = str(error)
    if run.fingerprint not in _manifests(out / CHECKPOINT, "run"):
        raise UserError(why)
    run.save(path)
    say(f"{path} did not hold the run of its checkpoints, and was written again")


def where_to_begin(root: Path, run: Run, start: Path | None, say: Say) -> Path | None:
    """The checkpoint that `run` goes on from: its newest good one, else `start`, else none.

    Raises UserError when the checkpoints are another run's, when `start` is damaged, and when all are and there is no
    `start`.
    """
    others = _manifests(root, "run") - {run.fingerprint}
    if others:
        raise UserError(f"{root} holds checkpoints of another run than its run.json: restore that, or remove them")
    try:
        found = checkpoint.newest_good(root, say)
    except UserError as error:
        if start is None:
            raise
        say(f"{error}; going on from {start}")
        found = None
    if found is None and start is not None:
        try:
            manifest.check(start)
        except Damaged as error:
            raise UserError(f"cannot start from {start}: {error}; remove its run's folder to train it again") from error
    return found or start


def mend_metrics(path: Path, root: Path, say: Say) -> None:
    """Say so where the metrics beside the checkpoints are not those of any: the next save writes them again."""
    digests = _manifests(root, manifest.METRICS)
    if digests and not path.exists():
        say(f"{path} is missing, and will be written again from the checkpoint's own")
    elif digests and manifest.sha256(path) not in digests:
        say(f"{path} is not what was written, and will be written again from the checkpoint's own")


def _manifests(root: Path, what: str) -> set[str]:
    """What the manifests under `root` that can be read say of a file, its digest, or of the run."""
    found = set()
    for step in checkpoint.steps(root):
        try:
            told = manifest.read(checkpoint.path_at(root, step))
        except Damaged:
            continue
        if told:
            found.add(told["run"] if what == "run" else told["files"].get(what, {}).get("sha256"))
    return found - {None}
