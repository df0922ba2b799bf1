"""The command line itself: verbs are found by name, and only the one asked for is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nachim.app.cli import VERBS, function_of


def nachim(*words: str, after: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\nfrom nachim.app.cli import main\ntry:\n    main()\nfinally:\n    {after or 'pass'}"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_function(verb):
    assert function_of(verb).__name__.rstrip("_") == verb  # `next` is a builtin


def test_a_verb_loads_only_itself():
    done = nachim("plan", "--help", after="print('nachim.app.report' in sys.modules, 'plotly' in sys.modules)")
    assert "--unique-tokens" in done.stdout
    assert done.stdout.split()[-2:] == ["False", "False"]


def test_help_lists_every_verb():
    done = nachim("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


def test_a_misspelt_verb_is_an_error_that_lists_the_right_ones():
    done = nachim("pln", "--flops", "1e21")
    assert done.returncode == 2
    assert "plan" in done.stdout + done.stderr


def test_no_verb_is_an_error():
    assert nachim().returncode == 2
