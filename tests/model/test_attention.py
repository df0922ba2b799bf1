"""Attention: the fast kernel is the plain formula, no position sees a later one, and only distance matters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model import build
from nachim.model.attend import plain_attention
from nachim.model.attention import AttentionModule
from nachim.model.frame import Frame
from nachim.model.position import rotate, rotations
from nachim.spec import Attention, RoPE
from tests.spec.examples import decoder

D, T, E = 24, 11, 8
VARIANTS = [
    Attention(n_heads=4, n_kv_heads=n_kv_heads, d_head=E, qk_norm=qk_norm, previous_key=previous_key)
    for n_kv_heads in (4, 2, 1)
    for qk_norm in (False, True)
    for previous_key in (False, True)
]


def name(part: Attention) -> str:
    """Test id of a variant."""
    return f"{part.n_kv_heads}kv{'-norm' * part.qk_norm}{'-previous' * part.previous_key}"


def module(part: Attention) -> AttentionModule:
    """`part` computed, its gains away from one."""
    made = build(part, D)
    for weight in made.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
    return made


def looped(made: AttentionModule, x_TD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """The part's definition, one head and one position at a time."""
    part, outs = made.part, []
    rows = iter(made.qkv.weight.view(-1, E, D))
    q_HED = [next(rows) for _ in range(part.n_heads)]
    k_KED = [next(rows) for _ in range(part.n_kv_heads)]
    v_KED = [next(rows) for _ in range(part.n_kv_heads)]
    p_KED = [next(rows) for _ in range(part.n_kv_heads)] if part.previous_key else None
    for head in range(part.n_heads):
        group = head // (part.n_heads // part.n_kv_heads)
        q_TE, k_TE, v_TE = [], [], []
        for t in range(len(x_TD)):
            q, k, v = q_HED[head] @ x_TD[t], k_KED[group] @ x_TD[t], v_KED[group] @ x_TD[t]
            if p_KED and t:
                k = k + p_KED[group] @ x_TD[t - 1]
            if part.qk_norm:
                q, k = made.q_norm(q), made.k_norm(k)
            q_TE.append(rotate(q, cos_TE[t], sin_TE[t]))
            k_TE.append(rotate(k, cos_TE[t], sin_TE[t]))
            v_TE.append(v)
        mixed = []
        for t in range(len(x_TD)):
            weights = torch.stack([q_TE[t] @ k_TE[s] / E**0.5 for s in range(t + 1)]).softmax(0)
            mixed.append(sum(w * v for w, v in zip(weights, v_TE, strict=False)))
        outs.append(torch.stack(mixed))
    return torch.cat(outs, -1) @ made.out.weight.T


@pytest.mark.parametrize("part", VARIANTS, ids=name)
def test_attention_is_its_definition_one_position_at_a_time(part):
    made = module(part)
    x_BTD = torch.randn(2, T, D)
    cos_TE, sin_TE = rotations(RoPE(), E, T)
    expected = torch.stack([looped(made, x_TD, cos_TE, sin_TE) for x_TD in x_BTD])
    frame = Frame((2, T), x_BTD.device)
    torch.testing.assert_close(made(x_BTD, frame, build(RoPE(), D)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_the_fast_kernel_is_the_plain_formula(n_kv_heads):
    q_BHTE = torch.randn(2, 4, T, E, requires_grad=True)
    k_BKTE, v_BKTE = torch.randn(2, 2, n_kv_heads, T, E).requires_grad_().unbind()
    fast = F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=True)
    plain = plain_attention(q_BHTE, k_BKTE, v_BKTE)
    torch.testing.assert_close(fast, plain)
    weight = torch.randn_like(plain)
    for one, other in zip(
        torch.autograd.grad(fast, (q_BHTE, k_BKTE, v_BKTE), weight),
        torch.autograd.grad(plain, (q_BHTE, k_BKTE, v_BKTE), weight),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", VARIANTS, ids=name)
def test_a_later_token_changes_nothing_before_it(part):
    spec = decoder(**{field: getattr(part, field) for field in ("n_kv_heads", "qk_norm", "previous_key")})
    model = build(spec, spec.d_model)
    ids_BT = torch.randint(spec.vocab_size, (1, T))
    before = model(ids_BT)
    for t in (1, 5, T - 1):
        changed = ids_BT.clone()
        changed[0, t] = (changed[0, t] + 1) % spec.vocab_size
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=0)
        assert (after[:, t:] - before[:, t:]).abs().amax(-1).min() > 0, f"token {t} is not seen by all after it"
    torch.testing.assert_close(model(ids_BT[:, :5]), before[:, :5])


def test_a_score_depends_on_distance_alone():
    cos_TE, sin_TE = rotations(RoPE(theta=100.0), E, 64)
    q, k = torch.randn(2, E)
    for distance in (0, 1, 7):
        scores = torch.stack(
            [rotate(q, cos_TE[t], sin_TE[t]) @ rotate(k, cos_TE[t - distance], sin_TE[t - distance]) for t in (7, 63)]
        )
        torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rotate(q, cos_TE[0], sin_TE[0]), q)
    torch.testing.assert_close(rotate(q, cos_TE, sin_TE).norm(dim=-1), q.norm().expand(64))


def test_each_pair_turns_by_its_own_angle():
    cos_TE, sin_TE = rotations(RoPE(theta=16.0), 4, 4)
    x = torch.tensor([1.0, 1.0, 0.0, 0.0])
    angle = torch.tensor([3.0, 3.0 / 4.0])
    torch.testing.assert_close(rotate(x, cos_TE[3], sin_TE[3]), torch.cat((angle.cos(), angle.sin())))
