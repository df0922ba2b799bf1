"""C++ of our own, compiled once by the compiler of this machine into the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def compiled(source: str, flags: Sequence[str]) -> ctypes.CDLL:
    """The shared library of a file of this folder, made where it is not there yet.

    Raises OSError where there is no compiler or no room, and SubprocessError where it fails.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"
    file = HERE / source
    made_of = file.read_bytes(), compiler, tuple(flags), platform.machine()
    named = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nachim"
    path = folder / f"{file.stem}-{named}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            out = Path(made) / path.name
            command = [*shlex.split(compiler), *flags, "-std=c++17", "-shared", "-fPIC", "-fopenmp", file, "-o", out]
            subprocess.run(command, check=True, capture_output=True, text=True)
            out.replace(path)
    return ctypes.CDLL(str(path))


def told_already() -> None:
    """In a worker, whose parent has told what could not be compiled: not to tell it again."""
    warnings.filterwarnings("ignore", message=r"\w+\.cpp could not be compiled")


def library(source: str, flags: Sequence[str], without: str) -> ctypes.CDLL | None:
    """`compiled`; None, with a warning that says what is so `without`, where that fails."""
    try:
        return compiled(source, flags)
    except (OSError, subprocess.SubprocessError) as error:
        failed = f"{error.cmd[0]} failed" if isinstance(error, subprocess.SubprocessError) else str(error)
        why = (getattr(error, "stderr", None) or failed).strip().splitlines()[0]
        warnings.warn(
            f"{source} could not be compiled ({why}): {without}; install g++, or name a compiler in CXX", stacklevel=3
        )
        return None
