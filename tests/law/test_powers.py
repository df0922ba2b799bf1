from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from nachim.law import LAWS, Observations, fit
from nachim.law.laws import ALL
from nachim.law.powers import Powers, Term
from tests.law.ladders import ladder

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"


class Plain(Powers):
    """Chinchilla's law, declared."""

    name = "plain"
    formula = "E + A·x^-alpha + B·D^-beta"
    source = "arXiv 2203.15556 eq. 2"
    terms = (Term("A", alpha="x"), Term("B", beta="tokens"))


def test_chinchilla_declared_is_chinchilla():
    """Value, slope, curvature and the fit to noisy runs are those of the law programmed by hand."""
    by_hand, declared = LAWS["chinchilla"], Plain()
    z, logs = np.array([0.5, -1.0, -0.9, 0.3, 0.4]), np.random.default_rng(0).normal(size=(2, 9))
    ours, theirs = declared.expand(z, *logs), by_hand.expand(z, *logs)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12)
    np.testing.assert_allclose(ours[2](logs[0]), theirs[2](logs[0]), atol=1e-12)
    obs = ladder(by_hand, np.random.default_rng(1), 0.01)
    assert fit(obs, declared, "params").coefficients == pytest.approx(
        fit(obs, by_hand, "params").coefficients, rel=1e-6
    )


def test_weights_leave_runs_out_of_the_starts():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(1), 0.0)
    broken = np.where(np.arange(30) < 3, 50.0, obs.loss)
    weight = np.where(np.arange(30) < 3, 0.0, 1.0)
    found = fit(Observations(obs.tokens, broken, params=obs.params, weight=weight), Plain(), "params")
    assert found.objective < 1e-25


def test_the_walk_through_of_adding_a_law_runs_as_printed():
    """The code block under "Adding a law" defines a law, fits it, and finds the coefficients it wrote."""
    block = re.search(r"## Adding a law.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block is not None
    names: dict[str, object] = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block[1], str(PAGE), "exec"), names)
    coefficients = names["found"].coefficients  # type: ignore[attr-defined]
    assert coefficients == pytest.approx(
        {"E": 1.6, "A": 400, "B": 410, "K": 2, "alpha": 0.34, "beta": 0.28, "kappa": 0.3}
    )
    assert "'kappa': 0.3" in said.getvalue()


def test_the_page_names_every_law_with_its_source_and_columns():
    text = PAGE.read_text(encoding="utf-8")
    for name, law in ALL.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert law.source.split(",")[0].split(" eq")[0] in row
        assert row.rstrip(" |").endswith(f"| {law.size + 1}")
        for column in set(law.inputs) - {"x", "tokens"}:
            assert f"`{column}`" in row
