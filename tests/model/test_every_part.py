"""Every part keeps the contract of decoders, alone and mixed with others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nachim.spec import (
    FIRE,
    MLA,
    MLP,
    MTP,
    RGLRU,
    ALiBi,
    Decoder,
    GatedDeltaNet,
    GeGLU,
    InfiniAttention,
    LayerNorm,
    Learned,
    LinearAttention,
    Mamba,
    Mamba2,
    MoE,
    NoPosition,
    Pattern,
    RoPE,
    Sinusoidal,
    SwiGLU,
    YaRN,
)
from tests.model.contract import hold
from tests.spec.examples import decoder

BASE = decoder(n_kv_heads=2)
WHOLE = BASE.attention


def attention(**changes: object) -> Decoder:
    """The base with other attention."""
    return replace(BASE, attention=replace(WHOLE, **changes))


def mixer(*parts: object, **changes: object) -> Decoder:
    """The base with these mixers in turn."""
    return replace(BASE, attention=Pattern(parts=parts), n_layers=len(parts), **changes)


LOCAL = replace(WHOLE, window=5)
STATE = Mamba(d_inner=24, d_state=5, dt_rank=3, d_conv=3)
HEADED = Mamba2(n_heads=4, d_head=6, d_state=8, n_groups=2, d_conv=3, chunk=4)
DECODERS = {
    "multi-query": attention(n_kv_heads=1),
    "window": attention(window=5),
    "window of one": attention(window=1),
    "biases": attention(bias="all"),
    "norms of heads": attention(qk_norm=True),
    "norms over heads": attention(qk_norm=True, qk_norm_over="all", qk_norm_offset=True),
    "previous key": attention(previous_key=True, window=4),
    "soft-cap and scale": attention(softcap=2.0, scale=0.3),
    "sinks": attention(sinks=True, window=6),
    "local and global": mixer(LOCAL, LOCAL, WHOLE),
    "latent": mixer(MLA(n_heads=4, d_head=8, rank=12, rope_dim=4)),
    "latent, narrow queries": mixer(MLA(n_heads=4, d_head=8, rank=12, rope_dim=4, q_rank=10, d_value=6)),
    "half turned": replace(BASE, position=RoPE(dim=4)),
    "stretched": replace(BASE, position=RoPE(scaling=YaRN(factor=4.0, original=8))),
    "one global layer without position": mixer(LOCAL, WHOLE, position=Pattern(parts=(RoPE(theta=50.0), NoPosition()))),
    "ALiBi": replace(BASE, position=ALiBi()),
    "FIRE": replace(BASE, position=FIRE(n_heads=4)),
    "learned": replace(BASE, position=Learned(length=32)),
    "sinusoidal": replace(BASE, position=Sinusoidal()),
    "no position": replace(BASE, position=NoPosition()),
    "GPT-2's": replace(
        attention(bias="all"), ffn=MLP(d_ff=40, bias=True), norm=LayerNorm(), position=Learned(length=32), tied=True
    ),
    "GeGLU": replace(BASE, ffn=GeGLU(d_ff=24)),
    "squared ReLU": replace(BASE, ffn=MLP(d_ff=24, activation="relu2")),
    "experts": replace(BASE, ffn=MoE(d_ff=8, experts=6, active=2, shared=1, shared_gate=True)),
    "dense, then experts": replace(
        BASE, ffn=Pattern(first=(SwiGLU(d_ff=24),), parts=(MoE(d_ff=8, experts=4, active=1),))
    ),
    "state space": mixer(STATE, replace(STATE, inner_norm=True), ffn=None),
    "headed state space": mixer(HEADED, ffn=None),
    "retention": mixer(LinearAttention(n_heads=4, d_key=6, d_value=8, chunk=4)),
    "gated linear": mixer(LinearAttention(n_heads=4, d_key=6, d_value=8, decay_rank=3, gate=False, chunk=4)),
    "gated delta rule": mixer(GatedDeltaNet(n_heads=4, n_key_heads=2, d_key=6, d_value=8, d_conv=3, chunk=4)),
    "gated delta rule, one head each": mixer(GatedDeltaNet(n_heads=2, n_key_heads=2, d_key=6, d_value=4, chunk=3)),
    "recurrent unit": mixer(RGLRU(d_rnn=24, n_blocks=3, d_conv=3)),
    "compressive memory": mixer(InfiniAttention(n_heads=4, n_kv_heads=2, d_head=8, segment=4)),
    "compressive memory, linear": mixer(InfiniAttention(n_heads=4, n_kv_heads=4, d_head=8, segment=5, update="linear")),
    "experts of groups": replace(
        BASE,
        ffn=MoE(
            d_ff=8, experts=8, active=3, groups=4, top_groups=2, group_score="top2", scores="sigmoid", bias_step=0.01
        ),
    ),
    "experts with biases": replace(BASE, ffn=MoE(d_ff=8, experts=4, active=2, bias=True, limit=7.0, z_loss=0.1)),
    "two tokens further": replace(BASE, mtp=MTP(depth=2)),
    "Griffin": mixer(RGLRU(d_rnn=24, n_blocks=3), RGLRU(d_rnn=24, n_blocks=3), LOCAL),
    "hybrid": mixer(STATE, HEADED, LOCAL, WHOLE, position=NoPosition()),
}


@pytest.mark.parametrize("spec", DECODERS.values(), ids=DECODERS)
def test_a_decoder_gives_one_answer_however_its_tokens_arrive(spec):
    hold(spec)
