"""The rules of the house that no linter knows: sizes, docstrings, reasons, floors without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FILE_LIMIT = 400
FUNCTION_LIMIT = 60

# Imports the floors in full (every module, not just what their __init__ names), then says what came along.
LIST_HEAVY = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(found.name)
print(*sorted({"torch", "transformers"} & set(sys.modules)))
"""


def sources(*folders: str) -> list[Path]:
    """Every Python file below the named folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def where(path: Path, node: ast.AST | None = None) -> str:
    """`path` from the repository's root, with the line of `node`, as an editor opens it."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a module with its dotted name: methods and nested ones too."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}" if prefix else node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, name)


def long_functions(path: Path) -> list[str]:
    """One line for each function of `path` at or over the limit."""
    return [
        f"{where(path, node)}: {name} has {lines} lines"
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8")))
        if (lines := node.end_lineno - node.lineno + 1) >= FUNCTION_LIMIT
    ]


def undocumented(path: Path) -> list[str]:
    """One line for each of these in `path` without a docstring: the module, public functions and classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, named) and not node.name.startswith("_")]
    missing = [node for node in [tree, *public] if not ast.get_docstring(node)]
    return [f"{where(path, node)}: {getattr(node, 'name', 'the module')} has no docstring" for node in missing]


def declared() -> dict[str, list[str]]:
    """The dependencies that pyproject.toml declares: those of the core under '', then each extra's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def test_files_can_be_read_at_a_sitting():
    counts = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources("src", "tests", "recipes", "bench")
    }
    long = [f"{where(path)}: {lines} lines" for path, lines in counts.items() if lines >= FILE_LIMIT]
    assert not long, f"files of {FILE_LIMIT} lines or more:\n" + "\n".join(long)


def test_functions_can_be_read_at_a_glance():
    long = [line for path in sources("src", "recipes", "bench") for line in long_functions(path)]
    assert not long, f"functions of {FUNCTION_LIMIT} lines or more:\n" + "\n".join(long)


def test_no_two_parts_have_one_name():
    """A part's name is its tag in JSON: of two, whichever was imported last would be read."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources("src")]
    made = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base) for base in node.bases] for node in made}
    parts = {"Part"}
    while more := {name for name, of in bases.items() if parts & set(of)} - parts:
        parts |= more
    named = [node.name for node in made if node.name in parts and parts & {ast.unparse(base) for base in node.bases}]
    assert not {name for name in named if named.count(name) > 1}


def test_whatever_is_public_has_a_docstring():
    missing = [line for path in sources("src/nachim") for line in undocumented(path)]
    assert not missing, "public and undocumented:\n" + "\n".join(missing)


@pytest.mark.parametrize("module", ["nachim.spec", "nachim.law", "nachim.budget", "nachim.data", "nachim.app.cli"])
def test_torch_is_not_loaded_by(module):
    command = [sys.executable, "-c", LIST_HEAVY, module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"importing {module} failed:\n{done.stderr}"
    assert not done.stdout.strip(), f"importing {module} loads {done.stdout.strip()}"


def test_each_dependency_states_its_reason():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for requirement in [item for items in declared().values() for item in items]:
        line = next(line for line in lines if line.strip().startswith(f'"{requirement}"'))
        assert re.search(r",\s+# \w", line), f"pyproject.toml: {requirement} has no reason beside it"


def test_each_dependency_is_pinned_within_its_range():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    for requirement in [Requirement(item) for items in declared().values() for item in items]:
        pin = pins.get(requirement.name)
        assert pin, f"constraints.txt: {requirement.name} has no pin"
        assert requirement.specifier.contains(pin), f"constraints.txt: {requirement.name}=={pin} is not {requirement}"


def test_the_tests_see_this_tree():
    found = find_spec("nachim")
    assert found, "nachim is not installed: run `make test`"
    assert Path(found.origin) == ROOT / "src" / "nachim" / "__init__.py"
