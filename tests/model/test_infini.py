"""Infini-attention: segments at once, in pieces and token by token, against its equations written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nachim.model.frame import Frame
from nachim.spec import ALiBi, InfiniAttention, NoPosition, Pattern, RoPE, UserError
from tests.model.contract import hold
from tests.model.mixers import WIDTH, counted, declared, drawn, framed, position_of, remembered
from tests.spec.examples import ATTENTION, decoder

PART = InfiniAttention(n_heads=4, n_kv_heads=2, d_head=6, segment=5)


def written_out(module: nn.Module, part: InfiniAttention, x_TD: Tensor) -> Tensor:
    """One document, head by head and segment by segment (arXiv 2404.07143, eq. 1-5)."""
    T, groups = len(x_TD), part.n_heads // part.n_kv_heads
    frame, position = Frame((1, T), x_TD.device), position_of(RoPE())
    q, k, v = (y.unflatten(-1, (-1, part.d_head)).transpose(0, 1) for y in module.qkv(x_TD).split(module.rows, -1))
    turned_q, turned_k = (position.turn(y[None], frame)[0] for y in (q, k))
    heads = []
    for h in range(part.n_heads):
        kv, gate = h // groups, torch.sigmoid(module.gate[h])
        memory, normaliser, rows = torch.zeros(part.d_head, part.d_head).to(x_TD), torch.zeros(part.d_head).to(x_TD), []
        for begin in range(0, T, part.segment):
            here = slice(begin, min(T, begin + part.segment))
            scores = turned_q[h, here] @ turned_k[kv, here].T / part.d_head**0.5
            future = torch.ones_like(scores, dtype=torch.bool).triu(1)
            near = scores.masked_fill(future, float("-inf")).softmax(-1) @ v[kv, here]
            asked, keys = (torch.where(y > 0, y + 1, y.exp()) for y in (q[h, here], k[kv, here]))
            far, known = torch.zeros_like(near), torch.zeros_like(v[kv, here])
            if begin:
                far = asked @ memory / (asked @ normaliser)[:, None]
                known = keys @ memory / (keys @ normaliser)[:, None]
            memory = memory + keys.T @ (v[kv, here] - known * (part.update == "delta"))
            normaliser = normaliser + keys.sum(0)
            rows.append(gate * far + (1 - gate) * near)
        heads.append(torch.cat(rows))
    return torch.cat(heads, -1) @ module.out.weight.T


@pytest.mark.parametrize("T", [3, 5, 6, 23])
@pytest.mark.parametrize("part", [PART, replace(PART, update="linear"), replace(PART, n_kv_heads=4, segment=1)])
def test_segments_are_what_the_paper_says(part, T):
    module, x_BTD = drawn(part, torch.float64), torch.randn(1, T, WIDTH, dtype=torch.float64)
    found = module(x_BTD, framed(x_BTD), position_of(RoPE()))
    torch.testing.assert_close(found[0], written_out(module, part, x_BTD[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_gradients_are_those_of_the_equations_written_out(update):
    part, found = replace(PART, update=update), []
    x_BTD, weights = torch.randn(1, 18, WIDTH, dtype=torch.float64), torch.randn(18, WIDTH, dtype=torch.float64)
    for ours in (True, False):
        module, own = drawn(part, torch.float64), x_BTD.clone().requires_grad_()
        y_TD = module(own, framed(own), position_of(RoPE()))[0] if ours else written_out(module, part, own[0])
        (y_TD * weights).sum().backward()
        found.append([own.grad, *(weight.grad for weight in module.parameters())])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_packed_documents_have_the_gradients_of_each_alone(update):
    part, lengths = replace(PART, update=update), (7, 1, 10)
    x_BTD, weights = torch.randn(1, 18, WIDTH, dtype=torch.float64), torch.randn(18, WIDTH, dtype=torch.float64)
    documents_BT = torch.repeat_interleave(torch.tensor([-1, 0, 4]), torch.tensor(lengths))[None]
    module, own = drawn(part, torch.float64), x_BTD.clone().requires_grad_()
    y_TD = module(own, framed(own, 0, documents_BT), position_of(RoPE()))[0]
    (y_TD * weights).sum().backward()
    alone, other = x_BTD.clone().requires_grad_(), drawn(part, torch.float64)
    parts = [written_out(other, part, x_TD) for x_TD in alone[0].split(lengths)]
    torch.testing.assert_close(y_TD, torch.cat(parts), rtol=1e-9, atol=1e-9)
    (torch.cat(parts) * weights).sum().backward()
    torch.testing.assert_close(own.grad, alone.grad, rtol=1e-8, atol=1e-9)
    for name, weight in module.named_parameters():
        torch.testing.assert_close(weight.grad, other.get_parameter(name).grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_segments_stay_with_single_tokens_over_4096_steps(update):
    part = replace(PART, n_heads=2, n_kv_heads=1, segment=64, update=update)
    module, x_BTD, memory = drawn(part), torch.randn(1, 4096, WIDTH), {}
    with torch.inference_mode():
        whole_BTD = module(x_BTD, framed(x_BTD), position_of())
        module(x_BTD[:, :3500], framed(x_BTD[:, :3500]), position_of(), memory)
        for t in range(3500, 4096):
            y_BTD = module(x_BTD[:, t : t + 1], framed(x_BTD[:, :1], t), position_of(), memory)
            assert (y_BTD - whole_BTD[:, t : t + 1]).abs().max() <= 1e-5 * whole_BTD.abs().max()


@pytest.mark.parametrize("part", [PART, replace(PART, segment=4, update="linear"), replace(PART, segment=40)])
def test_a_decoder_with_it_keeps_the_contract(part):
    hold(replace(decoder(), attention=Pattern(parts=(part, ATTENTION)), position=RoPE()))


@pytest.mark.parametrize("part", [replace(PART, segment=8), replace(PART, segment=6, update="linear", n_kv_heads=4)])
def test_what_it_declares_is_what_is_counted(part):
    module, x_BTD = drawn(part), torch.randn(2, 24, WIDTH)
    assert sum(weight.numel() for weight in module.parameters()) == part.params(WIDTH)
    assert sum(weight.numel() for weight in (module.qkv.weight, module.out.weight)) == part.matmul_params(WIDTH)
    matrices = 2 * part.matmul_params(WIDTH)
    for T in (3, 24):
        assert counted(part, x_BTD[:, :T]) == 2 * T * (matrices + part.mixing_flops(T))
    memory: dict[str, Tensor] = {}
    for t in range(24):
        assert counted(part, x_BTD[:, t : t + 1], t, memory) == 2 * (matrices + part.decode_flops(t + 1))
        assert sum(tensor.nbytes for tensor in memory.values()) == 2 * part.cache_bytes(t + 1, 4)


@pytest.mark.parametrize("part", [PART, replace(PART, update="linear"), replace(PART, n_kv_heads=4)])
def test_what_it_says_of_memory_is_what_autograd_keeps(part):
    part = replace(part, segment=32)
    assert declared(part) == pytest.approx(remembered(part, position=RoPE()), rel=0.05)


@pytest.mark.parametrize("T", [1, 5, 12, 17])
def test_a_token_meets_the_keys_of_its_segment(T):
    met = [t % PART.segment + 1 for t in range(T)]
    assert PART.keys(T, causal=True) == pytest.approx(sum(met) / T)
    assert PART.mixing_flops(T) - PART.mixing_flops(T, causal=True) == pytest.approx(
        4 * 4 * 6 * (min(5, T) - sum(met) / T)
    )


def test_memories_stay_in_fp32_in_a_model_of_fewer_digits():
    module, memory, x_BTD = drawn(PART, torch.bfloat16), {}, torch.randn(1, 13, WIDTH)
    y_BTD = module(x_BTD.bfloat16(), framed(x_BTD), position_of(RoPE()), memory)
    assert y_BTD.dtype == memory["keys"].dtype == torch.bfloat16
    assert memory["held"].dtype == torch.float32
    expected = written_out(module.float(), PART, x_BTD[0].bfloat16().float())
    assert (y_BTD[0] - expected).abs().max() < 0.05 * expected.abs().max()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="n_kv_heads is 3; it must divide n_heads=4"):
        replace(PART, n_kv_heads=3)
    with pytest.raises(UserError, match="segment is 0; it must be above 0"):
        replace(PART, segment=0)
    with pytest.raises(UserError, match="d_head=5; RoPE turns pairs, so it must be even"):
        replace(decoder(), attention=replace(PART, d_head=5))
    replace(decoder(), attention=replace(PART, d_head=5), position=NoPosition())
    with pytest.raises(UserError, match="adds no bias to its scores, as ALiBi asks for; give its layers RoPE"):
        replace(decoder(), attention=PART, position=ALiBi())
