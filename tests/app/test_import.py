"""`nachim import`: checkpoints become run folders, whole or not at all."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

import nachim
from nachim.app.import_ import fetched, import_
from nachim.spec import Decoder, UserError
from tests.app.exported import checkpoint
from tests.model.hf.parity import SMALL, close

TOKENS = torch.arange(24).reshape(2, 12)


def taken_in(source, out, capsys) -> dict:
    import_(str(source), out, json=True)
    return json.loads(capsys.readouterr().out)


def test_an_imported_run_gives_the_logits_of_transformers(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs")
    summary = taken_in(folder, tmp_path / "run", capsys)
    assert summary["model_type"] == "llama"
    assert summary["tensors"] == 21
    assert summary["dtypes"] == ["float32"]
    assert Decoder.load(tmp_path / "run" / "run.json").params_total == summary["params_total"]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits
        close("run", nachim.load(tmp_path / "run")(TOKENS), theirs)


def test_files_come_along_as_they_are(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs")
    carried = taken_in(folder, tmp_path / "run", capsys)["carried"]
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(carried)
    for name in [*carried, "config.json"]:
        assert (tmp_path / "run" / "huggingface" / name).read_bytes() == (folder / name).read_bytes()


def test_precision_is_kept_and_shards_are_read(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    for path in folder.glob("*.safetensors"):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert taken_in(folder, tmp_path / "run", capsys)["dtypes"] == ["bfloat16"]
    assert nachim.load(tmp_path / "run", dtype=None).head.weight.dtype == torch.bfloat16
    assert nachim.load(tmp_path / "run").head.weight.dtype == torch.float32


def test_keys_without_effect_are_told(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "made_by": "someone"}))
    assert taken_in(folder, tmp_path / "run", capsys)["unread"] == ["made_by"]


def broken(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def renamed(weights) -> None:
    weights["model.norm.scale"] = weights.pop("model.norm.weight")


def reshaped(weights) -> None:
    weights["model.norm.weight"] = torch.ones(31)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed, r"1 missing \(model.norm.weight\); 1 extra \(model.norm.scale\)"),
        (reshaped, r"1 misshapen \(model.norm.weight is 31 in place of 32\)"),
        (
            lambda weights: [weights.pop(name) for name in sorted(weights)[:6]],
            r"6 missing \([^,]+, [^,]+, [^,]+, [^,]+, ",
        ),
    ],
)
def test_wrong_tensors_are_listed_and_nothing_is_written(change, said, tmp_path):
    folder = checkpoint(tmp_path / "theirs")
    broken(folder, change)
    with pytest.raises(UserError, match=said):
        import_(str(folder), tmp_path / "run")
    assert not list(tmp_path.glob("*run*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "lama"}, r"model_type 'lama', .* did you mean 'llama'\? \(known: .*qwen3"),
        ({"model_type": None}, "has model_type None"),
        ({"hidden_size": None}, "lacks 'hidden_size', which a llama model needs"),
        ({"hidden_act": "tanh"}, "hidden_act='tanh'; only 'silu'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type='spiral'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 5}, "d_head|divide"),
        ({"num_attention_heads": 0}, r"Attention\.n_heads is 0; it must be above 0"),
        ({"hidden_size": "wide", "head_dim": None}, "a value of the wrong kind for a llama model: "),
        ({"rms_norm_eps": "small"}, "RMSNorm.eps is 'small'"),
    ],
)
def test_a_config_that_is_not_computed_exactly_is_refused(changes, said, tmp_path):
    folder = checkpoint(tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=said):
        import_(str(folder), tmp_path / "run")


def test_broken_files_are_refused(tmp_path):
    folder = checkpoint(tmp_path / "theirs")
    whole = (folder / "model.safetensors").read_bytes()
    for size in (len(whole) // 2, 4, 0):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            import_(str(folder), tmp_path / "run")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        import_(str(folder), tmp_path / "run")


def test_a_missing_shard_is_named(tmp_path):
    folder = checkpoint(tmp_path / "theirs", max_shard_size="20KB")
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=f"lacks {lost.name}"):
        import_(str(folder), tmp_path / "run")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a checkpoint: .*config.json"):
        import_(str(tmp_path), tmp_path / "run")
    folder = checkpoint(tmp_path / "theirs")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        import_(str(folder), tmp_path / "run")


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs")
    taken_in(folder, tmp_path / "run", capsys)
    with pytest.raises(UserError, match="is there already"):
        import_(str(folder), tmp_path / "run")


def test_a_name_that_is_not_at_hand_is_refused_offline():
    with pytest.raises(
        UserError, match=r"there is no folder nobody/nothing, and the Hugging Face Hub does not give it"
    ):
        fetched("nobody/nothing")
    with pytest.raises(UserError, match="OWNER/NAME"):
        fetched("./here/or/there")


def test_a_name_is_fetched_with_all_that_is_carried_along(tmp_path, monkeypatch, capsys):
    folder, asked = checkpoint(tmp_path / "theirs"), []

    def snapshot_download(name, allow_patterns):
        asked.extend([name, *allow_patterns])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert taken_in("somebody/something", tmp_path / "run", capsys)["model_type"] == "llama"
    assert {"somebody/something", "config.json", "*.safetensors", "tokenizer.json"} <= set(asked)


def test_a_broken_index_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "theirs", max_shard_size="20KB")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": 3}}))
    with pytest.raises(UserError, match="has no 'weight_map'"):
        import_(str(folder), tmp_path / "run")


def test_a_head_written_although_it_is_the_embedding(tmp_path, capsys):
    folder = checkpoint(tmp_path / "theirs", Qwen3Config(**SMALL, num_key_value_heads=4, tie_word_embeddings=True))
    broken(folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()}))
    taken_in(folder, tmp_path / "run", capsys)
    broken(folder, lambda weights: weights["lm_head.weight"].add_(1))
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        import_(str(folder), tmp_path / "again")


def test_old_and_new_spelling_are_one_decoder():
    """The config.json of Llama 3.1 on the Hub, and the one that transformers 5 makes of it."""
    from nachim.model.hf import read_config

    old = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    }
    new = LlamaConfig(**{key: value for key, value in old.items() if key != "model_type"}).to_dict()
    assert "rope_scaling" not in new
    decoder = read_config(old)[2]
    assert read_config(new)[2] == decoder
    assert decoder.params_total == 8_030_261_248
    assert re.search(r"factor=8.0", str(decoder.position))
