"""Stretched frequencies, and what they do to queries, against transformers' on configs of the real classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DynamicCache,
    GPTNeoXConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding, apply_rotary_pos_emb

import nachim
from nachim.model import build
from nachim.model.frame import Frame
from nachim.model.position import frequencies
from nachim.spec import DynamicNTK, Interpolated, Llama3Scaling, LongRoPE, NTKAware, RoPE, Scaling, YaRN
from tests.model.hf.parity import reference

E, THETA, ORIGINAL = 16, 500.0, 8
SHORT, LONG = (1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
CASES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], Scaling]] = {
    "linear": (LlamaConfig, {"factor": 4.0}, Interpolated(factor=4.0)),
    "dynamic": (LlamaConfig, {"factor": 4.0}, DynamicNTK(factor=4.0, original=ORIGINAL)),
    "llama3": (
        LlamaConfig,
        {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 40},
        Llama3Scaling(factor=4.0, low=1.0, high=3.0, original=40),
    ),
    "yarn": (
        LlamaConfig,
        {"factor": 4.0, "original_max_position_embeddings": 200},
        YaRN(factor=4.0, original=200),
    ),
    "yarn, all its fields": (
        LlamaConfig,
        {
            "factor": 6.0,
            "original_max_position_embeddings": 200,
            "beta_fast": 10.0,
            "beta_slow": 2.0,
            "attention_factor": 1.25,
            "truncate": False,
        },
        YaRN(factor=6.0, original=200, beta_fast=10.0, beta_slow=2.0, attention_factor=1.25, truncate=False),
    ),
    "yarn, a line of no length": (
        LlamaConfig,
        {"factor": 4.0, "original_max_position_embeddings": 5},
        YaRN(factor=4.0, original=5),
    ),
    "yarn, DeepSeek's": (
        DeepseekV3Config,
        {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.7, "mscale_all_dim": 1.2},
        YaRN(factor=40.0, original=4096, mscale=0.7, mscale_all_dim=1.2),
    ),
    "longrope": (
        Phi3Config,
        {"short_factor": list(SHORT), "long_factor": list(LONG)},
        LongRoPE(short=SHORT, long=LONG, factor=4.0, original=ORIGINAL),
    ),
}


def theirs(kind: str, width: int = E, **more: Any) -> PreTrainedConfig:
    """The config of a case, its context `ORIGINAL` tokens, or four times as many where it names an original apart."""
    cls, fields, _ = CASES[kind]
    name = kind.partition(",")[0]
    shape = {"hidden_size": 4 * width, "num_attention_heads": 4, "max_position_embeddings": ORIGINAL}
    if cls is DeepseekV3Config:
        shape |= {"qk_rope_head_dim": width}
    if cls is Phi3Config:
        shape |= {
            "max_position_embeddings": 4 * ORIGINAL,
            "original_max_position_embeddings": ORIGINAL,
            "pad_token_id": 0,
        }
    return cls(**shape, rope_parameters={"rope_type": name, "rope_theta": THETA, **fields, **more})


def rope(kind: str, **fields: Any) -> RoPE:
    """Our part of a case."""
    return RoPE(theta=THETA, scaling=CASES[kind][2], **fields)


@pytest.mark.parametrize("length", [1, ORIGINAL, ORIGINAL + 1, 29])
@pytest.mark.parametrize("kind", CASES)
def test_frequencies_and_factors_are_those_of_transformers(kind, length):
    config = theirs(kind)
    name = kind.partition(",")[0]
    wanted, factor = ROPE_INIT_FUNCTIONS[name](config, seq_len=length)
    found = frequencies(rope(kind), E, length)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-6, atol=0)
    assert CASES[kind][2].magnitude == pytest.approx(factor, rel=1e-12)
    plain = frequencies(RoPE(theta=THETA), E)
    changed = (found - plain).abs().max() > 1e-3
    assert changed == (kind != "dynamic" or length > ORIGINAL)


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("kind", [kind for kind in CASES if kind not in ("longrope", "yarn, DeepSeek's")])
def test_frequencies_of_heads_that_turn_in_part_are_those_of_transformers(kind, share):
    config = theirs(kind, partial_rotary_factor=share)
    wanted, _ = ROPE_INIT_FUNCTIONS[kind.partition(",")[0]](config, seq_len=29)
    found = frequencies(rope(kind, dim=int(share * E)), E, 29)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-6, atol=0)


def test_the_larger_base_is_hunyuans():
    parameters = {"rope_type": "dynamic", "rope_theta": THETA, "factor": 1.0, "alpha": 50.0}
    config = HunYuanDenseV1Config(hidden_size=64, num_attention_heads=4, head_dim=E, rope_parameters=parameters)
    wanted = HunYuanDenseV1RotaryEmbedding(config).inv_freq
    found = frequencies(RoPE(theta=THETA, scaling=NTKAware(factor=50.0)), E)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-6, atol=0)


def turned(part: RoPE, x_BHTE: torch.Tensor, start: int = 0, **frame: Any) -> torch.Tensor:
    """`x_BHTE` turned by our module, its tokens after `start` others."""
    shape = (x_BHTE.shape[0], x_BHTE.shape[2])
    return build(part, 4 * E).turn(x_BHTE, Frame(shape, x_BHTE.device, start, **frame))


@pytest.mark.parametrize("kind", CASES)
def test_queries_turn_as_in_transformers(kind):
    """Dynamic kinds too: within the original context, beyond it, growing token by token, and back inside.

    Theirs remember the longest context until one comes that is shorter than the original; ours remember nothing.
    """
    reference = (Phi3RotaryEmbedding if kind == "longrope" else LlamaRotaryEmbedding)(theirs(kind))
    for start, length in ((0, 5), (0, ORIGINAL), (0, 20), (20, 1), (21, 3), (0, 6), (0, 25)):
        x_BHTE = torch.randn(2, 3, length, E)
        positions = torch.arange(start, start + length)[None]
        cos, sin = reference(x_BHTE, positions)
        wanted, _ = apply_rotary_pos_emb(x_BHTE, x_BHTE, cos, sin)
        torch.testing.assert_close(turned(rope(kind), x_BHTE, start), wanted, rtol=1e-5, atol=1e-5)
        given = turned(rope(kind), x_BHTE, positions=positions.expand(2, -1))
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_the_longest_document_sets_the_length(kind):
    """Padding on the left is no part of it, as in transformers, whose positions begin after it."""
    x_BHTE = torch.randn(2, 3, 14, E)
    documents_BS = torch.tensor([[-1] * 4 + [0] * 10, [-1] * 9 + [0] * 5])
    found = turned(rope(kind), x_BHTE, documents_BS=documents_BS)
    positions = torch.tensor([[1] * 4 + list(range(10)), [1] * 9 + list(range(5))])
    reference = (Phi3RotaryEmbedding if kind == "longrope" else LlamaRotaryEmbedding)(theirs(kind))
    wanted, _ = apply_rotary_pos_emb(x_BHTE, x_BHTE, *reference(x_BHTE, positions))
    torch.testing.assert_close(found[0, :, 4:], wanted[0, :, 4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, :, 9:], wanted[1, :, 9:], rtol=1e-5, atol=1e-5)


def test_gpt_neox_turns_a_quarter_of_each_head():
    config = GPTNeoXConfig(
        hidden_size=64,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.25},
    )
    x_BHTE = torch.randn(2, 3, 11, E)
    cos, sin = GPTNeoXRotaryEmbedding(config)(x_BHTE, torch.arange(11)[None])
    wanted, _ = apply_rotary_pos_emb(x_BHTE, x_BHTE, cos, sin)
    found = turned(RoPE(theta=THETA, dim=4), x_BHTE)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(found[..., 4:], x_BHTE[..., 4:])


def test_the_factor_on_latent_scores_is_deepseeks():
    parameters = theirs("yarn, DeepSeek's").rope_parameters
    assert CASES["yarn, DeepSeek's"][2].latent_score == pytest.approx(yarn_apply_mscale(parameters, 1.0), rel=1e-12)


def test_magnitude_stands_on_what_turns_alone():
    part = RoPE(dim=4, scaling=YaRN(factor=4.0, original=8))
    x_BHTE = torch.randn(1, 1, 3, E)
    found = turned(part, x_BHTE)
    torch.testing.assert_close(found[0, 0, 0, :4], x_BHTE[0, 0, 0, :4] * part.scaling.magnitude)
    assert torch.equal(found[..., 4:], x_BHTE[..., 4:])


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_decoding_beyond_the_original_context_is_that_of_transformers(kind, tmp_path):
    """Keys in a cache stay as they were turned, in theirs too: it is not what one pass over all tokens gives."""
    config = theirs(kind)
    for name, value in (("num_hidden_layers", 2), ("vocab_size", 40), ("intermediate_size", 48)):
        setattr(config, name, value)
    model, ids_BT = reference(config), torch.arange(3 * ORIGINAL)[None] * 7 % 40
    model.save_pretrained(tmp_path)
    ours, held, cache, apart = nachim.load(tmp_path), DynamicCache(), nachim.load(tmp_path).start(), []
    with torch.no_grad():
        for part_BT in ids_BT.split([ORIGINAL - 2, 1, 1, 1, 1, 5, *[1] * (2 * ORIGINAL - 7)], 1):
            expected = model(part_BT, past_key_values=held).logits
            found = ours(part_BT, cache=cache)
            apart.append(float((found - expected).abs().max() / expected.abs().max()))
        whole = ours(ids_BT)[:, -1:]
    assert max(apart) < 1e-4
    assert (whole - found).abs().max() > 0.01 * found.abs().max()
    assert ours.spec.cached_context == ORIGINAL
