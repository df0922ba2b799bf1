"""The loop with a writer whose answers are a function of the prompt: same shards after kills, all accounted for."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from nachim.data.evolve import Evolve
from nachim.data.instruct import SelfInstruct, Task
from nachim.data.novelty import hashed, rouge_l, words_of
from nachim.data.read import Report
from nachim.data.shards import dropped_of, read_shard
from nachim.data.source import open_source
from nachim.lab.spending import OVER, Budget
from nachim.lab.synthesis import Loop, Synthesis
from nachim.lab.writer import Answer, Asked, Failed
from nachim.spec import Files, UserError

WORDS = [
    *("sort", "count", "name", "write", "draw", "letters", "numbers", "birds", "towns"),
    *("rivers", "poems", "words", "long", "short", "kind", "old", "new"),
]
SEEDS = [Task(f"s{n}", " ".join(random.Random(n).sample(WORDS, 7)), "", f"output {n}") for n in range(12)]


class Fake:
    """A writer whose words are drawn by the prompt and the seed; some requests fail, and `slow` seconds a batch."""

    name, together = "fake", 4

    def __init__(self, slow: float = 0.0, failing: float = 0.0) -> None:
        self.slow, self.failing, self.asked = slow, failing, list[Asked]()

    def write(self, asked, tick):
        """An answer that looks as its prompt wants it."""
        time.sleep(self.slow)
        self.asked += asked
        tick(1.0)
        return [self._one(one) for one in asked]

    def _one(self, one: Asked) -> Answer | Failed:
        draw = random.Random(hashlib.sha256(f"{one.seed}{one.prompt}".encode()).digest())
        if draw.random() < self.failing:
            return Failed("timed out", "", ("timed out",))
        text = " ".join(draw.choices(WORDS, k=9))
        if one.prompt.startswith("Below is a list"):
            text = f"{text}\nTask 10: {' '.join(draw.choices(WORDS, k=8))}\nTask 11: {SEEDS[3].instruction}"
        elif one.prompt.startswith("Give an example"):
            text = f"{text}\nOutput: {' '.join(draw.choices(WORDS, k=12))}"
        elif "Say Equal" in one.prompt:
            text = draw.choice(["Equal", "Different"])
        return Answer(text, False, len(one.prompt) // 4, len(text) // 4)


def loop(out: Path, writer: Fake, method: str = "self-instruct", budget: Budget = Budget(), **changes: object) -> Loop:
    made = {"self-instruct": SelfInstruct, "evol": Evolve}[method](per_round=3)
    fields = {"generator": "fake", "tasks": "seeds", "embedding": "hashed", "rouge": 0.7, "distance": 0.05}
    spec = Synthesis(**{**fields, "method": method, "per_round": 3, **changes})
    return Loop(spec, made, SEEDS, writer, hashed, out, budget)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.*")) if path.is_file()}


@pytest.mark.parametrize("method", ["self-instruct", "evol"])
def test_every_proposal_is_kept_with_its_provenance_or_dropped_for_a_reason(tmp_path, method):
    writer = Fake(failing=0.1)
    made = loop(tmp_path, writer, method).run(12)
    rows = [row for shard in made.shards for row in read_shard(shard.path)]
    dropped = [row for shard in made.shards for row in read_shard(dropped_of(shard.path))]
    assert made.ended == "count" and len(rows) == made.ledger.kept.rows >= 12
    report = Report()
    texts = [raw.decode() for raw in open_source(Files(path=str(tmp_path / "tasks.jsonl.zst"))).documents(report)]
    assert texts == [row["text"] for row in rows] and not report.skipped
    assert made.ledger.came.rows == len(rows) + len(dropped)
    reasons = Counter(row["reason"] for row in dropped)
    assert reasons == {reason: count.rows for reason, count in made.ledger.dropped.items()}
    assert reasons["timed out"] == made.spent.failures["timed out"] == made.spent.retries["timed out"] > 0
    assert made.spent.requests == len(writer.asked) + made.spent.retries.total()
    known = {task.id: task.instruction for task in SEEDS}
    sent = {hashlib.sha256(one.prompt.encode()).hexdigest(): one for one in writer.asked}
    for row in rows:
        near = max(rouge_l(words_of(row["instruction"]), words_of(other)) for other in known.values())
        assert row["rouge_l"] == pytest.approx(near) and near <= 0.7 and row["distance"] >= 0.05
        assert row["overlap"] <= 0.8 and row["text"].startswith(row["instruction"])
        told = row["provenance"]
        assert (told["method"], told["generator"]) == (method, "fake") and set(told["parents"]) <= known.keys()
        for prompt in told["prompts"].values():
            assert (sent[prompt["sha256"]].seed, sent[prompt["sha256"]].temperature) == (prompt["seed"], 0.7)
        known[row["id"]] = row["instruction"]
    if method == "self-instruct":
        assert reasons["like one in the pool, by ROUGE-L"] >= len(made.shards), "a seed is among each answer"
    else:
        assert reasons["nothing gained"] and all(row["depth"] >= 1 for row in rows)


def _work(out: str) -> None:
    loop(Path(out), Fake(slow=0.01)).run(20)


def test_killed_at_any_time_it_comes_to_the_same_shards(tmp_path):
    whole = loop(tmp_path / "whole", Fake()).run(20)
    out, kills = tmp_path / "killed", 0
    context = multiprocessing.get_context("fork")
    for rounds in (1, 2, 3):
        process = context.Process(target=_work, args=(str(out),))
        process.start()
        end = time.monotonic() + 60
        while process.is_alive() and len(list(out.glob("rounds/*.json"))) < rounds:
            assert time.monotonic() < end
            time.sleep(0.005)
        kills += process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    writer = Fake()
    again = loop(out, writer).run(20)
    assert kills == 3 and len(writer.asked) < whole.spent.requests
    assert again.spent == whole.spent and again.ledger == whole.ledger
    assert files(out) == files(tmp_path / "whole")


def test_budgets_bound_what_is_sent_and_the_rest_is_counted(tmp_path):
    writer = Fake()
    made = loop(tmp_path / "requests", writer, budget=Budget(requests=20)).run(1000)
    assert (made.ended, made.spent.requests, len(writer.asked)) == ("budget", 20, 20)
    assert made.ledger.dropped[OVER].rows > 0
    more = loop(tmp_path / "requests", writer, budget=Budget(requests=40)).run(1000)
    assert (more.ended, len(writer.asked)) == ("budget", 40)
    made = loop(tmp_path / "tokens", Fake(), budget=Budget(tokens=1500)).run(1000)
    most = max(
        one.prompt_tokens + one.tokens for one in Fake().write([Asked("Below is a list" * 50, 0, 1, 0, 1)], print)
    )
    assert made.ended == "budget" and 1500 <= made.spent.prompt_tokens + made.spent.tokens < 1500 + 4 * 3 * most


def test_failures_alone_make_no_round(tmp_path):
    with pytest.raises(UserError, match=r"none of 3 requests to fake was answered \(3 timed out\)"):
        loop(tmp_path, Fake(failing=1.0)).run(5)
    assert not list(tmp_path.glob("rounds/*"))


def test_a_writer_that_has_nothing_new_ends_it(tmp_path):
    writer = Fake()
    writer._one = lambda one: Answer(SEEDS[0].instruction, False, 1, 1)
    made = loop(tmp_path, writer).run(5)
    assert (made.ended, made.ledger.kept.rows, len(made.shards)) == ("barren", 0, 5)


def test_a_folder_takes_no_other_study(tmp_path):
    loop(tmp_path, Fake()).run(1)
    with pytest.raises(UserError, match="was made with another rouge"):
        loop(tmp_path, Fake(), rouge=0.6)
    assert json.loads((tmp_path / "synthesis.json").read_text())["rouge"] == 0.7
