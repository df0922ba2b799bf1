"""Attention: the fast kernel is the plain formula, no position sees a later one, and only distance matters."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model import attend, build
from nachim.model.attend import plain_attention
from nachim.model.attention import AttentionModule
from nachim.model.decoder import initialise
from nachim.model.frame import Frame
from nachim.model.position import rotate, rotations
from nachim.spec import Attention, MuP, RoPE
from tests.model.contract import hold
from tests.spec.examples import decoder

D, T, E = 24, 11, 8
OPTIONS = (
    {"window": 4},
    {"window": 1, "previous_key": True},
    {"bias": "qkv", "previous_key": True},
    {"bias": "all", "qk_norm": True},
    {"softcap": 0.7},
    {"scale": 0.5},
    {"sinks": True},
    {"qk_norm": True, "qk_norm_over": "all", "qk_norm_eps": 0.1},
    {"qk_norm": True, "qk_norm_offset": True},
    {
        "window": 5,
        "bias": "all",
        "softcap": 0.7,
        "scale": 0.5,
        "sinks": True,
        "qk_norm": True,
        "qk_norm_over": "all",
        "qk_norm_offset": True,
        "previous_key": True,
    },
)
VARIANTS = [
    Attention(n_heads=4, n_kv_heads=n_kv_heads, d_head=E, qk_norm=qk_norm, previous_key=previous_key)
    for n_kv_heads in (4, 2, 1)
    for qk_norm in (False, True)
    for previous_key in (False, True)
]
VARIANTS += [Attention(n_heads=4, n_kv_heads=2, d_head=E, **options) for options in OPTIONS]


def name(part: Attention) -> str:
    """Test id of a variant."""
    told = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)[3:]}
    changed = [f"{key}={told[key]}" for key, default in DEFAULTS.items() if told[key] != default]
    return "-".join((f"{part.n_kv_heads}kv", *changed))


DEFAULTS = {field.name: field.default for field in dataclasses.fields(Attention)[3:]}


def module(part: Attention) -> AttentionModule:
    """`part` computed, its gains away from one."""
    made = build(part, D)
    for weight in made.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
    return made


def normed(made: AttentionModule, letter: str, x_KE: list[Tensor]) -> list[Tensor]:
    """The heads of one token's query or key over their root mean square, or over that of all of them."""
    part = made.part
    gain = getattr(made, f"{letter}_norm").weight + part.qk_norm_offset
    if part.qk_norm_over == "all":
        whole = torch.cat(x_KE)
        return list((whole / (whole.pow(2).mean() + part.qk_norm_eps).sqrt() * gain).split(E))
    return [x / (x.pow(2).mean() + part.qk_norm_eps).sqrt() * gain for x in x_KE]


def looped(made: AttentionModule, x_TD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """The part's definition, one head and one position at a time."""
    part, asked, kept, given = made.part, [], [], []
    for t in range(len(x_TD)):
        rows = iter(made.qkv(x_TD[t]).split(E))
        q_HE, k_KE, v_KE = ([next(rows) for _ in range(heads)] for heads in (part.n_heads, *[part.n_kv_heads] * 2))
        if part.previous_key and t:
            p_KE = made.qkv(x_TD[t - 1]).split(E)[-part.n_kv_heads :]
            k_KE = [k + p for k, p in zip(k_KE, p_KE, strict=True)]
        if part.qk_norm:
            q_HE, k_KE = normed(made, "q", q_HE), normed(made, "k", k_KE)
        asked.append([rotate(q, cos_TE[t], sin_TE[t]) for q in q_HE])
        kept.append([rotate(k, cos_TE[t], sin_TE[t]) for k in k_KE])
        given.append(v_KE)
    outs = []
    for t, head in itertools.product(range(len(x_TD)), range(part.n_heads)):
        group = head // (part.n_heads // part.n_kv_heads)
        seen = range(0 if part.window is None else max(0, t - part.window + 1), t + 1)
        scores = torch.stack([asked[t][head] @ kept[s][group] * (part.scale or E**-0.5) for s in seen])
        if part.softcap:
            scores = part.softcap * (scores / part.softcap).tanh()
        weights = scores.exp() / (scores.exp().sum() + (made.sinks[head].exp() if part.sinks else 0))
        outs.append(sum(weight * given[s][group] for weight, s in zip(weights, seen, strict=True)))
    return made.out(torch.stack(outs).view(len(x_TD), -1))


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


@pytest.mark.parametrize("part", [part for part in VARIANTS if part.window is None], ids=name)
def test_a_later_token_changes_nothing_before_it(part):
    spec = decoder(**{field.name: getattr(part, field.name) for field in dataclasses.fields(part)})
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


@pytest.mark.parametrize("chunk", [128, 4])
@pytest.mark.parametrize("options", [{"previous_key": True, "qk_norm": True}, *OPTIONS], ids=lambda one: "-".join(one))
def test_a_decoder_gives_one_answer_however_its_tokens_arrive(options, chunk, monkeypatch):
    """Cached one by one and in chunks, packed, padded; and its costs are as declared (see `contract`)."""
    monkeypatch.setattr(attend, "CHUNK", chunk)
    hold(decoder(n_kv_heads=2, **options))


def test_a_window_keeps_no_more_than_it_admits():
    spec = decoder(window=5, n_kv_heads=2)
    model = build(spec, spec.d_model)
    with torch.inference_mode():
        cache = model.start()
        for ids_BT in torch.randint(spec.vocab_size, (1, 40)).split([30, 1, 1, 8], 1):
            model(ids_BT, cache=cache)
            for layer in cache.layers:
                held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in layer.values()}
                assert sum(storage.nbytes() for storage in held.values()) == 2 * 5 * 2 * 8 * 4


def test_a_scale_and_a_parametrisation_multiply():
    spec = decoder(scale=0.2, parametrisation=MuP(base_width=32, base_head=2))
    model = build(spec, spec.d_model)
    assert model.blocks[0].attention.scale == pytest.approx(0.2 * (2 / 8) ** 0.5)


def test_sinks_begin_with_the_weight_of_a_score_of_nothing():
    spec = decoder(sinks=True)
    model = build(spec, spec.d_model)
    initialise(model, 0)
    assert (model.blocks[1].attention.sinks == 0).all()


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
