"""A Python file as an argument: FILE.py:NAME is a function of it."""

from __future__ import annotations

import importlib.util
import sys
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
    module = _loaded(path)
    found = getattr(module, name, None)
    if not callable(found):
        functions = [
            key
            for key, value in vars(module).items()
            if isinstance(value, types.FunctionType) and value.__module__ == module.__name__
        ]
        raise UserError(f"{path} has no function {name!r}{nearest(name, functions)}")
    return name, found


def _loaded(path: Path) -> types.ModuleType:
    """The file at `path` as a module of its own name; it stays known, for the parts that it defines look it up."""
    name = f"nachim_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it is a file that ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
