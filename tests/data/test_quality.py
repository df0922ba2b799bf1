"""Stages write their scores on every row, and drop what is out of bounds under the score's name."""

from __future__ import annotations

import pytest

from nachim.data.arpa import write_arpa
from nachim.data.classify import train as train_classifier
from nachim.data.ngram import perplexities, sentences_of, train
from nachim.data.quality import ALL_RULES, C4Lines, Classified, Language, MaskPII, Perplexity, Rules, rules_of
from nachim.data.rules import C4, C4Brackets, GopherWords
from nachim.data.stage import Drop, Stage
from nachim.spec import UserError


def rows(*texts):
    return [{"id": i, "text": text, "source": "s"} for i, text in enumerate(texts)]


def reasons(outcomes):
    return [one.reason if isinstance(one, Drop) else "" for one in outcomes]


def test_rules_drop_under_the_first_that_is_broken_and_score_all():
    stage = Rules(rules=(GopherWords(least=3), C4Brackets()))
    found = stage.many(rows("one two three", "{ one }", "a b c {"))
    assert reasons(found) == ["", "gopher_words", "c4_brackets"]
    assert found[0] == {"id": 0, "text": "one two three", "source": "s", "gopher_words": 3.0, "c4_brackets": 0.0}
    assert found[1].row["c4_brackets"] == 1
    assert found[1].about == "gopher_words 1, c4_brackets 1"
    scored = Rules(rules=stage.rules, drop=False).many(rows("{ one }"))
    assert scored[0]["gopher_words"] == 1
    assert set(Rules(drop=False).one(rows("x")[0])) == {"id", "text", "source", *(rule.name for rule in ALL_RULES)}


def test_a_stage_of_rules_is_a_value():
    stage = Rules(rules=(*C4, GopherWords(most=700.0)))
    assert Stage.from_json(stage.to_json()) == stage
    with pytest.raises(UserError, match="gopher_words 2 times"):
        Rules(rules=(GopherWords(), GopherWords(least=2)))
    assert rules_of(["c4"]) == C4
    with pytest.raises(UserError, match="did you mean 'gopher-quality'"):
        rules_of(["gofer-quality"])


def test_lines_are_left_as_c4_does():
    found = C4Lines().many(rows("Home\nThis is a line.\nMenu | About", "Home"))
    assert found[0] == {"id": 0, "text": "This is a line.", "source": "s", "c4_lines_dropped": 2}
    assert found[1] == Drop("no line kept", "no terminal mark 1")


def test_both_tails_of_perplexity_are_cut(tmp_path):
    text = "the cat sat on the mat\nthe dog sat on the cat\nthe mat was on the dog\n" * 20
    model = train(sentences_of(text), 2)
    path = tmp_path / "m.arpa"
    write_arpa(model, path)
    asked = ["the cat sat on the dog", "zebra quark flux", "on sat mat cat the was"]
    low, middle, high = sorted(perplexities(model, asked).tolist())
    stage = Perplexity(model=str(path), least=(low + middle) / 2, most=(middle + high) / 2)
    assert stage.files() == (path,)
    found = stage.many(rows(*asked, " \n "))
    assert sorted(reasons(found)) == ["", "no word", "perplexity too high", "perplexity too low"]
    kept = [row["perplexity"] for row in found if not isinstance(row, Drop)]
    assert kept == pytest.approx([middle], rel=1e-4)
    assert reasons(found)[0] == "perplexity too low"
    with pytest.raises(UserError, match="above most"):
        Perplexity(model="m", least=2, most=1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    texts = [f"good words here {i}" for i in range(30)] + [f"나쁜 글 {i}" for i in range(30)]
    path = tmp_path_factory.mktemp("model") / "m.npz"
    train_classifier([text.encode() for text in texts], ["en"] * 30 + ["ko"] * 30, units="bytes", fit="bayes")[0].save(
        path
    )
    return path


def test_a_classifier_scores_and_drops(classifier):
    stage = Classified(model=str(classifier), label="en", least=0.5, name="english")
    found = stage.many(rows("good words", "나쁜 글"))
    assert reasons(found) == ["", "english too low"]
    assert found[0]["english"] > 0.5 > found[1].row["english"]
    with pytest.raises(UserError, match=r"label is 'eng', .*did you mean 'en'"):
        Classified(model=str(classifier), label="eng").many(rows("a"))


def test_languages_are_told_and_kept(classifier):
    asked = rows("good words", "나쁜 글")
    found = Language(model=str(classifier)).many(asked)
    assert [row["language"] for row in found] == ["en", "ko"]
    assert all(0.5 < row["language_share"] <= 1 for row in found)
    assert reasons(Language(model=str(classifier), keep=("ko",)).many(asked)) == ["other language", ""]
    assert reasons(Language(model=str(classifier), least=1.1).many(asked)) == ["language uncertain"] * 2
    with pytest.raises(UserError, match="keep has 'kr'"):
        Language(model=str(classifier), keep=("kr",)).many(asked)


def test_what_tells_of_persons_is_masked_and_counted():
    found = MaskPII().many(rows("Write to jane@example.org or bob@example.org."))
    assert found[0]["text"] == "Write to <email> or <email>."
    counts = {name: value for name, value in found[0].items() if name.startswith("pii_")}
    assert counts == {"pii_key": 0, "pii_email": 2, "pii_iban": 0, "pii_card": 0, "pii_ip": 0, "pii_phone": 0}
