"""What `nachim fit --by group` prints: each corpus's law, the tests, how the optimum shifts, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nachim.app.fit import fit
from nachim.law import LAWS, Observations, concat
from nachim.spec.error import UserError

LAW = LAWS["chinchilla"]
GOOD = {"E": 1.7, "A": 400.0, "B": 420.0, "alpha": 0.34, "beta": 0.30}
POOR = GOOD | {"E": 1.9, "B": 600.0}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """30 runs on each of two corpora of equal exponents; row 8 is badly tuned."""
    rng = np.random.default_rng(0)
    x = np.repeat([3e6, 1e7, 3e7, 1e8, 3e8], 6)
    tokens = np.tile(np.geomspace(5, 160, 6), 5) * x
    parts = []
    for name, theta in (("web", GOOD), ("books", POOR)):
        loss = LAW.predict(theta, x, tokens) * np.exp(0.002 * rng.standard_normal(30))
        loss[7] *= 1.0 + 0.2 * (name == "web")
        parts.append(Observations(tokens, loss, params=x, group=np.array([name] * 30)))
    concat(parts).write(tmp_path / "runs.csv")
    return tmp_path / "runs.csv"


def test_corpora_are_compared(runs, capsys):
    assert fit(runs, by="group", law="chinchilla", flops=1e21, json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["runs"]) for one in found["corpora"]] == [("web", 30), ("books", 30)]
    low, high = found["corpora"][1]["interval90"]["beta"]
    assert low < found["corpora"][1]["coefficients"]["beta"] < high
    assert found["exponents_differ"]["p"] > 0.05 > found["floor_differs"]["p"]
    first, second = found["shared"]
    assert first["tokens_per_x"] == pytest.approx(first["tokens"] / first["x"])
    low, high = second["ratio_interval90"]
    truth = float(LAW.allocation(POOR, 1e21, "params")[0] / LAW.allocation(GOOD, 1e21, "params")[0])
    assert low < truth < high < 1
    assert found["verdict"][0].startswith("no difference of exponents is seen")
    assert found["verdict"][1].startswith("books: at 1e+21 FLOPs its best x is 0.")
    assert found["verdict"][1].endswith("times web's: smaller models on more tokens")
    assert [flag["row"] for flag in found["flags"]] == [8]
    assert fit(runs, by="group", law="chinchilla", flops=1e21) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("tokens per param", "same exponents? p =", "books: at 1e+21", "flagged: row 8: under-tuned"):
        assert text in shown


def test_what_compares_nothing_is_refused(runs):
    lines = runs.read_text().splitlines()
    for kept, said in ((31, "holds one corpus, 'web'"), (34, "books: 3 runs cannot determine")):
        runs.write_text("\n".join(lines[:kept]) + "\n")
        with pytest.raises(UserError, match=said):
            fit(runs, by="group")


def test_options_that_read_one_corpus_are_refused_and_flagged_rows_dropped(runs, capsys):
    for options in ({"holdout": runs}, {"bootstrap": 50}):
        with pytest.raises(UserError, match="does not go with --by group"):
            fit(runs, by="group", **options)
    fit(runs, by="group", drop_flagged=True, json=True)
    kept = json.loads(capsys.readouterr().out)
    fit(runs, by="group", json=True)
    assert json.loads(capsys.readouterr().out) != kept
