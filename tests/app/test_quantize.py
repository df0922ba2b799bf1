"""`nachim quantize`: what it writes opens, costs what it says, and leaves nothing behind when it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch

import nachim
from nachim.app.import_ import import_
from nachim.app.quantize import How, errors, quantize
from nachim.infer.engine import Engine
from nachim.lab.work import open_batches
from nachim.spec import Attention, Decoder, Part, SwiGLU, UserError
from tests.app.exported import checkpoint, trained

MODEL = Decoder(
    vocab_size=300,
    d_model=32,
    n_layers=2,
    attention=Attention(n_heads=2, n_kv_heads=2, d_head=16),
    ffn=SwiGLU(d_ff=48),
)
GROUP = How(group=16, tokens=256)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr("nachim.app.quantize_text.CACHE", folder)
        yield folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("trained"), MODEL)


def told(capsys, *args, **options) -> dict:
    capsys.readouterr()
    assert quantize(*args, json=True, **options) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("to", "how"), [("int8", How(tokens=256)), ("int4", GROUP), ("nf4", GROUP)])
def test_what_is_said_is_what_was_written(run, cache, tmp_path, capsys, to, how):
    found = told(capsys, run, tmp_path / "out", to, how=how)
    data = Part.load(run / "run.json").data
    batches = open_batches(data, cache)
    ids = torch.from_numpy(batches.validation(256))
    for folder, said in ((run, found["before"]), (tmp_path / "out", found["after"])):
        with torch.inference_mode():
            logits = nachim.load(folder)(ids[:, :-1])
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        assert said["loss"] == pytest.approx(nats, rel=1e-5)
        assert said["bpb"] == pytest.approx(nats * 256 / math.log(2) / batches.target_bytes(ids.numpy()), rel=1e-5)
    matrices = 2 * (32 * 96 + 32 * 32 + 32 * 96 + 48 * 32)
    assert found["bytes"]["matrices_before"] == 4 * matrices
    assert found["bytes"]["kept"] + 4 * matrices == 4 * MODEL.params_total
    rest = found["bytes"]["file"] - found["bytes"]["matrices_after"] - found["bytes"]["kept"]
    assert 0 < rest < 8_000  # the header, which names every tensor
    assert sum(row["bytes_after"] for row in found["layers"]) == found["bytes"]["matrices_after"]
    assert all(0 < row["error"] < 0.3 for row in found["layers"])


def test_errors_are_of_the_stream():
    assert errors([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])]) == [pytest.approx(0.1)]


def test_a_quantised_run_is_served_and_read_by_people(run, tmp_path, capsys):
    quantize(run, tmp_path / "out", "int8", How(tokens=256))
    shown = capsys.readouterr().out
    assert "bits per byte of held-out text" in shown
    assert "8 matrices" in shown
    (answer,) = Engine(tmp_path / "out", "bfloat16").generate(["the cat"], max_tokens=3, temperature=0.0)
    assert len(answer.tokens) == 3
    assert answer.text


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_look_at_text(run, tmp_path, capsys, method):
    how = How(group=16, method=method, sequences=8, tokens=256)
    found = told(capsys, run, tmp_path / "out", "int4", how=how)
    assert found["method"] == method
    assert found["after"]["loss"] == pytest.approx(found["before"]["loss"], rel=0.02)


def test_what_is_skipped_stays(run, tmp_path, capsys):
    how = How(tokens=256, skip=("ffn.down", "blocks.1"))
    assert told(capsys, run, tmp_path / "out", "int8", how=how)["matrices"] == 3
    before, after = nachim.load(run), nachim.load(tmp_path / "out")
    assert torch.equal(before.blocks[0].ffn.down.weight, after.blocks[0].ffn.down.weight)
    assert torch.equal(before.blocks[1].attention.qkv.weight, after.blocks[1].attention.qkv.weight)


def test_a_hugging_face_folder_without_a_tokenizer_is_measured_on_drawn_tokens(tmp_path, capsys):
    checkpoint(tmp_path / "theirs")
    for tokenizer in (tmp_path / "theirs").glob("tokenizer*"):
        tokenizer.unlink()
    found = told(capsys, tmp_path / "theirs", tmp_path / "out", "int8")
    assert found["before"] is found["after"] is None
    assert found["errors_on"] == "tokens drawn evenly"
    import_(str(tmp_path / "theirs"), tmp_path / "run")
    again = told(capsys, tmp_path / "run", tmp_path / "again", "int8")
    assert again["weights"] == found["weights"]
    with pytest.raises(UserError, match=r"has no tokenizer.json: --method gptq needs text to look at"):
        quantize(tmp_path / "theirs", tmp_path / "no", "int4", How(group=8, method="gptq"))


@pytest.mark.parametrize(
    ("to", "how", "why"),
    [
        (
            "int4",
            How(),
            r"blocks.0.attention.qkv.weight has 32 inputs, which groups of 128 do not divide: groups of 16",
        ),
        ("int8", How(group=32), r"--group is for int4 and nf4: int8 has one scale a row"),
        ("nf4", How(group=16, symmetric=True), r"--symmetric is for int4"),
        ("int8", How(skip=("ffn.dwon",)), r"no matrix is named 'ffn.dwon', .*did you mean 'ffn.down'"),
        ("int8", How(skip=("blocks",)), r"no matrix is left to be quantised"),
        ("int8", How(tokens=0), r"--tokens is 0; it must be at least 1"),
        ("int8", How(data="nowhere"), r"--data nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(run, tmp_path, to, how, why):
    with pytest.raises(UserError, match=why):
        quantize(run, tmp_path / "out", to, how)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none_or_quantised_already_is_refused(run, tmp_path):
    quantize(run, tmp_path / "once", "int8", How(tokens=256))
    with pytest.raises(UserError, match=r"once is quantised already \(it has quantized.json\)"):
        quantize(tmp_path / "once", tmp_path / "twice", "int4", GROUP)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a checkpoint"):
        quantize(tmp_path / "empty", tmp_path / "out", "int8")
    with pytest.raises(UserError, match="is there already"):
        quantize(run, tmp_path / "once", "int8")
