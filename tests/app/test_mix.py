"""The verb `nachim mix`: what it prints and writes, and one sentence for what makes no sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nachim.app import ask
from nachim.app.mix import Fit, Weigh, mix, pairs
from nachim.app.mix_law import summarise
from nachim.app.mix_page import write_law, write_online
from nachim.law.mixture import fit_mixture
from nachim.law.mixture_runs import MixtureRuns
from nachim.spec import Files, Ingredient, Mixture, Run, UserError
from tests.spec.examples import RUN


def table(corpora: int, mixtures: int, seed: int = 0) -> MixtureRuns:
    """Runs of a law of so many corpora, each with a held-out text, with a little noise."""
    rng = np.random.default_rng(seed)
    shares = 0.05 + (1 - 0.05 * corpora) * rng.dirichlet(np.ones(corpora), mixtures)
    slopes = np.full((corpora, corpora), 0.2) - 1.5 * np.eye(corpora)
    losses = (1.5 + np.exp(shares @ slopes)) * np.exp(0.002 * rng.standard_normal(shares.shape))
    columns = {f"share/{'abcd'[place]}": column for place, column in enumerate(shares.T)}
    return MixtureRuns.of(columns | {f"loss/{'abcd'[place]}": column for place, column in enumerate(losses.T)})


@pytest.fixture
def told(tmp_path, capsys):
    """What a fit of two corpora says, with its page."""
    table(2, 6).write(tmp_path / "obs.csv")
    assert mix(Fit(obs=tmp_path / "obs.csv", out=tmp_path / "law.html", target=("a=2", "b=1"), json=True)) == 0
    return json.loads(capsys.readouterr().out)


def test_a_fit_says_weights_loss_and_held_out_error(told, tmp_path):
    assert (told["runs"], told["mixtures"], told["corpora"]) == (6, 6, ["a", "b"])
    assert told["target"] == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}
    assert sum(told["weights"].values()) == pytest.approx(1) and told["weights"]["a"] > 0.5
    for name, (low, high) in told["interval90"].items():
        assert low <= told["weights"][name] + 1e-9 and told["weights"][name] <= high + 1e-9
    assert told["loss"]["low"] < told["loss"]["value"] < told["loss"]["high"]
    assert set(told["held_out_error"]) == {"weighted", "a", "b"} and told["held_out_error"]["weighted"] < 2
    assert set(told["coefficients"]["a"]) == {"c", "k", "t/a", "t/b", "alone/a", "alone/b"}
    assert told["loss"]["value"] <= told["best_trained"]["loss"] * 1.01
    page = (tmp_path / "law.html").read_text()
    assert "Loss over the mixture" in page and "Least loss at a " in page


def test_a_fit_in_tables(tmp_path, capsys):
    table(3, 7).write(tmp_path / "obs.csv")
    assert mix(Fit(obs=tmp_path / "obs.csv", most=("a=0.2",))) == 0
    out = capsys.readouterr().out
    assert "weights of least loss" in out and "a is at the most that it may be" in out


@pytest.mark.parametrize("corpora", [3, 4])
def test_pages_of_more_corpora(corpora, tmp_path):
    law = fit_mixture(table(corpora, corpora + 4), draws=30)
    target, best = law.target(), law.best(law.target())
    write_law(tmp_path / "law.html", "a table", law, target, best, summarise(law, target, best, law.largest))
    assert ("scatterternary" in (tmp_path / "law.html").read_text()[-400_000:]) == (corpora == 3)


def test_the_page_of_a_study_says_what_came(told, tmp_path):
    runs = [{"name": name, "loss": [2.0, 1.9, 2.1]} for name in ("chosen", "base")]
    rows = [
        {"name": n, "tokens": 1e6, "measured": 2.05, "error_percent": 2.5, "inside": True} for n in ("chosen", "base")
    ]
    worth = {"multiplier": 1.2, "low": 1.1, "high": 1.3}
    told["sealed"] = {"runs": runs, "worth": worth, "sealed_at": "2026-01-01", "sha256": "ab" * 32}
    told["verdict"] = {"runs": rows, "worth": {"multiplier": 1.15, "low": 1.1, "high": None}, "better": True}
    law = fit_mixture(table(2, 6), draws=30)
    write_law(tmp_path / "report.html", "a study", law, law.target(), law.best(law.target()), told)
    page = (tmp_path / "report.html").read_text()
    assert "worth 1.15 times the tokens, forecast 1.20 (1.10 to 1.30)" in page and "+2.50 %" in page


def test_the_page_of_a_search_shows_weights_over_its_run(tmp_path):
    stretches = [
        {"tokens": 1000 * n, "weights": {"a": 0.5, "b": 0.5}, "excess": {"a": 0.1, "b": -0.1}, "loss": {}}
        for n in (1, 2)
    ]
    found = {"weights": {"a": 0.6, "b": 0.4}, "reference": {"a": 1.0, "b": 1.0}, "stretches": stretches}
    write_online(tmp_path / "online.html", "a search", found)
    assert "The mixture to use: a 60.0%, b 40.0%." in (tmp_path / "online.html").read_text()


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run on two texts, one ten times the other."""
    monkeypatch.setattr(ask, "CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    parts = []
    for name, documents in (("large", 400), ("small", 40)):
        (tmp_path / name).mkdir()
        for number in range(documents):
            words = " ".join(rng.choice(["red", "green", "blue", "seven", "eleven"], 80))
            (tmp_path / name / f"{number}.txt").write_text(f"{number} {words}\n")
        corpus = Files(path=str(tmp_path / name), validation_bytes=3000, near_duplicates=True)
        parts.append(Ingredient(name=name, corpus=corpus, weight=1.0))
    whole: Run = replace(
        RUN, data=replace(RUN.data, corpus=Mixture(ingredients=tuple(parts)), fingerprint_of_tokens="")
    )
    whole.save(tmp_path / "run.json")
    return tmp_path / "run.json"


def test_weights_by_hand_by_size_and_within_what_is_worth_reading(run, tmp_path, capsys):
    tokens = Run.load(run).train.tokens
    assert mix(Weigh(run=run, json=True)) == 0
    plain = json.loads(capsys.readouterr().out)["corpora"]
    assert plain["small"]["share"] == 0.5 and plain["small"]["tokens"] == tokens / 2
    assert plain["small"]["epochs"] == pytest.approx(tokens / 2 / plain["small"]["unique_tokens"])
    mix(Weigh(run=run, temperature=1.0, json=True))
    by_size = json.loads(capsys.readouterr().out)["corpora"]
    assert by_size["large"]["epochs"] == pytest.approx(by_size["small"]["epochs"])
    most = plain["small"]["epochs"] / 2
    mix(Weigh(run=run, most_epochs=most, out=tmp_path / "capped.json", last=0.5, then=("large=1",)))
    assert "run: " in capsys.readouterr().out
    capped = Run.load(tmp_path / "capped.json").data.corpus
    assert capped.changes[0].weights == (1.0, 0.0)
    mix(Weigh(run=run, most_epochs=most, json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["corpora"]["small"]["epochs"] == pytest.approx(most)
    assert "at" in found["notes"][0] and "small would be read" in found["notes"][0]


def test_what_makes_no_sense_is_one_sentence(run, tmp_path):
    alone = Run.load(run)
    replace(alone, data=replace(alone.data, corpus=alone.data.corpus.ingredients[0].corpus)).save(
        tmp_path / "alone.json"
    )
    table(2, 2).write(tmp_path / "two.csv")
    table(2, 6).write(tmp_path / "six.csv")
    (tmp_path / "bad.csv").write_text("share/a,loss/a\n1,2\n")
    for bad, why in (
        (Weigh(run=tmp_path / "alone.json"), "alone.json reads one corpus: give its Data a Mixture"),
        (Weigh(run=run, most_epochs=2.0, worth=0.5), "both say how often a corpus may be read"),
        (Weigh(run=run, last=0.1), "give them as --then NAME=WEIGHT"),
        (Weigh(run=run, then=("large=1",)), "say how they come, with --last or with --ramp"),
        (Weigh(run=run, then=("large",), last=0.1), "--then large: give NAME=NUMBER, such as code=0.5"),
        (Fit(obs=tmp_path / "none.csv"), "none.csv is not a file"),
        (Fit(obs=tmp_path / "two.csv"), "the runs are of 2 mixtures"),
        (Fit(obs=tmp_path / "six.csv", at=("tokens=1e9",)), "--at names 'tokens', in which these runs do not differ"),
        (Fit(obs=tmp_path / "bad.csv"), "bad.csv: there is one corpus, 'a'"),
    ):
        with pytest.raises(UserError, match=why):
            mix(bad)
    assert pairs(("a=1", "b/c=0.5"), "--then") == {"a": 1.0, "b/c": 0.5}
