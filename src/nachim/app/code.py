"""A Python file as an argument: FILE.py:NAME is a function of it."""

from __future__ import annotations

import runpy
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nachim.spec import UserError
from nachim.spec.error import nearest


def is_code(source: Path) -> bool:
    """Whether `source` is FILE.py or FILE.py:NAME."""
    return source.suffix == ".py" or ".py:" in str(source)


def function_in(source: Path, default: str) -> tuple[str, Callable[..., Any]]:
    """Name and function of FILE.py:NAME, or the `default` one of FILE.py. Raises UserError when there is none."""
    file, _, name = str(source).partition(".py:")
    path, name = (Path(f"{file}.py"), name) if name else (source, default)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    known = runpy.run_path(str(path))
    found = known.get(name)
    if not callable(found):
        functions = [key for key, value in known.items() if _is_own(value)]
        raise UserError(f"{path} has no function {name!r}{nearest(name, functions)}")
    return name, found


def _is_own(value: object) -> bool:
    """Whether `value` is a function that the file defines, not one that it imports."""
    return isinstance(value, types.FunctionType) and value.__module__ == "<run_path>"
