"""The classifier against its loss's own slope and exact counts; calibration against what was drawn."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.sparse as sparse
from scipy.special import softmax

from nachim.data import classify
from nachim.data.classify import Classifier, calibration_error, features, train
from nachim.data.shingle import grams
from nachim.spec import UserError

GOOD = [f"good{i}" for i in range(40)]
BAD = [f"bad{i}" for i in range(40)]
BOTH = [f"word{i}" for i in range(200)]


def made(count, lean, seed=0):
    """Texts of 30 words, a share `lean` of which tell what the text is of."""
    chance = random.Random(seed)
    texts, labels = [], []
    for i in range(count):
        own = GOOD if i % 2 else BAD
        texts.append(" ".join(chance.choice(own if chance.random() < lean else BOTH) for _ in range(30)).encode())
        labels.append("good" if i % 2 else "bad")
    return texts, labels


def test_features_are_log_counts_of_ngrams():
    texts = [b"a b a b a", b"", b"c"]
    x = features(texts, "words", 20).todense()
    counts = {}
    for n in (1, 2):
        for gram in grams([texts[0]], n, fill=False)[0].tolist():
            counts[gram >> 44] = counts.get(gram >> 44, 0) + 1
    assert sorted(counts.values()) == [2, 2, 2, 3]
    values = np.log1p(np.array(list(counts.values())))
    assert x[0, list(counts)] == pytest.approx(values / np.sqrt((values**2).sum()))
    assert (x != 0).sum(axis=1).tolist() == [4, 0, 1]
    assert np.linalg.norm(x, axis=1) == pytest.approx([1, 0, 1])


def test_regression_stops_where_the_loss_is_least():
    chance = np.random.default_rng(0)
    x, y = sparse.csr_array(chance.normal(size=(60, 5))), chance.integers(0, 3, 60)
    penalty = 0.01
    w, b = classify._regression(x, y, 3, penalty, lambda done: None)
    off = (softmax(x @ w + b, axis=1) - np.eye(3)[y]) / 60
    assert np.abs(x.T @ off + penalty * w).max() < 2e-6
    assert np.abs(off.sum(axis=0)).max() < 2e-6


def test_bayes_is_the_log_of_shares():
    x, y = sparse.csr_array([[1.0, 0, 3], [0, 2, 0], [1, 0, 0]]), np.array([0, 1, 0])
    w, b = classify._bayes(x, y, 2)
    prior = classify.PRIOR
    assert w[:, 0] == pytest.approx(
        np.log([(2 + prior) / (5 + 3 * prior), prior / (5 + 3 * prior), (3 + prior) / (5 + 3 * prior)])
    )
    assert w[1, 1] == pytest.approx(np.log((2 + prior) / (2 + 3 * prior)))
    assert b.tolist() == [0, 0]


@pytest.mark.parametrize("fit", ["regression", "bayes"])
def test_good_is_told_from_bad_and_said_with_the_right_odds(fit):
    texts, labels = made(1200, 0.1)
    model, report = train(texts, labels, fit=fit, bits=14)
    assert model.labels == ("bad", "good")
    assert report.texts == 180
    assert 0.8 < report.accuracy < 1
    assert report.error < 0.1
    assert sum(one.texts for one in report.bins) == 180
    other, of = made(600, 0.1, seed=9)
    said = model.probabilities(other)
    assert said.sum(axis=1) == pytest.approx(np.ones(600))
    assert (said.argmax(axis=1) == [label == "good" for label in of]).mean() > 0.8
    assert calibration_error(said, np.array([label == "good" for label in of]).astype(int))[0] < 0.1


def test_calibration_undoes_a_scale_and_a_shift():
    chance = np.random.default_rng(1)
    logits = np.column_stack((np.zeros(20_000), chance.normal(size=20_000) * 2))
    y = (chance.random(20_000) < softmax(logits, axis=1)[:, 1]).astype(int)
    scale, shift = classify._calibration(logits * 5 + [0, 3], y)
    assert scale == pytest.approx(0.2, rel=0.05)
    assert shift[1] - shift[0] == pytest.approx(-0.6, abs=0.06)
    assert calibration_error(softmax(scale * (logits * 5 + [0, 3]) + shift, axis=1), y)[0] < 0.01
    assert calibration_error(softmax(logits * 5 + [0, 3], axis=1), y)[0] > 0.1


def test_the_error_of_calibration_by_hand():
    said = np.array([[0.95, 0.05], [0.92, 0.08], [0.25, 0.75], [0.3, 0.7]])
    error, bins = calibration_error(said, np.array([0, 1, 1, 1]))
    assert error == pytest.approx((2 * abs(0.065 - 0.5) + 2 * abs(0.725 - 1)) / 4)
    assert [(one.low, one.texts, one.true) for one in bins] == [(0.0, 2, 0.5), (0.7, 2, 1.0)]


@pytest.mark.parametrize("name", ["a.npz", "deep/er.model"])
def test_a_classifier_comes_back_the_same(tmp_path, name):
    texts, labels = made(200, 0.3)
    model, _ = train(texts, labels, bits=12)
    model.save(tmp_path / name)
    again = Classifier.load(tmp_path / name)
    assert (again.labels, again.units, again.bits) == (model.labels, "words", 12)
    assert (again.probabilities(texts) == model.probabilities(texts)).all()
    assert (train(texts, labels, bits=12)[0].weights == model.weights).all()


SENTENCES = {
    "en": "the people of the town have seen that there was water in the street when they went out of the house",
    "ko": "마을 사람들은 집에서 나왔을 때 길에 물이 있는 것을 보았다 그리고 아무도 그것을 알지 못했다고 말했다",
    "ja": "町の人々は家を出たときに道に水があるのを見たそして誰もそれを知らなかったと言ったのである",
    "de": "die leute der stadt haben gesehen dass wasser auf der strasse war als sie aus dem haus gegangen sind",
}


def test_languages_are_told_by_their_bytes():
    chance = random.Random(0)
    pieces = {
        language: [text[i : i + 16] for i in chance.choices(range(len(text) - 16), k=60)]
        for language, text in SENTENCES.items()
    }
    texts = [piece.encode() for some in pieces.values() for piece in some]
    labels = [language for language, some in pieces.items() for _ in some]
    model, report = train(texts, labels, units="bytes", fit="bayes", bits=14)
    assert report.accuracy > 0.9
    asked = {
        "en": "in the house they have",
        "ko": "사람들이 물을 보았다",
        "ja": "水を見たのである",
        "de": "das haus der leute",
    }
    found = model.probabilities([text.encode() for text in asked.values()]).argmax(axis=1)
    assert [model.labels[i] for i in found] == list(asked)


def test_bad_input_is_said(tmp_path):
    with pytest.raises(UserError, match="two labels with 10 texts each: a has 12, b has 3"):
        train([b"x"] * 15, ["a"] * 12 + ["b"] * 3)
    with pytest.raises(UserError, match="8 to 24 bits"):
        train([b"x"] * 20, ["a"] * 10 + ["b"] * 10, bits=4)
    (tmp_path / "broken").write_bytes(b"PK")
    for name in ("broken", "none"):
        with pytest.raises(UserError, match="no classifier that can be read"):
            Classifier.load(tmp_path / name)
