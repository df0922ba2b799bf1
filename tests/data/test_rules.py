"""Every rule against its definition, followed step by step on texts made and found."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from nachim.data.passage import WORD, Passage, sentences
from nachim.data.rules import (
    C4,
    FAMILIES,
    FINEWEB,
    GOPHER_QUALITY,
    GOPHER_REPETITION,
    C4Sentences,
    FineWebLineEnds,
    GopherRuns,
    GopherTop,
    GopherWords,
    Rule,
    broken,
    c4_lines,
    scores_of,
)
from nachim.spec import UserError

ALL = [rule for rules in FAMILIES.values() for rule in rules]
PROSE = (
    "The sea was calm that morning, and the boats that had left at dawn were hardly to be seen. We sat with our tea "
    "and talked of the harvest, which the rain of the last weeks had made late. Nobody had thought of the bridge. "
    "It is said that it was built by hand; I have never met anyone who could say when, or for whom it was meant.\n"
    "Later a man came up the path with two dogs. He asked whether we had seen a child. None of us had."
)


def made(seed):
    """A text of few words, lines and paragraphs, so that all of them come again."""
    chance = random.Random(seed)
    words = ["the", "of", "and", "x1", "22", "été", "나무", "...", "#", "a_b", "don't", "-", "•", "long" * 4]
    lines = [
        " ".join(chance.choices(words, k=chance.randrange(1, 9))) + chance.choice(["", ".", "…", "!"]) for _ in range(6)
    ]
    return "".join(chance.choice(lines) + chance.choice(["\n", "\n", "\n\n", "\n\n\n"]) for _ in range(25))


def repeats(pieces):
    """Pieces that stood before, and their characters."""
    before = [piece for i, piece in enumerate(pieces) if piece in pieces[:i]]
    return len(before), sum(map(len, before))


def top(words, n, size):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not grams:
        return 0
    counts = Counter(grams)
    best = next(gram for gram in grams if counts[gram] == max(counts.values()))
    return len(" ".join(best)) * counts[best] / size


def runs(words, n, size):
    seen, characters, at = set(), 0, 0
    while at + n <= len(words):
        gram = tuple(words[at : at + n])
        if gram in seen:
            characters += len("".join(gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return characters / size


@pytest.mark.parametrize("seed", range(12))
def test_repetition_is_what_going_through_the_text_gives(seed):
    text = made(seed)
    words, size = WORD.findall(text), len(text)
    blocks, paragraphs = re.split(r"\n+", text), re.split(r"\n{2,}", text.strip())
    found = scores_of(GOPHER_REPETITION, text)
    wanted = {
        "gopher_lines": repeats(blocks)[0] / len(blocks),
        "gopher_paragraphs": repeats(paragraphs)[0] / len(paragraphs),
        "gopher_line_characters": repeats(blocks)[1] / size,
        "gopher_paragraph_characters": repeats(paragraphs)[1] / size,
        **{f"gopher_top_{n}": top(words, n, size) for n in (2, 3, 4)},
        **{f"gopher_runs_{n}": runs(words, n, size) for n in range(5, 11)},
    }
    assert found == pytest.approx(wanted, abs=1e-12)
    assert any(wanted[f"gopher_runs_{n}"] for n in (5, 6))


@pytest.mark.parametrize("seed", range(6))
def test_quality_is_what_counting_gives(seed):
    text = made(seed)
    words, lines = WORD.findall(text), text.splitlines()
    spoken = [word for word in words if any(sign.isalnum() for sign in word)]
    assert scores_of(GOPHER_QUALITY, text) == pytest.approx(
        {
            "gopher_words": len(spoken),
            "gopher_word_length": sum(map(len, spoken)) / len(spoken),
            "gopher_hashes": text.count("#") / len(words),
            "gopher_ellipses": (text.count("...") + text.count("…")) / len(words),
            "gopher_bullets": sum(line.strip()[:1] in ("•", "-") for line in lines) / len(lines),
            "gopher_line_ellipses": sum(line.strip()[-1:] == "…" or line.strip()[-3:] == "..." for line in lines)
            / len(lines),
            "gopher_letters": sum(any(sign.isalpha() for sign in word) for word in words) / len(words),
            "gopher_stop_words": len({"the", "of", "and"} & set(words)),
        }
    )
    written = [line for line in text.split("\n") if line]
    assert scores_of(FINEWEB, text) == pytest.approx(
        {
            "fine_web_line_ends": sum(line[-1] in ".!…" for line in written) / len(written),
            "fine_web_short_lines": sum(len(line) <= 30 for line in written) / len(written),
            "fine_web_line_characters": repeats(written)[1] / len(text.replace("\n", "")),
            "fine_web_newlines": text.count("\n") / len(words),
        }
    )


def test_good_prose_keeps_every_rule():
    assert broken(ALL, scores_of(ALL, PROSE)) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Too short to say anything of the matter and that.", "gopher_words"),
        (PROSE.replace(" of ", " { "), "c4_brackets"),
        (PROSE + " Lorem Ipsum dolor.", "c4_lorem_ipsum"),
        ("\n".join(f"- {word}" for word in PROSE.split()), "gopher_bullets"),
        ("\n".join(f"{line}..." for line in PROSE.split(".")), "gopher_line_ellipses"),
        (re.sub(r"\b(the|be|to|of|and|that|have|with)\b", "ho", PROSE), "gopher_stop_words"),
        (PROSE + " 12 34 56 78 90" * 20, "gopher_letters"),
        (" ".join(["a", "b", "c", "d", "e", "f"] * 20), "gopher_word_length"),
        (PROSE.replace(" ", " # "), "gopher_hashes"),
        ((PROSE + "\n\n") * 3, "gopher_paragraphs"),
        (PROSE.replace("\n", " ") * 2, "gopher_runs_10"),
        (PROSE.replace(".", ""), "fine_web_line_ends"),
        (PROSE.replace(", ", ",\n").replace(". ", ".\n").replace(" that", "\nthat").replace(" of", "\nof")
         .replace(" we", "\nwe").replace(" was", "\nwas").replace(" it ", "\nit "), "fine_web_short_lines"),
        (PROSE.replace(" ", "\n"), "fine_web_newlines"),
    ],
)  # fmt: skip
def test_a_fault_breaks_its_rule(text, name):
    assert name in broken(ALL, scores_of(ALL, text))


def test_what_c4_keeps_of_lines():
    text = (
        "A line with an end.\nNo end here\nToo few.\nPlease enable JavaScript to see this.\n"
        "We use cookies and more cookies.\nHe said so.[3]\n" + "w" * 1001 + " is a long word.\nAnd so on and on...\n"
        '"Quoted," she said, "at last"'
    )
    kept, dropped = c4_lines(text)
    assert kept == ["A line with an end.", "He said so.", '"Quoted," she said, "at last"']
    assert dropped == {"no terminal mark": 2, "few words": 1, "javascript": 1, "policy": 1, "long word": 1}
    assert C4Sentences().score(Passage(text)) == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One.", 1),
        ("One. Two", 2),
        ('He left. "Why?" So.', 3),
        ("3.14 is pi.", 1),
        ("水。火！土", 3),
        ("..", 1),
    ],
)
def test_sentences_are_counted(text, count):
    assert sentences(text) == count


@pytest.mark.parametrize("text", ["", " \n\n ", "...", "\x00", "나", "{" * 50])
@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.name)
def test_every_text_has_a_finite_score(rule, text):
    assert 0 <= rule.score(Passage(text)) < 100


def test_words_of_scripts_without_spaces():
    assert WORD.findall("東京へ行く, l'été don't 나무는 x_1 <<=") == [
        *("東", "京", "へ", "行", "く", ",", "l'été", "don't", "나무는", "x_1", "<<=")
    ]


def test_a_rule_is_a_value_with_its_source_and_limits():
    assert len({rule.name for rule in ALL}) == len(ALL)
    assert all(rule.SOURCE.startswith("arXiv ") for rule in ALL)
    for rule in ALL:
        assert Rule.from_json(rule.to_json()) == rule
        assert rule.keeps(rule.most if rule.most is not None else rule.least)
    strict = GopherWords(least=10, most=20)
    assert [strict.keeps(score) for score in (9, 10, 20, 21)] == [False, True, True, False]
    assert FineWebLineEnds(marks=";").score(Passage("a;\nb.")) == 0.5
    assert C4[0].name == "c4_sentences"


def test_limits_that_keep_nothing_are_refused():
    with pytest.raises(UserError, match="above most"):
        GopherWords(least=5, most=4)
    for kind in (GopherTop, GopherRuns):
        with pytest.raises(UserError, match="must be above 0"):
            kind(n=0)


def test_words_of_ascii_are_those_of_any_text():
    chance = random.Random(0)
    for _ in range(300):
        text = "".join(chance.choice([chr(chance.randrange(128)), "a", "b7_", "'", " "]) for _ in range(60))
        assert Passage(text).words == WORD.findall(text)
    assert Passage("\x1c\x1da\x1e'\x1f'").words == ["a", "'", "'"]
