"""GGUF files, read back by the format's own reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor
from transformers import (
    BloomConfig,
    CohereConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    JambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from nachim.model.hf import open_checkpoint, read_config
from nachim.model.hf.checkpoint import shapes
from nachim.model.hf.gguf import write_gguf
from nachim.model.hf.gguf_archs import rules_for
from nachim.model.hf.gguf_known import ARCHS, arch_of
from nachim.model.hf.source import Source, save
from nachim.spec import Decoder, UserError
from tests.model.hf.parity import SMALL, reference
from tests.model.hf.test_deepseek import LATENT
from tests.model.hf.test_llama import LLAMA3

GROUPED = {"num_key_value_heads": 2}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
YARN |= {"mscale": 0.7, "mscale_all_dim": 0.7}
FALCON = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, **GROUPED, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3),
    "tied llama": LlamaConfig(
        **SMALL, tie_word_embeddings=True, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "qwen2": Qwen2Config(**SMALL, **GROUPED),
    "qwen3": Qwen3Config(**SMALL, **GROUPED, head_dim=12),
    "gemma2": Gemma2Config(**SMALL, **GROUPED, head_dim=12, query_pre_attn_scalar=12, sliding_window=8),
    "gemma3": Gemma3TextConfig(
        **{**SMALL, "num_hidden_layers": 6}, **GROUPED, head_dim=12, query_pre_attn_scalar=12, sliding_window=8
    ),
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "olmo2": Olmo2Config(**SMALL, tie_word_embeddings=True),
    "smollm3": SmolLM3Config(**{**SMALL, "num_hidden_layers": 4}, **GROUPED, pad_token_id=0),
    "starcoder2": Starcoder2Config(**SMALL, **GROUPED, sliding_window=None),
    "stablelm": StableLmConfig(**SMALL, **GROUPED, use_qkv_bias=True, partial_rotary_factor=0.25),
    "parallel stablelm": StableLmConfig(
        **SMALL, num_key_value_heads=4, use_parallel_residual=True, tie_word_embeddings=True
    ),
    "cohere": CohereConfig(**SMALL, **GROUPED, pad_token_id=0),
    "bloom": BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4),
    "falcon": FalconConfig(**FALCON),
    "new falcon": FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=48),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "sequential gpt_neox": GPTNeoXConfig(**SMALL, use_parallel_residual=False, tie_word_embeddings=True),
    "mpt": MptConfig(vocab_size=40, d_model=36, n_layers=2, n_heads=6, max_seq_len=64),
    "qwen2_moe": Qwen2MoeConfig(
        **SMALL, **GROUPED, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=32
    ),
    "mixtral": MixtralConfig(**SMALL, **GROUPED, num_local_experts=4, tie_word_embeddings=True),
    "qwen3_moe": Qwen3MoeConfig(
        **SMALL,
        **GROUPED,
        head_dim=12,
        num_experts=4,
        moe_intermediate_size=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
    "mamba": MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=3),
    "mamba2": Mamba2Config(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=2
    ),
    "jamba": JambaConfig(
        **{**SMALL, "num_hidden_layers": 4},
        **GROUPED,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_dt_rank=3,
        use_mamba_kernels=False,
        pad_token_id=0,
    ),
    "deepseek_v2": DeepseekV2Config(**LATENT),
    "deepseek_v3": DeepseekV3Config(**LATENT, n_group=2, topk_group=1, rope_parameters=YARN),
    "phi3": Phi3Config(**SMALL, **GROUPED, pad_token_id=0, original_max_position_embeddings=32, rope_parameters=LONG),
}


def spec_of(name: str) -> tuple[str, Decoder]:
    family, _, decoder = read_config(CONFIGS[name].to_dict())
    return family.model_type, decoder


def stored(decoder: Decoder, folder: Path, dtype: torch.dtype) -> Source:
    """Random tensors of a decoder, in a file."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(one.shape, generator=generator).to(dtype) for name, one in shapes(decoder).items()}
    save(drawn, folder / "ours.safetensors")
    return Source([folder / "ours.safetensors"])


def read(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Metadata and tensors of a GGUF file; tensors as fp32."""
    reader = GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    found = {}
    for one in reader.tensors:
        data = dequantize(one.data, one.tensor_type).reshape(tuple(map(int, reversed(one.shape))))
        found[one.name] = torch.from_numpy(np.array(data, dtype=np.float32))
    return facts, found


HEADS = {"jamba": [0, 2, 0, 2], "deepseek_v2": 1, "deepseek_v3": 1}
"""Of keys as llama.cpp counts them: of each layer where some do not attend, one where a latent stands for all."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_there_and_comes_back(name, dtype, tmp_path):
    model_type, decoder = spec_of(name)
    arch, source = arch_of(model_type, decoder, 64), stored(decoder, tmp_path, dtype)
    write_gguf(tmp_path / "model.gguf", arch, decoder, source, 64, {"tokenizer_model": "no_vocab"})
    facts, found = read(tmp_path / "model.gguf")
    for rule in rules_for(arch, decoder):
        back = rule.transform.read(tuple(found.pop(name) for name in rule.theirs))
        for ours, tensor in zip(rule.ours, back, strict=True):
            gain = arch.plus_one and ours.endswith("norm.weight")
            expected = source[ours].float() + 1 if gain else source[ours].float()
            if ours.endswith("A_log"):  # stored as -exp of it
                torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(tensor, expected), ours
    if "output.weight" in found:
        assert torch.equal(found.pop("output.weight"), source["embedding.weight"].float())
    assert set(found) <= {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    prefix = facts["general.architecture"]
    assert facts[f"{prefix}.block_count"] == decoder.n_layers
    if (heads := HEADS.get(name, getattr(decoder.blocks[0].mixer, "n_kv_heads", None))) is not None:
        assert facts[f"{prefix}.attention.head_count_kv"] == heads
    assert facts[f"{prefix}.context_length"] == (2**20 if name in ("mamba", "mamba2") else 64)
    assert facts["general.file_type"] == {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}[dtype]


READ = (
    "tied llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt2",
    "qwen2_moe",
    "qwen3_moe",
    "phi3",
    "starcoder2",
    "stablelm",
)
"""Of these transformers reads GGUF files, by code of its own."""


@pytest.mark.parametrize("name", READ)
def test_transformers_reads_the_same_tensors(name, tmp_path):
    theirs = reference(CONFIGS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    opened = open_checkpoint(tmp_path / "theirs")
    save(opened.weights(), tmp_path / "ours.safetensors")
    arch = arch_of(opened.family.model_type, opened.decoder, 64)
    path = tmp_path / "model.gguf"
    write_gguf(path, arch, opened.decoder, Source([tmp_path / "ours.safetensors"]), 64, {})
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)["tensors"]
    expected = theirs.state_dict()
    if opened.decoder.tied:
        expected.pop("lm_head.weight")
    assert set(found) - {"rope_freqs.weight"} == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=2e-7 if arch.plus_one else 0)


def test_llama_rows_are_pairs_that_turn_together(tmp_path):
    """llama.cpp turns rows 2i and 2i + 1 of a head by frequency i, where rows i and i + d/2 turn together here."""
    _, decoder = spec_of("llama")
    source = stored(decoder, tmp_path, torch.float32)
    write_gguf(tmp_path / "model.gguf", arch_of("llama", decoder, 64), decoder, source, 64, {})
    facts, found = read(tmp_path / "model.gguf")
    ours = source["blocks.1.attention.qkv.weight"]
    keys, d_head = ours[4 * 8 : 6 * 8].view(2, 8, 32), 8
    theirs = found["blk.1.attn_k.weight"].view(2, d_head, 32)
    for pair in range(d_head // 2):
        assert torch.equal(theirs[:, 2 * pair], keys[:, pair])
        assert torch.equal(theirs[:, 2 * pair + 1], keys[:, pair + d_head // 2])
    assert torch.equal(found["blk.1.attn_v.weight"], ours[6 * 8 :])
    assert facts["llama.rope.dimension_count"] == 8
    assert facts["llama.rope.freq_base"] == 5e5


def test_llama3_frequencies_are_divided_as_transformers_does(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    _, decoder = spec_of("llama")
    source = stored(decoder, tmp_path, torch.float32)
    write_gguf(tmp_path / "model.gguf", arch_of("llama", decoder, 64), decoder, source, 64, {})
    divisors = read(tmp_path / "model.gguf")[1]["rope_freqs.weight"]
    expected = ROPE_INIT_FUNCTIONS["llama3"](CONFIGS["llama"], "cpu")[0]
    plain = 5e5 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(plain / divisors, expected)
    assert divisors.max() == 8
    assert divisors.min() < 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "jamba",
            {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 8, "ssm.time_step_rank": 3}
            | {"expert_count": 4, "expert_used_count": 2},
        ),
        ("mamba2", {"ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 64}),
        (
            "deepseek_v3",
            {"attention.key_length": 16, "attention.key_length_mla": 12, "attention.value_length_mla": 6}
            | {"leading_dense_block_count": 1, "expert_gating_func": 2, "expert_group_used_count": 1}
            | {"rope.scaling.yarn_log_multiplier": pytest.approx(0.07), "attention.q_lora_rank": 10},
        ),
    ],
)
def test_what_the_file_tells_of_states_and_latents(name, said, tmp_path):
    model_type, decoder = spec_of(name)
    source = stored(decoder, tmp_path, torch.float32)
    write_gguf(tmp_path / "model.gguf", arch_of(model_type, decoder, 64), decoder, source, 64, {})
    facts, found = read(tmp_path / "model.gguf")
    assert {key: facts[f"{facts['general.architecture']}.{key}"] for key in said} == said
    if name == "deepseek_v3":  # a head's keys are what its latents are multiplied by, the other way round
        up_HEC = source["blocks.1.attention.kv_up.weight"].view(4, 8 + 6, 12)
        assert torch.equal(found["blk.1.attn_k_b.weight"], up_HEC[:, :8].mT)
        assert torch.equal(found["blk.1.attn_v_b.weight"], up_HEC[:, 8:])
    else:
        rate = -source["blocks.0.attention.A_log"].exp()
        torch.testing.assert_close(found["blk.0.ssm_a"], rate.view(found["blk.0.ssm_a"].shape))


def test_what_the_file_tells_of_falcon_neox_and_mpt(tmp_path):
    facts, found = {}, {}
    for name in ("new falcon", "falcon", "gpt_neox", "sequential gpt_neox", "mpt"):
        model_type, decoder = spec_of(name)
        source, path = stored(decoder, tmp_path, torch.float32), tmp_path / f"{name}.gguf"
        write_gguf(path, arch_of(model_type, decoder, 64), decoder, source, 64, {})
        facts[name], found[name] = read(path)
        if name == "new falcon":  # the norm that llama.cpp gives to attention is called the second
            assert torch.equal(found[name]["blk.1.attn_norm_2.weight"], source["blocks.1.attention_norm.weight"])
            assert torch.equal(found[name]["blk.1.attn_norm.bias"], source["blocks.1.ffn_norm.bias"])
    assert not any("attn_norm_2" in key for key in found["falcon"])
    assert facts["falcon"]["falcon.attention.head_count_kv"] == 1
    assert "output.weight" not in found["falcon"] and "output.weight" in found["sequential gpt_neox"]
    assert facts["gpt_neox"]["gptneox.use_parallel_residual"]
    assert not facts["sequential gpt_neox"]["gptneox.use_parallel_residual"]
    assert facts["gpt_neox"]["gptneox.rope.dimension_count"] == 2
    assert facts["mpt"]["mpt.attention.max_alibi_bias"] == 8.0


def test_what_the_file_tells_of_gemma_and_phi(tmp_path):
    _, decoder = spec_of("gemma2")
    write_gguf(
        tmp_path / "gemma.gguf",
        arch_of("gemma2", decoder, 64),
        decoder,
        stored(decoder, tmp_path, torch.float32),
        64,
        {},
    )
    facts = read(tmp_path / "gemma.gguf")[0]
    assert facts["gemma2.attention.sliding_window"] == 8
    assert facts["gemma2.attn_logit_softcapping"] == 50.0
    assert facts["gemma2.final_logit_softcapping"] == 30.0
    _, decoder = spec_of("phi3")
    source = stored(decoder, tmp_path, torch.float32)
    write_gguf(tmp_path / "phi.gguf", arch_of("phi3", decoder, 64), decoder, source, 64, {})
    facts, found = read(tmp_path / "phi.gguf")
    assert found["rope_factors_long.weight"].tolist() == LONG["long_factor"]
    assert facts["phi3.rope.scaling.original_context_length"] == 32
    assert facts["phi3.rope.scaling.attn_factor"] == pytest.approx((1 + np.log(2) / np.log(32)) ** 0.5)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "the feed-forward is GeGLU"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE.scaling is DynamicNTK"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None},
            "no window",
        ),
        ("gemma2", {"query_pre_attn_scalar": 99}, "attention.scale is"),
        ("gemma2", {"final_logit_softcapping": None}, "logit_cap is None"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "all but every 6th"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "layer 3 has the positions RoPE"),
        ("cohere", {"tie_word_embeddings": False}, "the head is not the embedding"),
        ("starcoder2", {"hidden_act": "gelu"}, "the feed-forward is MLP"),
        ("falcon", {"parallel_attn": False}, "the residual is PreNorm"),
        ("falcon", {"alibi": True}, "the position is ALiBi"),
        ("falcon", {"bias": True}, "the feed-forward is MLP"),
        ("gpt_neox", {"attention_bias": False}, "attention.bias is 'none'"),
        ("gpt_neox", {"hidden_act": "relu"}, "the feed-forward is MLP"),
        ("mpt", {"attn_config": {"alibi": True, "softmax_scale": 0.3}}, "attention.scale is 0.3"),
        ("qwen2_moe", {"norm_topk_prob": True}, "the feed-forward is MoE"),
        ("qwen3_moe", {"norm_topk_prob": False}, "the feed-forward is MoE"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "the feed-forward is SwiGLU"),
        ("phi3", {"sliding_window": 8}, "it has no window, here of 8 tokens"),
        ("olmo2", {"head_dim": 12}, "heads of 12 are not d_model=32"),
        ("deepseek_v2", {"q_lora_rank": None}, "MLA.q_rank is None, which it takes from the number of layers"),
        (
            "deepseek_v2",
            {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
            "MoE.group_score is 'max'",
        ),
        ("deepseek_v3", {"rope_parameters": YARN | {"mscale": 1.0}}, "RoPE.scaling is YaRN"),
        ("deepseek_v3", {"rope_parameters": YARN | {"beta_fast": 16}}, "RoPE.scaling is YaRN"),
        ("jamba", {"attn_layer_period": 1, "attn_layer_offset": 0}, "no layer is a state space"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(name, changes, said):
    family, _, decoder = read_config({**CONFIGS[name].to_dict(), **changes})
    with pytest.raises(UserError, match=said):
        arch_of(family.model_type, decoder, 64)


def test_a_window_as_long_as_the_context_is_none():
    _, decoder = spec_of("qwen2")
    windowed = replace(decoder, attention=replace(decoder.attention, window=64))
    assert (
        arch_of("mistral", replace(windowed, attention=replace(windowed.attention, bias="none")), 64) is ARCHS["llama"]
    )


def test_a_family_without_an_architecture_is_refused():
    with pytest.raises(UserError, match="no GGUF file is written for gpt_oss models; known: bloom, "):
        arch_of("gpt_oss", spec_of("llama")[1], 64)
