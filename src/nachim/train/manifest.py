"""The manifest of a checkpoint: length and SHA-256 of each of its files, written last, so that damage is seen."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from nachim.spec import UserError

MANIFEST = "manifest.json"
METRICS = "metrics.parquet"
RESULT = "result.json"


class Damaged(UserError):
    """A checkpoint is not what was written; the message says which file, and how it differs."""


def seal(folder: Path, run: str) -> None:
    """Write the manifest of all files in `folder`, a checkpoint of the run with the fingerprint `run`, and sync all."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        sync(path)
    (folder / MANIFEST).write_text(_text({"run": run, "files": files}), encoding="utf-8")
    for path in (folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def check(folder: Path) -> None:
    """Hold every file of a checkpoint against its manifest. Raises Damaged at the first that differs.

    A checkpoint from before there were manifests passes: it has no metrics of its own either.
    """
    for name, found in read(folder).get("files", {}).items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != found["bytes"]:
            raise Damaged(f"{name} has {path.stat().st_size:,} bytes of {found['bytes']:,}")
        if sha256(path) != found["sha256"]:
            raise Damaged(f"{name} is not what was written: its SHA-256 differs")


def read(folder: Path) -> dict[str, Any]:
    """The manifest in `folder`, empty for a checkpoint from before there were any. Raises Damaged."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        value = json.loads(text)
    except FileNotFoundError as error:
        if (folder / METRICS).exists() or not any(folder.iterdir()):
            raise Damaged(f"{MANIFEST} is missing") from error
        return {}
    except (OSError, ValueError) as error:
        raise Damaged(f"{MANIFEST} cannot be read") from error
    if not isinstance(value, dict) or text != _text({name: value.get(name) for name in ("run", "files")}):
        raise Damaged(f"{MANIFEST} is not what was written")
    return value


def result_text(value: dict[str, Any]) -> str:
    """A run's result as it is written: its own digest is its last entry."""
    return json.dumps(value | {"sha256": _digest(value)}, indent=2) + "\n"


def read_result(path: Path) -> dict[str, Any]:
    """The result in `path`, without its digest. Raises Damaged when it is not what was written; one that never had a
    digest is believed."""
    advice = "remove it, and run the same command again to have it written anew"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error}): {advice}") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path} holds no result: {advice}")
    rest = {name: held for name, held in value.items() if name != "sha256"}
    if value.get("sha256", _digest(rest)) != _digest(rest):
        raise Damaged(f"{path} is not what was written, its SHA-256 differs: {advice}")
    return rest


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the system write a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _text(value: dict[str, Any]) -> str:
    """The one text of a manifest, which ends with its own digest: a change of a single bit shows."""
    return json.dumps(value | {"sha256": _digest(value)}, indent=1, sort_keys=True) + "\n"


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
