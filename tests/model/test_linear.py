"""Linear attention: its parallel, chunked and recurrent forms against each other and against the papers' equations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.frame import Frame
from nachim.model.linear import SLOWEST_LOG, chunked, parallel, recurrent, retention_log_decay
from nachim.spec import LinearAttention, NoPosition, Pattern, RoPE, UserError
from tests.model.contract import hold
from tests.model.mixers import WIDTH, counted, declared, drawn, framed, position_of, remembered, run
from tests.spec.examples import ATTENTION, decoder

RETENTION = LinearAttention(n_heads=3, d_key=6, d_value=5, chunk=8)
GATED = replace(RETENTION, decay_rank=4, chunk=32)
KINDS = ("fixed", "gated", "steep")


def inputs(kind: str, T: int, dtype: torch.dtype = torch.float64, B: int = 2) -> list[Tensor]:
    """Queries, keys, values, log decays and a state; "steep" decays go from none to all of a channel."""
    H, E, V = 3, 6, 5
    q, k = (torch.randn(B, H, T, E, dtype=dtype) for _ in "qk")
    if kind == "fixed":
        decay = retention_log_decay(H, q)
    else:
        spread = 2.0 if kind == "gated" else 200.0
        decay = (F.logsigmoid(spread * torch.randn(B, H, T, E, dtype=dtype)) / 16).clamp_min(SLOWEST_LOG)
    return [q, k, torch.randn(B, H, T, V, dtype=dtype), decay, torch.randn(B, H, E, V, dtype=dtype)]


def documents(B: int, T: int) -> Tensor:
    """Padding on the left, then documents of any length."""
    body = torch.randint(0, 3, (B, T - T // 4)).sort(1).values
    return torch.cat((torch.full((B, T // 4), -1), body), 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("T", "chunk"), [(2, 1), (7, 8), (8, 8), (21, 8), (64, 64), (70, 20), (70, 200)])
@pytest.mark.parametrize("kind", KINDS)
def test_three_forms_agree(kind, T, chunk, packed):
    frame = Frame((2, T), torch.device("cpu"), 0, documents(2, T) if packed else None)
    *given, state = inputs(kind, T)
    expected, last = recurrent(*given, state, frame)
    found, found_last = chunked(*given, state, frame, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found_last, last, rtol=1e-9, atol=1e-9)
    nothing = torch.zeros_like(state)
    expected, _ = recurrent(*given, nothing, frame)
    torch.testing.assert_close(parallel(*given, frame.allowed()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_stay_with_the_recurrence_over_4096_steps(kind):
    frame, given = Frame((1, 4096), torch.device("cpu")), inputs(kind, 4096, torch.float32, B=1)
    for one, other in zip(chunked(*given, frame, 64), recurrent(*given, frame), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["fixed", "gated"])
def test_gradients_are_those_of_finite_differences(kind, packed):
    given = inputs(kind, 5, B=1)
    for place, x in enumerate(given):
        x.requires_grad_(place != 3 or kind == "gated")
    frame = Frame((1, 5), torch.device("cpu"), 0, torch.tensor([[0, 0, 1, 1, 1]]) if packed else None)
    assert torch.autograd.gradcheck(lambda *parts: chunked(*parts, frame, 3), given, fast_mode=True)


def test_gradients_of_many_blocks_are_those_of_the_recurrence():
    given, frame, found = inputs("gated", 70), Frame((2, 70), torch.device("cpu")), []
    for form in (lambda *parts: chunked(*parts, 48), recurrent):
        own = [x.clone().requires_grad_() for x in given]
        y_BHTF, state_BHEF = form(*own, frame)
        (y_BHTF.square().sum() + state_BHEF.square().sum()).backward()
        found.append([x.grad for x in own])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def retention(module: nn.Module, x_TD: Tensor) -> Tensor:
    """RetNet's layer as its paper writes it (arXiv 2307.08621, eq. 5-8), complex rotations and all."""
    part, T = RETENTION, len(x_TD)
    angle_TE = torch.outer(torch.arange(T), 10_000.0 ** (-torch.arange(0, part.d_key, 2) / part.d_key))
    turn_TE = torch.polar(torch.ones_like(angle_TE), angle_TE)
    q, k, v, gate = module.qkv(x_TD).split(module.rows, -1)
    heads = []
    for h in range(part.n_heads):
        q_TE, k_TE = (torch.complex(*y.unflatten(-1, (3, 2, -1))[:, h].unbind(1)) * turn_TE for y in (q, k))
        gamma = 1 - 2.0 ** (-5 - h)
        decay_TT = torch.tensor([[gamma ** (n - m) if n >= m else 0.0 for m in range(T)] for n in range(T)])
        y_TF = ((q_TE @ k_TE.conj().T).real / math.sqrt(part.d_key) * decay_TT) @ v.unflatten(-1, (3, -1))[:, h]
        heads.append(y_TF / (y_TF.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.norm.weight)
    return (torch.cat(heads, -1) * gate * gate.sigmoid()) @ module.out.weight.T


def test_retention_is_what_its_paper_says():
    module, x_BTD = drawn(RETENTION), torch.randn(1, 19, WIDTH)
    with torch.no_grad():
        found = module(x_BTD, framed(x_BTD), position_of(RoPE()))
        torch.testing.assert_close(found[0], retention(module, x_BTD[0]), rtol=1e-4, atol=1e-5)


def test_a_gated_layer_is_what_its_paper_says():
    """arXiv 2312.06635, sec. 4.4, a token at a time."""
    module, x_TD, part = drawn(GATED), torch.randn(40, WIDTH), GATED
    q, k, v, gate = module.qkv(x_TD).split(module.rows, -1)
    alpha = torch.sigmoid(x_TD @ module.decay_in.weight.T @ module.decay_out.weight.T + module.decay_out.bias) ** (
        1 / 16
    )
    state, found = torch.zeros(3, part.d_key, part.d_value), []
    for t in range(40):
        q_HE, k_HE, v_HF, alpha_HE = (y[t].unflatten(-1, (3, -1)) for y in (q, k, v, alpha))
        state = alpha_HE[..., None] * state + k_HE[..., None] * v_HF[:, None]
        y_HF = (q_HE[..., None] * state).sum(1) * part.d_key**-0.5
        y_HF = y_HF / (y_HF.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.norm.weight
        found.append((y_HF.flatten() * F.silu(gate[t])) @ module.out.weight.T)
    torch.testing.assert_close(run(module, x_TD[None])[0], torch.stack(found), rtol=1e-4, atol=1e-5)


def test_gates_that_shut_leave_everything_finite():
    module, x_BTD = drawn(GATED), torch.randn(2, 70, WIDTH)
    with torch.no_grad():
        module.decay_out.weight.mul_(3000)  # logits of thousands, of both signs
    y_BTD = run(module, x_BTD)
    y_BTD.square().sum().backward()
    assert y_BTD.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in module.parameters())


def test_positions_turn_retention_and_leave_gated_layers_alone():
    x_BTD = torch.randn(1, 12, WIDTH)
    for part, same in ((RETENTION, False), (GATED, True)):
        module = drawn(part)
        assert torch.equal(run(module, x_BTD), module(x_BTD, framed(x_BTD), position_of(RoPE()))) == same


@pytest.mark.parametrize("part", [RETENTION, replace(GATED, gate=False), replace(GATED, chunk=5)])
def test_a_decoder_with_it_keeps_the_contract(part):
    hold(replace(decoder(), attention=Pattern(parts=(part, ATTENTION))))


@pytest.mark.parametrize("part", [RETENTION, replace(RETENTION, gate=False), replace(GATED, chunk=4), GATED])
def test_what_it_declares_is_what_is_counted(part):
    module, x_BTD = drawn(part), torch.randn(2, 32, WIDTH)
    assert sum(weight.numel() for weight in module.parameters()) == part.params(WIDTH)
    multiplied = [weight for name, weight in module.named_parameters() if weight.ndim > 1]
    assert sum(weight.numel() for weight in multiplied) == part.matmul_params(WIDTH)
    matrices = 2 * part.matmul_params(WIDTH)
    assert counted(part, x_BTD) == x_BTD[..., 0].numel() * (matrices + part.mixing_flops(32))
    memory: dict[str, Tensor] = {}
    counted(part, x_BTD, 0, memory)
    assert sum(tensor.nbytes for tensor in memory.values()) == 2 * part.cache_bytes(32, 4)
    assert counted(part, x_BTD[:, :1], 32, memory) == 2 * (matrices + part.decode_flops(33))


@pytest.mark.parametrize("part", [RETENTION, replace(RETENTION, gate=False), GATED, replace(GATED, gate=False)])
def test_what_it_says_of_memory_is_what_autograd_keeps(part):
    part = replace(part, d_key=16, d_value=24, chunk=32)
    assert declared(part) == pytest.approx(remembered(part, position=RoPE()), rel=0.05)


def test_states_stay_in_fp32_in_a_model_of_fewer_digits():
    for part in (RETENTION, GATED):
        module, memory, x_BTD = drawn(part, torch.bfloat16), {}, torch.randn(1, 9, WIDTH)
        y_BTD = module(x_BTD.bfloat16(), framed(x_BTD), position_of(), memory)
        assert y_BTD.dtype == torch.bfloat16
        assert memory["state"].dtype == torch.float32
        expected = run(module.float(), x_BTD.bfloat16().float())
        assert (y_BTD - expected).abs().max() < 0.05 * expected.abs().max()


def test_keys_that_cannot_turn_are_refused():
    odd = replace(RETENTION, d_key=5)
    with pytest.raises(UserError, match="d_head=5; RoPE turns pairs, so it must be even"):
        replace(decoder(), attention=odd)
    replace(decoder(), attention=odd, position=NoPosition())
    replace(decoder(), attention=replace(odd, decay_rank=2))
