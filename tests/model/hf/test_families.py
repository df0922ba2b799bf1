"""What holds for every family: no option of its reference is passed over, published configs, and the errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

import nachim
from nachim.model.hf import config_for, open_checkpoint, read_config, write_checkpoint
from nachim.model.hf.checkpoint import unrolled
from nachim.model.hf.families import FAMILIES
from nachim.model.hf.source import INDEX, Source, save, tensors_in
from nachim.spec import Attention, Decoder, NoPosition, SwiGLU, UserError, plain
from tests.model.hf.parity import SMALL, close, hold_bitwise, hold_published, reference

UNSAID = {"deepseek_v2": {"num_experts_per_tok": 6}}
"""What a config class leaves open, although its model needs it."""
OLDER = {"n_embed": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
"""Names that older files have, and the config class has not."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_option_of_the_config_class_is_read_or_known_to_be_without_effect(name):
    values = {**CONFIG_MAPPING[name]().to_dict(), **UNSAID.get(name, {})}
    assert not read_config(values)[1].unknown


@pytest.mark.parametrize("name", FAMILIES)
def test_absent_keys_have_the_defaults_of_the_config_class(name):
    full = {**CONFIG_MAPPING[name]().to_dict(), **UNSAID.get(name, {})}
    values = {"model_type": name}
    for _ in full:
        try:
            decoder = read_config(values)[2]
        except UserError as error:
            needed = re.search("lacks '(\\w+)'", str(error))
            assert needed is not None, error
            key = needed[1] if needed[1] in full else OLDER[needed[1]]
            assert key not in values, error
            values[key] = full[key]
    assert unrolled(decoder) == unrolled(read_config(full)[2])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_writes_what_it_reads(name):
    values = {**CONFIG_MAPPING[name]().to_dict(), **UNSAID.get(name, {})}
    family, _, decoder = read_config(values)
    again = {"model_type": name, **family.to_config(decoder, values.get("max_position_embeddings", 2048))}
    assert unrolled(read_config(json.loads(json.dumps(again)))[2]) == unrolled(decoder)


LLAMA_3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
COMMON = {"attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}


def config(model_type, width, d_ff, depth, heads, kv_heads, vocab_size, **more) -> dict:
    shape = {"hidden_size": width, "intermediate_size": d_ff, "num_hidden_layers": depth}
    numbers = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab_size}
    return {"model_type": model_type, **shape, **numbers, **COMMON, **more}


GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6}
QWEN = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "use_sliding_window": False}
PUBLISHED = {
    "Llama-2-7b": (
        config(
            "llama", 4096, 11008, 32, 32, 32, 32000, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_scaling=None
        ),
        6_738_415_616,
    ),
    "Llama-3.2-1B": (
        config(
            "llama",
            2048,
            8192,
            16,
            32,
            8,
            128256,
            head_dim=64,
            attention_bias=False,
            mlp_bias=False,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_scaling=LLAMA_3,
            rope_theta=5e5,
            tie_word_embeddings=True,
            pretraining_tp=1,
        ),
        1_235_814_400,
    ),
    "SmolLM2-135M": (
        config(
            "llama",
            576,
            1536,
            30,
            9,
            3,
            49152,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_theta=100000,
            tie_word_embeddings=True,
        ),
        134_515_008,
    ),
    "SmolLM3-3B": (
        config(
            "smollm3",
            2048,
            11008,
            36,
            16,
            4,
            128256,
            max_position_embeddings=65536,
            no_rope_layer_interval=4,
            no_rope_layers=[1, 1, 1, 0] * 9,
            layer_types=["full_attention"] * 36,
            rms_norm_eps=1e-6,
            rope_theta=5e6,
            use_sliding_window=False,
            sliding_window=None,
        ),
        3_075_098_624,
    ),
    "Mistral-7B-v0.1": (
        config(
            "mistral",
            4096,
            14336,
            32,
            32,
            8,
            32000,
            max_position_embeddings=32768,
            rms_norm_eps=1e-5,
            rope_theta=1e4,
            sliding_window=4096,
            tie_word_embeddings=False,
        ),
        7_241_732_096,
    ),
    "Qwen2.5-7B": (
        config(
            "qwen2",
            3584,
            18944,
            28,
            28,
            4,
            152064,
            max_position_embeddings=131072,
            max_window_layers=28,
            sliding_window=131072,
            tie_word_embeddings=False,
            **QWEN,
        ),
        7_615_616_512,
    ),
    "Qwen3-0.6B": (
        config(
            "qwen3",
            1024,
            3072,
            28,
            16,
            8,
            151936,
            attention_bias=False,
            head_dim=128,
            max_position_embeddings=40960,
            max_window_layers=28,
            sliding_window=None,
            tie_word_embeddings=True,
            **QWEN,
        ),
        596_049_920,
    ),
    "gemma-2-2b": (
        config(
            "gemma2",
            2304,
            9216,
            26,
            8,
            4,
            256000,
            max_position_embeddings=8192,
            sliding_window=4096,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            rope_theta=1e4,
            **GEMMA,
        ),
        2_614_341_888,
    ),
    "gemma-3-1b-pt": (
        config(
            "gemma3_text",
            1152,
            6912,
            26,
            4,
            1,
            262144,
            max_position_embeddings=32768,
            sliding_window=512,
            sliding_window_pattern=6,
            rope_local_base_freq=10000,
            rope_theta=1000000,
            rope_scaling=None,
            **GEMMA,
        ),
        999_885_952,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_parameters(name):
    values, total = PUBLISHED[name]
    assert hold_published(values).params_total == total


def test_the_positions_of_gemma_3():
    decoder = read_config(PUBLISHED["gemma-3-1b-pt"][0])[2]
    assert [block.mixer.window for block in decoder.blocks[:7]] == [512] * 5 + [None, 512]
    assert [block.position.theta for block in decoder.blocks[4:7]] == [1e4, 1e6, 1e4]


def test_large_checkpoints_are_written_in_shards(tmp_path):
    theirs = reference(LlamaConfig(**SMALL))
    theirs.save_pretrained(tmp_path / "theirs")
    found = open_checkpoint(tmp_path / "theirs")
    save(found.weights(), tmp_path / "ours.safetensors")
    (tmp_path / "out").mkdir()
    source = Source([tmp_path / "ours.safetensors"])
    write_checkpoint(tmp_path / "out", found.family, found.config.values, found.decoder, source, shard_bytes=30_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 40_000 for path in files)
    assert (
        json.loads((tmp_path / "out" / INDEX).read_text())["metadata"]["total_size"] == 4 * found.decoder.params_total
    )
    hold_bitwise(tensors_in(tmp_path / "out"), tensors_in(tmp_path / "theirs"))
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        close("sharded", again(ids_BT).logits, theirs(ids_BT).logits)


def test_a_base_model_saved_without_its_head_opens(tmp_path):
    theirs = reference(LlamaConfig(**SMALL, tie_word_embeddings=True))
    theirs.model.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in tensors_in(tmp_path)
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        close("base", nachim.load(tmp_path)(ids_BT), theirs(ids_BT).logits)


def test_plain_decoders_are_llama_and_others_the_family_that_has_their_parts():
    decoder = plain(d_model=16, n_layers=2, d_head=8, vocab_size=40)
    kinds = {
        "llama": decoder.attention,
        "mistral": replace(decoder.attention, window=4),
        "qwen2": replace(decoder.attention, bias="qkv"),
        "qwen3": replace(decoder.attention, qk_norm=True),
    }
    for name, attention in kinds.items():
        assert config_for(replace(decoder, attention=attention), 64)[0].model_type == name


def test_what_no_family_has_is_named():
    decoder = plain(d_model=16, n_layers=2, d_head=8, vocab_size=40)
    with pytest.raises(UserError, match=r"in the way of smollm3: attention\.bias is qkv, not none"):
        config_for(replace(decoder, position=NoPosition(), attention=replace(decoder.attention, bias="qkv")), 64)
    mixed = Attention(n_heads=2, n_kv_heads=2, d_head=8, previous_key=True)
    with pytest.raises(UserError, match="no Hugging Face family known here can express this decoder"):
        config_for(Decoder(vocab_size=40, d_model=16, n_layers=2, attention=mixed, ffn=SwiGLU(d_ff=8)), 64)


def test_dtypes(tmp_path):
    reference(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    assert nachim.load(tmp_path, "bfloat16").head.weight.dtype == torch.bfloat16
    for wrong in ("int64", "float31"):
        with pytest.raises(UserError, match=f"dtype is '{wrong}'"):
            nachim.load(tmp_path, wrong)
    with pytest.raises(UserError, match="there is no folder nowhere"):
        nachim.load("nowhere")


def test_loading_by_the_package_waits_for_torch():
    import subprocess
    import sys

    code = "import sys, nachim, nachim.law; print('torch' in sys.modules, callable(nachim.load))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "True"]
