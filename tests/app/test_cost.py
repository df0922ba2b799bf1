from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from nachim.app.cost import cost
from nachim.spec import UserError
from nachim.spec.known import known
from tests.spec.examples import HYBRID, MACHINE, MODEL, RUN


def said(capsys: pytest.CaptureFixture[str], *arguments: object, **options: object) -> dict[str, object]:
    """The JSON object that the verb prints."""
    assert cost(*arguments, json=True, **options) == 0
    return json.loads(capsys.readouterr().out)


def test_a_known_model_by_name(capsys):
    found = said(capsys, "llama-3-8b", seq_len=8192)
    model = known("llama-3-8b").decoder
    assert found["model"] == "llama-3-8b" and found["seq_len"] == 8192
    assert found["params"]["total"] == found["params"]["active"] == 8_030_261_248
    assert found["params"]["non_embedding"] + found["params"]["embedding"] == found["params"]["total"]
    assert found["flops_per_token"] == model.flops_per_token(8192) == found["conventions"][0]["flops_per_token"]
    assert [row["name"] for row in found["conventions"]][:3] == ["M", "M + head", "6N"]
    longest = found["inference"][-1]
    assert longest["context"] == 8192
    assert longest["kv_bytes_per_request"] == 1_073_741_824 == 8192 * longest["kv_bytes_per_token"]
    assert longest["decode_flops_per_token"] > longest["prefill_flops_per_token"]
    assert found["state_bytes"] == 0


def test_a_training_sequence_is_as_long_as_the_run_or_the_model_says(capsys, tmp_path):
    assert said(capsys, "GPT-2")["seq_len"] == 1024
    assert said(capsys, "deepseek-v3")["seq_len"] == 4096
    RUN.save(tmp_path / "run.json")
    assert said(capsys, str(tmp_path / "run.json"))["seq_len"] == RUN.data.seq_len
    HYBRID.save(tmp_path / "model.json")
    assert said(capsys, str(tmp_path / "model.json"))["seq_len"] == 64


def test_a_run_and_its_directory_and_its_model_cost_the_same(capsys, tmp_path):
    RUN.save(tmp_path / "run.json")
    MODEL.save(tmp_path / "model.json")
    by_file = said(capsys, str(tmp_path / "run.json"))
    assert said(capsys, str(tmp_path)) == by_file
    by_model = said(capsys, str(tmp_path / "model.json"), seq_len=RUN.data.seq_len)
    assert {**by_model, "model": by_file["model"]} == by_file
    assert by_file["flops_per_token"] == RUN.flops_per_token


def test_contexts_reach_what_is_asked_for(capsys):
    asked = said(capsys, "llama-3-8b", seq_len=131_072)["inference"]
    assert asked[-1]["context"] == 131_072
    assert asked[-1]["kv_bytes_per_request"] == pytest.approx(17.2e9, rel=5e-3)


def test_a_state_adds_nothing_a_token(capsys):
    found = said(capsys, "mamba2-130m")
    assert all(row["kv_bytes_per_token"] == 0 for row in found["inference"])
    assert {row["kv_bytes_per_request"] for row in found["inference"]} == {found["state_bytes"]}


def test_recomputation_keeps_less(capsys):
    saved = said(capsys, "llama-3-8b")["activations"]
    assert saved["none"] > saved["selective"] > saved["full"] == 2 * 32 * 4096


def test_the_tables_say_what_the_numbers_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    cost("jamba-v0.1")
    words = " ".join(capsys.readouterr().out.split())
    for expected in (
        "jamba-v0.1: 51,570,323,328 parameters",
        "active in a token 12,110,311,296",
        "published, in billions: 52, 12 active (all)",
        "training FLOP/token at sequences of 4,096",
        "Chinchilla",
        "of M + head",
        "262,144",
        "selective recomputation",
        "state that does not grow",
    ):
        assert expected in words


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("lama-3-8b", {}, "no known model 'lama-3-8b'; did you mean 'llama-3-8b'?"),
        ("none.json", {}, "no such file: none.json"),
        ("a/b", {}, "no such file: a/b"),
        ("llama-3-8b", {"seq_len": 0}, "seq_len is 0"),
        ("llama-3-8b", {"seq_len": -5}, "seq_len is -5"),
        ("gpt-2", {"seq_len": 2048}, "--seq-len is 2048; this model has a table of 1024 positions"),
    ],
)
def test_wrong_input_is_one_sentence(model, options, words):
    with pytest.raises(UserError) as caught:
        cost(model, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    MACHINE.save(tmp_path / "machine.json")
    with pytest.raises(UserError, match="holds a Machine; `nachim cost` needs a Run or a Decoder"):
        cost(str(tmp_path / "machine.json"))
    with pytest.raises(UserError, match=r"no such file: .*run\.json"):
        cost(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(UserError, match=r"config\.json: the top level is not a part"):
        cost(str(tmp_path / "config.json"))


def test_the_command_line_and_its_help(capsys):
    assert tyro.cli(cost, args=["gpt-2", "--seq-len", "512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seq_len"] == 512
    with pytest.raises(SystemExit):
        tyro.cli(cost, args=["--help"])
    printed = capsys.readouterr().out
    assert "nachim cost llama-3-8b" in printed and "--seq-len" in printed


def test_json_needs_neither_arrays_nor_a_terminal():
    asked = "import sys; from nachim.app.cost import cost; cost('gpt-2', json=True); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert not {"torch", "numpy", "scipy", "plotly", "rich.table"} & set(loaded)
