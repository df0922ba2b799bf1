"""n-gram models against Chen and Goodman's equations gone through with dictionaries, and what sums to one."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from nachim.data.arpa import read_arpa, write_arpa
from nachim.data.ngram import discounts, perplexities, sentences_of, train
from nachim.spec import UserError


def made(seed, count=250, words=400):
    """Sentences of a small vocabulary of unequal words, some of one word."""
    chance = random.Random(seed)
    names = [f"w{i}" for i in range(words)]
    odds = [1 / (i + 1) for i in range(words)]
    return [chance.choices(names, odds, k=chance.randrange(1, 12)) for _ in range(count)]


class Reference:
    """Interpolated modified Kneser-Ney, one equation at a time."""

    def __init__(self, sentences, order):
        self.order = order
        raw = [Counter() for _ in range(order + 1)]
        for sentence in sentences:
            words = ["<s>", *sentence, "</s>"]
            for n in range(1, order + 1):
                raw[n].update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        self.counts = [None]
        for n in range(1, order + 1):
            before = Counter(gram[1:] for gram in raw[n + 1]) if n < order else None
            self.counts.append(
                {
                    gram: count if n == order or gram[0] == "<s>" else before[gram]
                    for gram, count in raw[n].items()
                    if gram != ("<s>",)
                }
            )
        self.vocabulary = {gram[0] for gram in self.counts[1]} | {"<unk>"}
        self.discounts = [None, *(self.estimate(Counter(self.counts[n].values())) for n in range(1, order + 1))]
        self.followers = [None, *(defaultdict(list) for _ in range(order))]
        for n in range(1, order + 1):
            for gram, count in self.counts[n].items():
                self.followers[n][gram[:-1]].append(count)

    @staticmethod
    def estimate(t):
        if not all(t[k] for k in (1, 2, 3, 4)):
            return [0, 0.5, 1, 1.5]
        y = t[1] / (t[1] + 2 * t[2])
        return [0, *(k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))]

    def p(self, word, context):
        n = len(context) + 1
        lower = self.p(word, context[1:]) if n > 1 else 1 / len(self.vocabulary)
        counts = self.followers[n].get(context)
        if not counts:
            return lower
        taken = self.discounts[n]
        count = self.counts[n].get((*context, word), 0)
        left = sum(taken[min(one, 3)] for one in counts)
        return max(count - taken[min(count, 3)], 0) / sum(counts) + left / sum(counts) * lower

    def score(self, sentence):
        words = ["<s>", *(word if word in self.vocabulary else "<unk>" for word in sentence), "</s>"]
        spans = ((words[i], tuple(words[max(0, i - self.order + 1) : i])) for i in range(1, len(words)))
        return sum(math.log10(self.p(word, context)) for word, context in spans)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_scores_are_those_of_the_equations(order):
    model, reference = train(made(1), order), Reference(made(1), order)
    asked = [*made(2, 40), ["never", "w1", "seen"], ["w0"], [], ["w0"] * 20]
    scores, words = model.score(asked)
    assert scores == pytest.approx([reference.score(sentence) for sentence in asked], abs=1e-9)
    assert words.tolist() == [len(sentence) + 1 for sentence in asked]


def test_probabilities_after_any_words_sum_to_one():
    model = train(made(3, 300, 60), 3)
    words = [word for word in model.words if word != "<s>"]
    for context in ([], ["w0"], ["w3", "w1"], ["w1", "w1"], ["unknown", "w2"]):
        # a sentence that goes on with each word in turn, less what it costs without it
        base = model.score([context])[0][0] - _last(model, context, "</s>")
        total = sum(10 ** _last(model, context, word) for word in words)
        assert total == pytest.approx(1, abs=1e-9)
        assert base <= 0


def _last(model, context, word):
    """log10 of one word after a context at the beginning of a sentence."""
    ids, sentence = model._run([context])
    run = np.append(ids[:-1], model.ids[word])
    return model._log10(run, sentence[: len(run)])[-1]


def test_scores_do_not_depend_on_what_is_scored_together():
    model, asked = train(made(4), 4), made(5, 30)
    alone = [model.score([sentence])[0][0] for sentence in asked]
    assert model.score(asked)[0].tolist() == alone
    assert model.score([])[0].tolist() == []


def test_an_arpa_file_comes_back_the_same(tmp_path):
    model, asked = train(made(6), 4), made(7, 50)
    write_arpa(model, tmp_path / "a.arpa")
    again = read_arpa(tmp_path / "a.arpa")
    assert again.order == 4
    assert again.score(asked)[0] == pytest.approx(model.score(asked)[0], abs=1e-5)
    write_arpa(again, tmp_path / "b.arpa")
    assert (tmp_path / "b.arpa").read_bytes() == (tmp_path / "a.arpa").read_bytes()


ARPA = """
\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-0.7\ta\t-0.25
-0.9\tb\t-0.125
-1.5\t나\t0

\\2-grams:
-0.3\t<s> a\t-0.0625
-0.4\tb a\t-0.03125
-0.2\ta b

\\3-grams:
-0.1\t<s> a b

\\end\\
"""


def test_backing_off_by_hand(tmp_path):
    path = tmp_path / "m.arpa"
    path.write_text(ARPA, encoding="utf-8")
    model = read_arpa(path)
    asked = [["a", "b"], ["b", "a"], ["나", "x"], ["a", "a"]]
    wanted = [
        -0.3 - 0.1 + (-0.125 - 1.0),  # <s> a | <s> a b | a b has no backoff, b has, then </s>
        (-0.5 - 0.9) - 0.4 + (-0.03125 - 0.25 - 1.0),
        (-0.5 - 1.5) - 100 - 1.0,  # 나's backoff is 0, the unknown word has none
        -0.3 + (-0.0625 - 0.25 - 0.7) + (-0.25 - 1.0),
    ]
    assert model.score(asked)[0] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (ARPA, "nothing", "no ARPA file"),
        ("ngram 2=3", "ngram 3=3", r"line 4: .*how many 2-grams"),
        ("ngram 2=3", "ngram 2=4", "has no 2-gram here, and states 4"),
        ("ngram 2=3", "ngram 2=2", r"lacks \\3-grams: here"),
        ("-0.4\tb a", "x\tb a", "no number"),
        ("-0.4\tb a", "0.4\tb a", "above 0"),
        ("-0.4\tb a", "-0.4\tb c", "'b c'"),
        ("<s> a b\n", "b b b\n", "'b b b'"),
        ("-0.4\tb a", "-0.4\t<s> a", "one 2-gram twice"),
        ("-0.9\tb", "-0.9\ta", "a word twice"),
        ("<s>\t-0.5", "c\t-0.5", "has no <s>"),
        ("\\end\\\n", "", "ends too early"),
    ],
)
def test_a_broken_file_is_told_by_its_line(tmp_path, old, new, match):
    path = tmp_path / "m.arpa"
    path.write_text(ARPA.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=match):
        read_arpa(path)


def test_discounts():
    counts = np.array(list(itertools.chain.from_iterable([k] * t for k, t in ((1, 100), (2, 40), (3, 20), (4, 12)))))
    y = 100 / 180
    assert discounts(counts) == pytest.approx((1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.6))
    assert discounts(np.array([1, 1, 2])) == (0.5, 1.0, 1.5)
    assert discounts(np.repeat([1, 2, 3, 4], [1, 1, 50, 1])) == (0.5, 1.0, 1.5)


def test_perplexity_of_texts():
    text = "The cat sat.\n\nThe dog ran 12 miles!\n"
    assert sentences_of(text) == [["the", "cat", "sat", "."], ["the", "dog", "ran", "00", "miles", "!"]]
    model = train(sentences_of(text * 3), 2)
    same, other, none = perplexities(model, [text, "Zebras quack often", " \n "])
    scores, words = model.score(sentences_of(text))
    assert same == pytest.approx(10 ** (-scores.sum() / words.sum()))
    assert same < other
    assert math.isnan(none)


@pytest.mark.parametrize(
    ("sentences", "order", "match"),
    [([["a"]], 0, "give 1 to 10"), ([[]], 2, "not one word"), ([], 2, "not one word"), ([["a", "<s>"]], 2, "marks")],
)
def test_what_cannot_be_trained_is_said(sentences, order, match):
    with pytest.raises(UserError, match=match):
        train(sentences, order)
