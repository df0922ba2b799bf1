"""Mixers with positions, in the smallest shapes there are: what does not go together says so at once, the rest works.

python -m tests.model.test_pairs    # every pair, some minutes; the suite tries one position for each mixer
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import (
    FIRE,
    MLA,
    MLP,
    MTP,
    RGLRU,
    ALiBi,
    Attention,
    CompleteP,
    Decoder,
    DynamicNTK,
    GatedDeltaNet,
    GeGLU,
    InfiniAttention,
    LayerNorm,
    Learned,
    LinearAttention,
    Llama3Scaling,
    LongRoPE,
    Mamba,
    Mamba2,
    Mixer,
    MixtureOfDepths,
    MoE,
    MRoPE,
    NoPosition,
    NTKAware,
    OutputNorm,
    Parallel,
    Position,
    PostNorm,
    PreNorm,
    RMSNorm,
    RoPE,
    SandwichNorm,
    Sinusoidal,
    Standard,
    SwiGLU,
    UserError,
    YaRN,
)

V, T = 11, 9
HEADS = {"n_heads": 2, "n_kv_heads": 1}
MIXERS: tuple[Mixer, ...] = (
    Attention(n_heads=4, n_kv_heads=2, d_head=8, qk_norm=True, previous_key=True, bias="all"),
    Attention(**HEADS, d_head=7),
    Attention(**HEADS, d_head=1),
    Attention(n_heads=2, n_kv_heads=2, d_head=8, window=3, softcap=2.0),
    Attention(**HEADS, d_head=8, window=1, sinks=True),
    Attention(**HEADS, d_head=8, sinks=True, softcap=2.0, scale=0.3, qk_norm=True, qk_norm_over="all"),
    MLA(n_heads=2, d_head=8, rank=6, rope_dim=4),
    MLA(n_heads=2, d_head=5, rank=3, rope_dim=6, q_rank=4, d_value=9),
    InfiniAttention(**HEADS, d_head=8, segment=4),
    InfiniAttention(**HEADS, d_head=7, segment=1, update="linear"),
    Mamba(d_inner=12, dt_rank=3),
    Mamba(d_inner=1, dt_rank=1, d_state=1, d_conv=1),
    Mamba2(n_heads=2, d_head=8, d_state=4, chunk=4),
    Mamba2(n_heads=2, d_head=3, d_state=1, d_conv=1, chunk=1, n_groups=2),
    LinearAttention(n_heads=2, d_key=8, d_value=4, chunk=4),
    LinearAttention(n_heads=2, d_key=7, d_value=5, chunk=3),
    LinearAttention(n_heads=1, d_key=2, d_value=1, chunk=1, gate=False),
    LinearAttention(n_heads=2, d_key=8, d_value=4, decay_rank=2, chunk=5),
    GatedDeltaNet(n_heads=2, n_key_heads=1, d_key=4, d_value=5, chunk=4),
    GatedDeltaNet(n_heads=2, n_key_heads=1, d_key=1, d_value=1, chunk=1, d_conv=1),
    RGLRU(d_rnn=8, n_blocks=2),
    RGLRU(d_rnn=3, n_blocks=3, d_conv=1),
)
POSITIONS: tuple[Position, ...] = (
    RoPE(),
    RoPE(dim=4),
    RoPE(dim=2, scaling=YaRN(factor=4.0, original=8)),
    RoPE(scaling=NTKAware(factor=2.0)),
    RoPE(scaling=DynamicNTK(factor=2.0, original=T)),
    RoPE(scaling=YaRN(factor=4.0, original=8, mscale=0.7, mscale_all_dim=0.9)),
    RoPE(scaling=Llama3Scaling(factor=4.0, original=8)),
    RoPE(scaling=LongRoPE(factor=2.0, short=(1.0,) * 4, long=(1.0, 2.0, 2.0, 3.0), original=T)),
    MRoPE(sections=(2, 1, 1)),
    MRoPE(sections=(1, 0, 1)),
    ALiBi(),
    ALiBi(rounded=True, factor=0.5),
    FIRE(n_heads=2, width=3),
    FIRE(n_heads=4, width=1),
    Learned(length=32),
    Sinusoidal(),
    NoPosition(),
    RoPE(theta=0.5),
)
AROUND = {
    "residual": (PreNorm(), PostNorm(), SandwichNorm(), OutputNorm(), Parallel(), Parallel(shared=True)),
    "norm": (RMSNorm(), RMSNorm(offset=True), LayerNorm(), LayerNorm(bias=False)),
    "ffn": (
        SwiGLU(d_ff=8),
        GeGLU(d_ff=8, bias=True, exact=True),
        MLP(d_ff=5, activation="relu2", bias=True),
        MoE(d_ff=4, experts=4, active=2, bias_step=0.1, z_loss=0.1, balance_loss=0.1),
        MoE(d_ff=3, experts=1, active=1),
        MoE(d_ff=3, experts=3, active=2, bias=True, limit=3.0),
        None,
    ),
    "parametrisation": (Standard(), CompleteP(base_width=8, base_depth=2, base_head=8)),
    "depth": (None, MixtureOfDepths(capacity=0.5, every=2), MixtureOfDepths(capacity=0.01, every=1)),
    "mtp": (None, MTP(depth=2)),
    "tied": (False, True),
    "embedding_norm": (False, True),
    "logit_cap": (None, 5.0),
}
"""What a pair stands among, drawn by chance."""


def hold(mixer: Mixer, position: Position, draw: random.Random) -> bool:
    """Whether a decoder of these is one; it then trains, decodes as it reads, packed or not, and counts as declared."""
    around = {name: draw.choice(parts) for name, parts in AROUND.items()}
    try:
        spec = Decoder(vocab_size=V, d_model=16, n_layers=2, attention=mixer, position=position, **around)
    except UserError:
        return False
    model = build(spec, 16)
    initialise(model, 0)
    assert sum(weight.numel() for weight in model.parameters()) == spec.params_total
    ids_BT = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))
    for documents_BT in (None, torch.tensor([[0] * 4 + [1] * 5, [-1] * 3 + [2] * 6])):
        model.train().loss(ids_BT, ids_BT.roll(-1, 1), documents_BT).backward()
        assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
        model.eval()
        with torch.no_grad():
            whole_BTV, cache, parts = model(ids_BT, documents_BT), model.start(), []
            for begin, end in itertools.pairwise((0, 4, 5, 7, 8, 9)):
                documents = None if documents_BT is None else documents_BT[:, begin:end]
                parts.append(model(ids_BT[:, begin:end], documents, cache))
        torch.testing.assert_close(torch.cat(parts, 1), whole_BTV, rtol=1e-3, atol=1e-3)
        if spec.depth is None and documents_BT is None:
            assert cache.nbytes == 2 * spec.cache_bytes(T, 4)
    return True


@pytest.mark.parametrize("number", range(len(MIXERS)))
def test_a_pair_is_refused_at_once_or_works(number):
    """A position in turn for each mixer, the first that goes with it."""
    draw = random.Random(number)
    turn = POSITIONS[5 * number % len(POSITIONS) :] + POSITIONS
    assert any(hold(MIXERS[number], position, draw) for position in turn)


def test_a_bias_is_refused_by_what_adds_none():
    draw = random.Random(0)
    for mixer in (MIXERS[8], MIXERS[9], MIXERS[14]):
        assert not any(hold(mixer, position, draw) for position in POSITIONS if isinstance(position, (ALiBi, FIRE)))


if __name__ == "__main__":
    chance = random.Random(0)
    found = [hold(*pair, chance) for pair in itertools.product(MIXERS, POSITIONS)]
    print(f"{sum(found)} of {len(found)} pairs work, the others were refused")
