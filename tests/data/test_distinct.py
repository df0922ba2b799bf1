"""Near duplicates: every removal is verified against one that stays, nothing similar is missed, nothing is chained."""

from __future__ import annotations

import gzip
import itertools
import json
import random

import numpy as np
import pytest

from nachim.data import near
from nachim.data.distinct import distinct_records
from nachim.data.gathered import Gathered, digests
from nachim.data.minhash import BANDS, ROWS, VALUES, agreement, band_keys, jaccard, signatures
from nachim.data.near import cluster
from nachim.data.shingle import shingles
from nachim.spec import UserError

WORDS = [f"word{i}" for i in range(400)]


def prose(seed, count):
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(count))


def edited(text, seed, changes):
    chance, words = random.Random(seed), text.split()
    for place in chance.sample(range(len(words)), changes):
        words[place] = f"other{chance.randrange(10**6)}"
    return " ".join(words)


def quiet(*news):
    """Nobody listens."""


@pytest.fixture
def run(tmp_path):
    """Deduplicates texts by id; what came out, and the ids that stayed."""

    def made(texts, threshold=0.8, keep="longest"):
        path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))
        found = distinct_records(path, out, threshold, keep, "text", quiet)
        return found, [json.loads(line)["id"] for line in out.read_text().splitlines()]

    return made


@pytest.fixture
def gathered(tmp_path):
    """Texts on disk, as duplicates are looked for among them."""
    with Gathered(tmp_path / "gathered") as texts:

        def made(raw):
            texts.add(raw, range(len(raw)), signatures(raw), digests(raw), np.zeros(len(raw)))
            texts.seal()
            return texts

        yield made


def similarity(one, other):
    return jaccard(shingles(one.encode()), shingles(other.encode()))


def test_every_removal_is_near_to_one_that_stays_and_nothing_near_stays(run):
    texts = {}
    for i in range(60):
        texts[f"a{i}"] = prose(i, 20 + 9 * i)
        for j in range(i % 4):
            texts[f"b{i}.{j}"] = edited(texts[f"a{i}"], 100 * i + j, (1 + j) * (1 + i // 20))
    found, stay = run(texts)
    assert found.read == len(texts) == found.kept + len(found.removed)
    assert [name for name in texts if name in set(stay)] == stay
    for one in found.removed:
        assert one.keeper in stay
        assert one.jaccard == pytest.approx(similarity(texts[one.id], texts[one.keeper]), abs=1e-6)
        assert one.jaccard >= 0.8
    for one, other in itertools.combinations(stay, 2):
        assert similarity(texts[one], texts[other]) < 0.8, (one, other)
    assert len(found.removed) > 20


def test_texts_from_one_template_are_not_chained_together(run):
    head, tail = prose(1, 40), prose(2, 40)
    texts = {f"page{i}": f"{head} {prose(1000 + i, 60)} {tail}" for i in range(150)}
    found, stay = run(texts)
    assert found.removed == []
    assert stay == list(texts)


def test_a_chain_of_small_changes_is_no_cluster(run):
    chain = [prose(5, 120)]
    for i in range(12):
        chain.append(edited(chain[-1], i, 2))
    texts = {f"c{i}": text for i, text in enumerate(chain)}
    found, stay = run(texts, threshold=0.7)
    assert similarity(chain[0], chain[-1]) < 0.5
    assert 1 < len(stay) < len(chain)
    assert all(similarity(texts[one.id], texts[one.keeper]) >= 0.7 for one in found.removed)


def test_a_text_whose_keeper_goes_finds_another_or_stays(gathered):
    chain = [prose(8, 100)]
    chain += [edited(chain[0], 1, 1), edited(edited(chain[0], 1, 1), 2, 2)]
    raw = [text.encode() for text in chain]
    rank = np.arange(3)
    texts = gathered(raw)
    work = near._Work(texts, rank, np.arange(3), 0.9)
    work.keeper[:] = [0, 0, 1]  # as when a band showed 2 near to 1, and a later one 1 near to 0
    assert 0.6 < similarity(chain[0], chain[2]) < 0.9
    work.settle()
    assert work.keeper.tolist() == [0, 0, 2]
    loose = near._Work(texts, rank, np.arange(3), 0.6)
    loose.keeper[:] = [0, 0, 1]
    loose.settle()
    assert loose.keeper.tolist() == [0, 0, 0]
    assert loose.similarity[2] == pytest.approx(similarity(chain[0], chain[2]))


def test_the_preferred_one_stays(run):
    long = prose(3, 100)
    short = " ".join(long.split()[:95])
    assert run({"short": short, "long": long})[1] == ["long"]
    assert run({"short": short, "long": long}, keep="first")[1] == ["short"]
    found, stay = run({"one": long, "two": long, "three": long + " and more"})
    assert stay == ["three"]
    assert {one.id: one.keeper for one in found.removed} == {"one": "three", "two": "three"}
    assert len({one.jaccard for one in found.removed}) == 1


def test_texts_without_words_and_of_few_are_compared_whole(run):
    found, stay = run(
        {"dots": "...", "same": "...", "dashes": "---", "two": "one two", "case": "One, TWO!", "three": "one two 3"}
    )
    assert stay == ["dots", "dashes", "case", "three"]
    assert {(one.id, one.keeper, one.jaccard) for one in found.removed} == {("same", "dots", 1.0), ("two", "case", 1.0)}


def test_signatures_estimate_the_similarity():
    texts, wanted = [], []
    for i in range(80):
        text = prose(i, 300)
        other = edited(text, i, i // 2)
        texts += [text.encode(), other.encode()]
        wanted.append(similarity(text, other))
    found = signatures(texts)
    assert found.shape == (160, VALUES)
    estimates = [float(agreement(found, 2 * i, np.array([2 * i + 1]))[0]) for i in range(80)]
    assert np.mean(np.subtract(estimates, wanted)) == pytest.approx(0, abs=0.01)
    assert np.std(np.subtract(estimates, wanted)) < 0.05


def test_candidates_are_as_many_as_the_bands_promise():
    hits, chance, trials = 0, 0.0, 400
    for i in range(trials):
        text = prose(i, 400)
        other = edited(text, i, 36)  # well below the threshold, where nearly all are candidates
        found = signatures([text.encode(), other.encode()])
        hits += any(keys[0] == keys[1] for keys in (band_keys(found, band) for band in range(BANDS)))
        chance += 1 - (1 - similarity(text, other) ** ROWS) ** BANDS
    assert 0.3 < chance / trials < 0.7
    assert hits / trials == pytest.approx(chance / trials, abs=0.08)


def test_damage_is_counted_and_compressed_files_are_read_and_written(tmp_path):
    good = [json.dumps({"id": i, "text": prose(i, 30), "more": [i]}) for i in range(4)]
    bad = ["{broken", "[1, 2]", json.dumps({"id": 9}), json.dumps({"text": 7}), json.dumps({"text": "  "})]
    path, out = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([*good[:2], *bad, "", *good[2:]]).encode()))
    found = distinct_records(path, out, 0.8, "first", "text", quiet)
    assert (found.read, found.kept, sum(found.skipped.values())) == (4, 4, 5)
    assert gzip.decompress(out.read_bytes()).decode().splitlines() == good
    assert sorted(tmp_path.iterdir()) == [path, out]
    cut = tmp_path / "cut.jsonl.gz"
    rows = [json.dumps({"text": random.Random(i).randbytes(400).hex(" ", 3)}) for i in range(600)]
    cut.write_bytes(gzip.compress("\n".join(rows).encode())[:-20_000])
    found = distinct_records(cut, out, 0.8, "first", "text", quiet)
    assert 100 < found.kept < 600
    assert found.skipped["unreadable file"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 0.0}, "--threshold is 0.0"),
        ({"threshold": 1.1}, "--threshold is 1.1"),
        ({"path": "none.jsonl"}, "no such file"),
        ({"path": "in.txt"}, "must end in .jsonl"),
        ({"column": "body"}, "has the text column 'body'"),
        ({"out": "in.jsonl"}, "write to another file"),
        ({"path": "empty.jsonl"}, "no record in"),
    ],
)
def test_bad_input_is_said_and_nothing_is_written(tmp_path, change, said):
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "a b c"}\n')
    (tmp_path / "in.txt").write_text("text")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    before = sorted(tmp_path.iterdir())
    given = {"path": "in.jsonl", "out": "out.jsonl", "threshold": 0.8, "keep": "first", "column": "text"} | change
    given |= {name: tmp_path / given[name] for name in ("path", "out")}
    with pytest.raises(UserError, match=said):
        distinct_records(**given, tick=quiet)
    assert sorted(tmp_path.iterdir()) == before


def test_a_crowd_of_look_alikes_is_counted(gathered, monkeypatch):
    monkeypatch.setattr(near, "CROWD", 3)
    same = prose(1, 30)
    raw = [f"{same} {prose(i, 12)}".encode() for i in range(12)]
    found = cluster(gathered(raw), 0.95, "first", quiet)
    assert found.kept.all()
    assert found.crowded > 0
