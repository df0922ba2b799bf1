"""`nachim export`: what was trained here opens in transformers, what was imported comes back as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, LlamaConfig

import nachim
from nachim.app.export import export
from nachim.app.import_ import import_
from nachim.data.tokenize import load_tokenizer
from nachim.spec import Attention, CompleteP, Decoder, Pattern, UserError, plain
from tests.app.exported import TEXT, checkpoint, trained
from tests.model.hf.parity import SMALL, close, hold_bitwise

TOKENS = torch.arange(24).reshape(2, 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("trained"))


def given_out(run, out, capsys) -> dict:
    capsys.readouterr()
    export(run, out, json=True)
    return json.loads(capsys.readouterr().out)


def test_what_was_trained_here_opens_in_transformers(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert given_out(run, out, capsys)["model_type"] == "llama"
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :12]
    assert ids[0].tolist() == load_tokenizer(run / "tokenizer.json").encode(TEXT).ids[:12]
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert tokenizer.eos_token_id == 0
    theirs = AutoModelForCausalLM.from_pretrained(out)
    assert theirs.config.max_position_embeddings == 16
    assert theirs.config.eos_token_id == 0
    with torch.no_grad():
        close("exported", nachim.load(run)(ids), theirs(ids).logits)
        assert theirs.dtype == torch.float32


def test_an_import_of_an_export_is_the_run(run, tmp_path, capsys):
    export(run, tmp_path / "out")
    import_(str(tmp_path / "out"), tmp_path / "again")
    (newest,) = run.glob("checkpoint/step-*/weights.safetensors")
    hold_bitwise(
        load_file(tmp_path / "again" / "checkpoint" / "step-000000000" / "weights.safetensors"), load_file(newest)
    )
    decoder = plain(d_model=16, n_layers=2, d_head=8, vocab_size=300)
    assert Decoder.load(tmp_path / "again" / "run.json") == decoder


def test_an_export_of_an_import_is_the_checkpoint(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs", Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8))
    import_(str(folder), tmp_path / "run")
    given_out(tmp_path / "run", tmp_path / "out", capsys)
    same = {path.name for path in folder.iterdir()} - {"config.json", "model.safetensors"}
    assert "generation_config.json" in same
    for name in same:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    hold_bitwise(load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors"))
    read = [json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "out")]
    assert read[0] == read[1]


def test_a_changed_decoder_keeps_the_keys_its_config_says_nothing_of(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "made_by": "someone", "eos_token_id": 7}))
    import_(str(folder), tmp_path / "run")
    decoder = Decoder.load(tmp_path / "run" / "run.json")
    replace(decoder, norm=replace(decoder.norm, eps=0.5)).save(tmp_path / "run" / "run.json")
    given_out(tmp_path / "run", tmp_path / "out", capsys)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["rms_norm_eps"], written["made_by"], written["eos_token_id"]) == (0.5, "someone", 7)
    assert "rope_parameters" not in written
    ours = nachim.load(tmp_path / "run")
    with torch.no_grad():
        close("changed", ours(TOKENS), AutoModelForCausalLM.from_pretrained(tmp_path / "out")(TOKENS).logits)


def test_a_gguf_file_holds_weights_and_tokenizer(run, tmp_path, capsys):
    capsys.readouterr()
    export(run, tmp_path / "out", to="gguf", json=True)
    summary = json.loads(capsys.readouterr().out)
    assert summary["carried"] == ["tokenizer.json"]
    reader = GGUFReader(summary["out"])
    facts = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = load_tokenizer(run / "tokenizer.json")
    assert facts["tokenizer.ggml.tokens"] == [tokenizer.id_to_token(number) for number in range(300)]
    assert facts["tokenizer.ggml.token_type"] == [3] + [1] * 299
    merges = json.loads((run / "tokenizer.json").read_text())["model"]["merges"]
    assert [merge.split(" ") for merge in facts["tokenizer.ggml.merges"]] == merges
    assert (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert (facts["tokenizer.ggml.bos_token_id"], facts["tokenizer.ggml.eos_token_id"]) == (0, 0)
    assert facts["llama.context_length"] == 16
    (newest,) = run.glob("checkpoint/step-*/weights.safetensors")
    down = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    assert np.array_equal(down.data, load_file(newest)["blocks.1.ffn.down.weight"].numpy())


def test_an_imported_tokenizer_and_its_chat_template_go_into_a_gguf_file(tmp_path):
    folder = checkpoint(tmp_path / "theirs", LlamaConfig(**{**SMALL, "vocab_size": 310}, eos_token_id=[0, 5]))
    import_(str(folder), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", to="gguf")
    facts = {name: field.contents() for name, field in GGUFReader(tmp_path / "out" / "model.gguf").fields.items()}
    assert facts["tokenizer.chat_template"] == "{{ messages }}"
    assert facts["tokenizer.ggml.eos_token_id"] == 0
    assert (facts["tokenizer.ggml.tokens"][309], facts["tokenizer.ggml.token_type"][309]) == ("[PAD309]", 5)


def test_a_tokenizer_that_is_cut_in_an_unknown_way_is_left_out(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs")
    told = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**told, "pre_tokenizer": {"type": "Whitespace"}}))
    import_(str(folder), tmp_path / "run")
    capsys.readouterr()
    export(tmp_path / "run", tmp_path / "out", to="gguf", json=True)
    assert json.loads(capsys.readouterr().out)["carried"] == []
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "no_vocab"


def test_the_factors_of_a_parametrisation_go_into_the_weights(tmp_path):
    rules = CompleteP(base_width=6, base_head=3, base_depth=1)
    decoder = replace(plain(d_model=16, n_layers=2, d_head=8, vocab_size=300), parametrisation=rules)
    folder = trained_like(decoder, tmp_path / "run")
    export(folder, tmp_path / "out")
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(TOKENS).logits
        close("folded", nachim.load(folder)(TOKENS), theirs)


WIDE = Attention(n_heads=2, n_kv_heads=2, d_head=8)


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        (replace(WIDE, previous_key=True), r"in the way of llama: attention.previous_key is True, not False"),
        (Pattern(parts=(WIDE, replace(WIDE, n_kv_heads=1))), r"in the way of \w+: attention is Pattern"),
    ],
)
def test_a_part_that_no_family_has_is_named(attention, said, run, tmp_path):
    decoder = replace(plain(d_model=16, n_layers=2, d_head=8, vocab_size=300), attention=attention)
    folder = tmp_path / "odd"
    written = trained_like(decoder, folder)
    with pytest.raises(UserError, match=said):
        export(written, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def trained_like(decoder: Decoder, folder):
    """A run folder that holds `decoder` with fresh weights."""
    from nachim.model import build
    from nachim.model.hf.source import save

    step = folder / "checkpoint" / "step-000000001"
    step.mkdir(parents=True)
    save(dict(build(decoder, decoder.d_model).named_parameters()), step / "weights.safetensors")
    decoder.save(folder / "run.json")
    return folder


def test_a_run_without_weights_or_with_others_is_refused(tmp_path):
    decoder = plain(d_model=16, n_layers=2, d_head=8, vocab_size=300)
    decoder.save(tmp_path / "run.json")
    with pytest.raises(UserError, match="has no checkpoint"):
        export(tmp_path, tmp_path / "out")
    folder = trained_like(decoder, tmp_path / "run")
    replace(decoder, n_layers=3).save(folder / "run.json")
    with pytest.raises(UserError, match=r"6 missing \(blocks.2.attention_norm.weight, "):
        nachim.load(folder)
