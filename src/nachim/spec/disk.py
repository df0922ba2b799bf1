"""Writing files so that a killed process leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nachim.spec.error import UserError


@contextlib.contextmanager
def full_disk_is_an_error(path: Path | str) -> Iterator[None]:
    """Turn the system's refusal to write `path` into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"disk full while writing {path}: free some space and run again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.ENOENT):
            raise UserError(f"cannot write {path}: {error.strerror}; choose a writable folder") from error
        if error.errno == errno.EFBIG:
            raise UserError(f"cannot write {path}: {error.strerror}; is the disk full, or `ulimit -f` set?") from error
        raise


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it over `path` when the block ends without an error.

    Raises UserError, and removes the temporary file, when the disk is full or not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with full_disk_is_an_error(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear_up(path)
            yield temporary
            _settle(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` when the block ends without an error.

    Raises UserError where `path` is a file or a folder that is not empty, and when the disk is full or not writable.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} is there already: remove it, or choose another folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with full_disk_is_an_error(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have had this number
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                _settle(file)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _settle(path: Path) -> None:
    """Wait until a file's content is on the disk, so that its name never stands for less."""
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _clear_up(path: Path) -> None:
    """Remove what processes that died while replacing `path` left beside it."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = stale.name.split(".")[-2]
        if owner.isdigit() and int(owner) != os.getpid() and not _lives(int(owner)):
            stale.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically. Raises UserError when the disk refuses."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises UserError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and run the same command again") from error


@contextlib.contextmanager
def locked(path: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold the lock file `path` for the block; the system lets go of it when the process dies.

    Raises UserError when another process still holds it after `patience` seconds, or the folder is not writable.
    """
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with open(path, "w", encoding="utf-8") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"{path.parent} is in use by another process: wait for it, or stop it") from error
                time.sleep(0.05)
        yield
