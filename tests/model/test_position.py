"""Every position scheme against another's implementation or its formula, and what all of them must keep."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2VLTextConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.xlm.modeling_xlm import create_sinusoidal_embeddings

from nachim.model import build
from nachim.model.bias import slopes
from nachim.model.decoder import initialise
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import (
    FIRE,
    ALiBi,
    DynamicNTK,
    Interpolated,
    Learned,
    Llama3Scaling,
    LongRoPE,
    MRoPE,
    NoPosition,
    NTKAware,
    Pattern,
    Position,
    RoPE,
    Sinusoidal,
    UserError,
    YaRN,
)
from tests.model.contract import drawn, hold
from tests.spec.examples import decoder

E, H, T = 8, 4, 14
CPU = torch.device("cpu")
SCALINGS = {
    "interpolated": Interpolated(factor=4.0),
    "NTK-aware": NTKAware(factor=4.0),
    "dynamic": DynamicNTK(factor=4.0, original=4),
    "YaRN": YaRN(factor=4.0, original=30),
    "Llama 3": Llama3Scaling(factor=4.0, original=30),
    "LongRoPE": LongRoPE(short=(1.0, 1.5, 2.0, 3.0), long=(1.0, 2.0, 3.0, 4.0), factor=4.0, original=4),
}
ROTARY: dict[str, RoPE] = {
    "plain": RoPE(theta=50.0),
    "partial": RoPE(theta=50.0, dim=4),
    "three axes": MRoPE(theta=50.0, sections=(2, 1, 1)),
    **{name: RoPE(theta=50.0, scaling=scaling) for name, scaling in SCALINGS.items()},
}
ALL: dict[str, Position] = {
    **ROTARY,
    "dynamic": RoPE(scaling=DynamicNTK(factor=4.0, original=32)),  # keys in a cache stay as they were turned
    "LongRoPE": RoPE(scaling=LongRoPE(short=(1.0, 1.5, 2.0, 3.0), long=(1.0,) * 4, factor=4.0, original=32)),
    "none": NoPosition(),
    "learned": Learned(length=20),
    "sinusoidal": Sinusoidal(),
    "ALiBi": ALiBi(),
    "FIRE": FIRE(n_heads=H, width=6, length=5.0),
}


def module(part: Position) -> PositionModule:
    """The module of `part`, its parameters drawn."""
    made = build(part, H * E)
    if hasattr(made, "draw"):
        made.draw(torch.Generator().manual_seed(0))
    return made


def frame(new: int = T, start: int = 0, batch: int = 2, **told: Any) -> Frame:
    """`new` tokens after `start` others."""
    return Frame((batch, new), CPU, start, **told)


@pytest.mark.parametrize("part", ALL.values(), ids=ALL)
def test_a_decoder_with_it_keeps_what_every_decoder_must(part):
    hold(decoder(position=part))


@pytest.mark.parametrize("part", ROTARY.values(), ids=ROTARY)
def test_a_score_depends_on_distance_alone(part):
    q_BHTE, k_BHTE = (torch.randn(1, 1, 1, E).expand(1, 1, T, E) for _ in "qk")
    made, where = module(part), frame(batch=1)
    score_TT = (made.turn(q_BHTE, where) @ made.turn(k_BHTE, where).mT)[0, 0]
    for distance in range(-T + 1, T):
        along = score_TT.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-5, atol=1e-5)
    assert (score_TT[0] - score_TT[0, 0]).abs().max() > 0.01


@pytest.mark.parametrize("part", ROTARY.values(), ids=ROTARY)
def test_positions_may_be_told_in_every_shape(part):
    """[T], [B, T], [3, B, T], after others, and within documents: all as counted ones."""
    made, x_BHTE = module(part), torch.randn(2, H, T, E)
    whole = made.turn(x_BHTE, frame())
    index_T = torch.arange(T)
    for told in (index_T, index_T.expand(2, T), index_T.expand(3, 2, T)):
        torch.testing.assert_close(made.turn(x_BHTE, frame(positions=told)), whole, rtol=0, atol=0)
    torch.testing.assert_close(made.turn(x_BHTE[:, :, 9:], frame(T - 9, start=9)), whole[:, :, 9:], rtol=0, atol=0)
    documents_BS = torch.tensor([[3] * 5 + [1] * 9, [-1] * 9 + [0] * 5])
    packed = made.turn(x_BHTE, frame(documents_BS=documents_BS))
    positions = torch.tensor([[*range(5), *range(9)], [*range(9), *range(5)]])
    torch.testing.assert_close(packed, made.turn(x_BHTE, frame(positions=positions)), rtol=0, atol=0)
    rest = made.turn(x_BHTE[:, :, 10:], frame(4, start=10, documents_BS=documents_BS))
    if not isinstance(part.scaling, DynamicNTK):  # whose length is that of the new tokens' last position
        torch.testing.assert_close(rest, packed[:, :, 10:], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_layers_of_one_frame_keep_their_own_bases_widths_and_precisions(dtype):
    x_BHTE, where = torch.randn(2, H, T, E, dtype=dtype), frame()
    parts = [RoPE(), RoPE(theta=50.0), RoPE(dim=4), MRoPE(sections=(2, 1, 1)), RoPE(scaling=NTKAware(factor=2.0))]
    for width in (E, E - 2):
        for part in parts if width == E else parts[:3]:
            narrow = x_BHTE[..., :width]
            found = module(part).turn(narrow, where)
            assert found.dtype == dtype
            assert torch.equal(found, module(part).turn(narrow, frame()))
    turned = [module(part).turn(x_BHTE, where) for part in parts]
    same = [torch.equal(one, other) for number, one in enumerate(turned) for other in turned[:number]]
    assert sum(same) == 1, "text turns by three axes as by one, and no other two alike"


def test_layers_of_one_decoder_turn_by_their_own_base():
    local, far = RoPE(theta=20.0), RoPE(theta=5000.0)
    model = drawn(decoder(position=Pattern(parts=(local, far))))
    ids_BT = torch.arange(T)[None]
    logits = model(ids_BT)
    for parts in ((local, local), (far, far), (far, local)):
        for block, part in zip(model.blocks, parts, strict=True):
            block.position = module(part)
        assert (model(ids_BT) - logits).abs().max() > 1e-3
    for block, part in zip(model.blocks, (local, far), strict=True):
        block.position = module(part)
    torch.testing.assert_close(model(ids_BT), logits)


def test_three_axes_turn_as_in_qwen2_vl():
    part = MRoPE(theta=500.0, sections=(2, 3, 3))
    config = Qwen2VLTextConfig(
        hidden_size=64,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 3, 3]},
    )
    x_BHTE, positions = torch.randn(2, H, T, 16), torch.randint(40, (3, 2, T))
    cos, sin = Qwen2VLRotaryEmbedding(config)(x_BHTE, positions)
    wanted, _ = apply_rotary_pos_emb(x_BHTE, x_BHTE, cos, sin)
    found = module(part).turn(x_BHTE, frame(positions=positions))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    moved = module(part).turn(x_BHTE, frame(positions=positions + torch.tensor([5, 0, 2])[:, None, None]))
    torch.testing.assert_close(found @ found.mT, moved @ moved.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_heads", [*range(1, 18), 24, 40, 112])
def test_slopes_are_those_of_bloom_and_mpt(n_heads):
    bias = module(ALiBi()).bias(frame(batch=1), T, n_heads)
    assert bias.shape == (1, n_heads, T, T)
    torch.testing.assert_close(bias[0, :, -1:], build_mpt_alibi_tensor(n_heads, T), rtol=1e-6, atol=1e-6)
    bloom = build_alibi_tensor(torch.ones(1, T), n_heads, torch.float32)
    from_first = bias - bias[..., :1]  # a softmax does not see what all keys of a query share
    torch.testing.assert_close(from_first, bloom.expand(-1, T, -1)[None], rtol=1e-6, atol=1e-6)


def test_slopes_of_the_paper():
    assert slopes(8) == [2.0**-h for h in range(1, 9)]
    assert slopes(16) == [2.0 ** (-h / 2) for h in range(1, 17)]
    assert slopes(4, steepness=4.0) == [2.0**-h for h in range(1, 5)]


def test_biases_of_padded_sequences_and_of_new_tokens_are_those_of_bloom():
    mask_BT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    bloom = build_alibi_tensor(mask_BT, 6, torch.float32).view(2, 6, 1, 7)
    for start, keys in ((0, 7), (5, 7), (5, 4)):
        bias = module(ALiBi()).bias(frame(7 - start, start, documents_BS=mask_BT - 1), keys, 6)
        for row, first in ((0, 3), (1, 0)):
            first = max(first, 7 - keys)
            inside = bias[0, :, :, first - 7 + keys :]
            wanted = bloom[row, :, :, first:] - bloom[row, :, :, first : first + 1]
            torch.testing.assert_close(inside - inside[..., :1], wanted.expand_as(inside), rtol=1e-6, atol=1e-6)


def fire_looped(made: Any, lengths: list[int]) -> Tensor:
    """FIRE's formula, a query, a key and a head at a time, of documents of these lengths; 0 between them."""
    c, far = made.c.item(), made.length.item() * made.part.length
    inner, shift, outer = made.inner.tolist(), made.shift.tolist(), made.outer.tolist()
    size, bias_HTT = sum(lengths), torch.zeros(H, sum(lengths), sum(lengths), dtype=made.c.dtype)
    edges = [sum(lengths[:number]) for number in range(len(lengths))]
    for head in range(H):
        for query in range(size):
            begin = max(edge for edge in edges if edge <= query)
            for key in range(begin, query + 1):
                ratio = math.log(c * (query - key) + 1) / (math.log(c * max(far, query - begin) + 1) + 1e-6)
                hidden = [max(0.0, ratio * a + b) for a, b in zip(inner, shift, strict=True)]
                bias_HTT[head, query, key] = sum(w * x for w, x in zip(outer[head], hidden, strict=True))
    return bias_HTT


def test_fire_is_its_formula_and_its_gradients_are_right():
    made = module(FIRE(n_heads=H, width=3, c=0.3, length=4.0)).double()
    torch.nn.init.constant_(made.length, 1.2)
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    torch.testing.assert_close(made.bias(frame(7, batch=1), 7, H)[0] * seen, fire_looped(made, [7]))
    torch.testing.assert_close(
        made.bias(frame(2, 5, batch=1), 4, H)[0] * seen[5:, 3:], fire_looped(made, [7])[:, 5:, 3:]
    )
    packed = frame(7, documents_BS=torch.tensor([[0] * 2 + [1] * 5, [-1] * 6 + [0]]))
    bias = made.bias(packed, 7, H)
    for row, lengths in enumerate(([2, 5], [6, 1])):
        allowed = packed.allowed()[row]
        torch.testing.assert_close(bias[row] * allowed, fire_looped(made, lengths) * allowed)
    names, weights = zip(*made.named_parameters(), strict=True)

    def of(*values: Tensor) -> Tensor:
        return torch.func.functional_call(_Bias(made), {f"made.{n}": v for n, v in zip(names, values, strict=True)}, ())

    assert torch.autograd.gradcheck(of, [weight.detach().requires_grad_() for weight in weights])


class _Bias(torch.nn.Module):
    """What FIRE's module says of five tokens."""

    def __init__(self, made: PositionModule) -> None:
        super().__init__()
        self.made = made

    def forward(self) -> Tensor:
        return self.made.bias(frame(5, batch=1), 5, H)


def test_fire_begins_as_its_part_says_and_from_the_seed():
    model = build(decoder(position=FIRE(n_heads=4, width=5, c=0.2, length=30.0)), 32)
    initialise(model, 3)
    made = model.blocks[0].position
    assert (made.c.item(), made.length.item()) == (pytest.approx(0.2), 1)
    again = build(model.spec, 32)
    initialise(again, 3)
    assert torch.equal(again.blocks[0].position.outer, made.outer)
    assert not torch.equal(model.blocks[1].position.outer, made.outer)


@pytest.mark.parametrize("length", [T, 4 * T])
def test_fire_multiplies_no_matrix_a_query_and_key(length):
    """The lines of its pieces are made once, and cost the same for any length; the rest is elementwise."""
    made = module(FIRE(n_heads=H, width=6))
    with FlopCounterMode(display=False) as counter:
        made.bias(frame(length - 4, 4, batch=3), length, H)
    assert counter.get_total_flops() == 2 * 7 * 6 * 2 * H


def test_fire_is_its_network_at_every_bend_and_for_units_that_have_none():
    made = module(FIRE(n_heads=H, width=5)).double()
    with torch.no_grad():
        made.inner.copy_(torch.tensor([0.7, -0.4, 0.0, 0.0, -1.3]))
        made.shift.copy_(torch.tensor([-0.3, 0.2, 0.6, -0.6, 0.8]))
    ratio_BTS = torch.cat((torch.linspace(0, 1, 31), torch.tensor([0.3 / 0.7, 0.5, 0.8 / 1.3]))).double()[None, None]
    wanted = F.linear(F.relu(ratio_BTS[..., None] * made.inner + made.shift), made.outer).movedim(-1, 1)
    made.ratio = lambda frame, keys: ratio_BTS
    found = made.bias(frame(1, batch=1), 34, H)
    torch.testing.assert_close(found, wanted)
    leaves = [made.inner, made.shift, made.outer]
    inside = torch.ones_like(wanted)
    inside[..., 31:] = 0  # at a bend either side's slope is one
    pair = [torch.autograd.grad(y, leaves, inside) for y in (found, wanted)]
    for one, other in zip(*pair, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("width", [16, 7])
def test_sinusoids_are_those_of_the_paper(width):
    x_BTD = torch.zeros(2, T, width)
    if width % 2 == 0:
        wanted = create_sinusoidal_embeddings(40, width, torch.empty(40, width))
    else:
        rates = [10_000 ** -(2 * (d // 2) / width) for d in range(width)]
        wanted = torch.tensor(
            [[(math.cos if d % 2 else math.sin)(p * rates[d]) for d in range(width)] for p in range(40)]
        )
    made = module(Sinusoidal())
    torch.testing.assert_close(made.embed(x_BTD, frame())[1], wanted[:T])
    torch.testing.assert_close(made.embed(x_BTD, frame(start=20))[0], wanted[20 : 20 + T])
    positions = torch.randint(40, (2, T))
    torch.testing.assert_close(made.embed(x_BTD, frame(positions=positions)), wanted[positions])
    torch.testing.assert_close(made.embed(x_BTD, frame(positions=positions.expand(3, 2, T))), wanted[positions])


def test_a_learned_table_is_read_by_position():
    made = module(Learned(length=T + 3))
    x_BTD = torch.randn(2, T, H * E)
    torch.testing.assert_close(made.embed(x_BTD, frame(start=3)), x_BTD + made.table[3:])
    positions = torch.randint(T, (2, T))
    for told in (positions, positions.expand(3, 2, T)):
        torch.testing.assert_close(made.embed(x_BTD, frame(positions=told)), x_BTD + made.table[positions])


def test_a_sequence_beyond_the_learned_table_is_refused():
    model = drawn(decoder(position=Learned(length=10)))
    said = "a sequence of {} tokens is longer than its table of positions, Learned.length=10: give shorter"
    model(torch.zeros(1, 10, dtype=torch.int64))
    with pytest.raises(UserError, match=said.format(11)):
        model(torch.zeros(1, 11, dtype=torch.int64))
    cache = model.start()
    model(torch.zeros(1, 10, dtype=torch.int64), cache=cache)
    with pytest.raises(UserError, match=said.format(11)):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    with pytest.raises(UserError, match=said.format(13)):
        model(torch.zeros(1, 2, dtype=torch.int64), positions=torch.tensor([3, 12]))
    documents_BT = torch.tensor([[0] * 8 + [1] * 10])
    assert model(torch.zeros(1, 18, dtype=torch.int64), documents_BT).isfinite().all(), "each document fits"


def test_interpolation_maps_far_positions_inside_where_plain_rope_reads_others():
    """A token at 4p of a context four times as long is one at p: its logits are those the model was trained to give."""
    model = drawn(decoder(position=RoPE(theta=100.0)))
    ids_BT, inside_T = torch.randint(300, (2, T)), torch.arange(T)
    trained = model(ids_BT, positions=inside_T)
    beyond = model(ids_BT, positions=4 * inside_T)
    assert (beyond - trained).abs().max() > 0.05
    for block in model.blocks:
        block.position = module(RoPE(theta=100.0, scaling=Interpolated(factor=4.0)))
    torch.testing.assert_close(model(ids_BT, positions=4 * inside_T), trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(ids_BT[:, :1]), trained[:, :1], rtol=1e-4, atol=1e-5)
