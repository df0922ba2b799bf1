"""`nachim generate`: text from runs and checkpoints, the same from the same seed, and errors in a sentence."""

from __future__ import annotations

import io
import json

import pytest
import torch
from transformers import LlamaConfig

import nachim
from nachim.app.generate import How, generate
from nachim.spec import UserError
from tests.app.exported import checkpoint, trained
from tests.model.hf.parity import SMALL

PROMPT = "the cat sat on"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("hf"), LlamaConfig(**SMALL | {"vocab_size": 300}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("trained"))


def called(folder, prompt=(), tokens=(), json=False, **how) -> int:
    return generate(folder, prompt=prompt, tokens=tokens, how=How(**how), json=json)


def printed(capsys, folder, **options) -> str:
    capsys.readouterr()
    assert called(folder, **options) == 0
    return capsys.readouterr().out


def told(capsys, folder, **options) -> list[dict]:
    return json.loads(printed(capsys, folder, json=True, **options))["completions"]


def test_a_checkpoint_goes_on_as_its_model_does(folder, capsys):
    one = told(capsys, folder, prompt=(PROMPT,), max_tokens=6, temperature=0.0, logprobs=True)[0]
    with torch.inference_mode():
        ids = torch.tensor([one["prompt_tokens"] + one["tokens"]])
        all_TV = nachim.load(folder)(ids)[0, len(one["prompt_tokens"]) - 1 : -1].log_softmax(-1)
    assert all_TV.argmax(-1).tolist() == one["tokens"]
    assert one["logprobs"] == pytest.approx(all_TV.amax(-1).tolist(), abs=1e-5)


def test_the_call_of_the_package_says_what_the_verb_says(folder, capsys):
    wanted = told(capsys, folder, prompt=(PROMPT,), tokens=("5 6 7",), max_tokens=6, temperature=0.0, logprobs=True)
    found = nachim.Engine(folder, dtype="float32").generate(
        [PROMPT, [5, 6, 7]], max_tokens=6, temperature=0.0, logprobs=True
    )
    assert [list(one.tokens) for one in found] == [one["tokens"] for one in wanted]
    assert [list(one.logprobs) for one in found] == [one["logprobs"] for one in wanted]
    assert [one.text for one in found] == [one["text"] for one in wanted]
    assert {one.finish_reason for one in found} <= {"stop", "length"}


def test_a_run_of_ours_speaks_its_own_tokens(run, capsys):
    one = told(capsys, run, prompt=("the cat",), max_tokens=5, temperature=0.0)[0]
    tokenizer = nachim.Engine(run).tokenizer
    assert one["text"] == tokenizer.decode(one["tokens"])
    shown = printed(capsys, run, prompt=("the cat",), max_tokens=5, temperature=0.0)
    assert shown == one["text"] + "\n"


def test_the_same_seed_says_the_same_beside_others(folder, capsys):
    options = {"max_tokens": 8, "temperature": 1.5, "seed": 3, "n": 2}
    one, other = told(capsys, folder, prompt=(PROMPT,), **options)
    assert one["tokens"] != other["tokens"]
    assert told(capsys, folder, prompt=(PROMPT, "rain"), **options)[:2] == [one, other]


def test_a_stop_ends_text_before_it(folder, capsys):
    whole = told(capsys, folder, prompt=(PROMPT,), max_tokens=12, temperature=0.0)[0]["text"]
    stop = whole[3:5]
    one = told(capsys, folder, prompt=(PROMPT,), max_tokens=12, temperature=0.0, stop=(stop,))[0]
    assert (one["text"], one["finish_reason"]) == (whole[: whole.find(stop)], "stop")


def test_standard_input_is_a_prompt(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    shown = printed(capsys, folder, max_tokens=5, temperature=0.0)
    assert shown == printed(capsys, folder, prompt=(PROMPT,), max_tokens=5, temperature=0.0)


def test_mistakes_are_said_in_a_sentence(folder, tmp_path):
    for options, said in (
        ({"tokens": ("5 x",)}, "--tokens is '5 x'"),
        ({"prompt": ("",)}, "the prompt is empty"),
        ({"prompt": (PROMPT,), "temperature": -1.0}, "temperature is -1.0"),
        ({"tokens": ("5 9999",)}, "no token id"),
    ):
        with pytest.raises(UserError, match=said):
            called(folder, **options)
    with pytest.raises(UserError, match=r"neither run\.json nor"):
        generate(tmp_path, prompt=(PROMPT,))


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = checkpoint(tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("norm.weight"))
    weights[name][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is not finite"):
        nachim.Engine(folder)
