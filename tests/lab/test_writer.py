"""The writer that is a checkpoint on this machine, vectors from one, and the verb that uses both."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from nachim.app.cli import main
from nachim.data.shards import read_shard
from nachim.lab.embed import MeanState
from nachim.lab.writer import Answer, Asked, Failed, LocalWriter
from nachim.spec import UserError
from tests.app.exported import TEXT, checkpoint
from tests.lab.endpoint import serving
from tests.model.hf.parity import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose template writes what the user says."""
    out = checkpoint(tmp_path_factory.mktemp("checkpoint"), LlamaConfig(**{**SMALL, "vocab_size": 300}))
    (out / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return out


def asked(prompt: str, seed: int, most: int = 4) -> Asked:
    return Asked(prompt, seed, most, 1.0, 1.0)


def test_answers_depend_on_nothing_that_is_asked_beside(folder):
    writer = LocalWriter(folder, context=48, together=3)
    prompts = [asked(TEXT[:20], 5), asked("the dog ran", 6), asked(TEXT * 9, 7), asked(TEXT[:20], 5)]
    together = writer.write(prompts, lambda done: None)
    alone = [LocalWriter(folder, context=48).write([one], lambda done: None)[0] for one in prompts[:2]]
    assert together[:2] == alone and together[3] == together[0]
    assert isinstance(together[2], Failed) and together[2].reason == "the prompt does not fit"
    answer = together[0]
    assert isinstance(answer, Answer) and 0 < answer.tokens <= 4
    assert answer.prompt_tokens == len(writer.engine.tokenizer.encode(TEXT[:20]).ids)
    assert answer.cut == (answer.tokens == 4)
    assert writer.name.startswith(folder.name) and writer.name == LocalWriter(folder).name


def test_vectors_are_mean_hidden_states(folder):
    texts = [TEXT, "the cat sat", "a mat"]
    state = MeanState(folder, texts)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        ids = [torch.tensor([state.tokenizer.encode(text).ids]) for text in texts]
        states = [model(one, output_hidden_states=True).hidden_states[-1][0].double().mean(0).numpy() for one in ids]
    found = np.stack(states) - np.mean(states, axis=0)
    expected = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(state(texts), expected, atol=2e-4)


def run(capsys, monkeypatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["nachim", "data", "synth", *words])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_the_verb_makes_tasks_by_an_endpoint_and_shows_them(capsys, monkeypatch, tmp_path):
    seeds, out = tmp_path / "seeds.jsonl", tmp_path / "out"
    words = ["owls", "herons", "rivers", "castles", "poems", "engines", "mosses", "comets"]
    seeds.write_text("".join(json.dumps({"instruction": f"Say where {word} are met."}) + "\n" for word in words))

    def say(body, count):
        prompt = body["messages"][0]["content"]
        if prompt.startswith("Here are two tasks"):
            return "Different" if len(prompt) % 3 else "Equal"
        if count == 1 and len(prompt) % 2:
            return b"junk"
        return (
            f"Explain how number {len(prompt) * body['seed'] % 9973} and {body['seed'] % 9967} came about, with care."
        )

    command = ["evol", str(seeds), "--out", str(out), "--count", "6", "--per-round", "4", "--json"]
    with serving(say) as endpoint:
        monkeypatch.setattr("nachim.lab.endpoint.BACKOFF", 0.001)
        status, told, _ = run(capsys, monkeypatch, *command, "--endpoint", endpoint.url)
        found = json.loads(told)
        assert status == 0 and found["kept"] >= 6 and found["came"] == found["kept"] + sum(found["dropped"].values())
        sent = len(endpoint.bodies)
        assert found["spent"]["requests"] == sent and found["spent"]["retries"] == {
            "junk answer": sent - _answers(found)
        }
        again = json.loads(run(capsys, monkeypatch, *command, "--endpoint", endpoint.url)[1])
        assert len(endpoint.bodies) == sent and again["kept"] == found["kept"], "what is there is not asked again"
    rows = read_shard(out / "tasks.jsonl.zst")
    page = (out / "synthesis.html").read_text()
    assert (
        all(row["provenance"]["generator"] == f"tiny at {endpoint.url}" for row in rows) and len(rows) == found["kept"]
    )
    assert "ROUGE-L to the nearest instruction" in page and "sent again: junk answer" in page


def _answers(found: dict) -> int:
    spent = found["spent"]
    return spent["requests"] - sum(spent["retries"].values()) - sum(spent["failures"].values())


def test_the_verb_takes_a_checkpoint_and_says_what_is_missing(capsys, monkeypatch, tmp_path, folder):
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"instruction": "Say where owls are met."}\n')
    command = ["self-instruct", str(seeds), "--out", str(tmp_path / "out"), "--count", "1"]
    status, _, said = run(capsys, monkeypatch, *command)
    assert status == 2 and "nobody writes: give --model DIR, or --endpoint URL" in said
    options = [
        "--model",
        str(folder),
        "--embed",
        str(folder),
        "--context",
        "300",
        "--max-tokens",
        "4",
        "--per-round",
        "1",
    ]
    status, told, _ = run(capsys, monkeypatch, *command, *options, "--json")
    found = json.loads(told)
    assert status == 0 and found["embedding"].startswith("mean state of") and found["ended"] in ("barren", "count")
    assert found["came"] == found["kept"] + sum(found["dropped"].values()) > 0
    with pytest.raises(UserError, match="there is no folder"):
        LocalWriter(tmp_path / "nowhere")
