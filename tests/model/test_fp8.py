"""Products in 8 bits: against the same numbers multiplied in fp32, and where they stand in a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nachim.model import build
from nachim.model.fp8 import E4M3, E5M2, Linear8, Product8, eighth, in_8_bits
from nachim.spec import MLA, GatedDeltaNet, Mamba, MoE, Pattern, SwiGLU, UserError
from tests.spec.examples import decoder

N, D, F = 32, 48, 64


def rounded(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """`x` as 8 bits hold it, in fp32."""
    scale = x.float().abs().max() / {E4M3: 448.0, E5M2: 57344.0}[kind]
    return (x / scale).to(kind).float() * scale


def drawn(*shape: int, size: float = 1.0) -> torch.Tensor:
    """Values in bf16 that need a scale."""
    return (size * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))).bfloat16()


def test_products_and_gradients_are_those_of_the_rounded_numbers() -> None:
    """To the rounding of a bf16 result: 2^-9 of it."""
    x, weight, gradient = drawn(N, D, size=300.0), drawn(F, D, size=1e-3), drawn(N, F, size=1e-6)
    x.requires_grad_(), weight.requires_grad_()
    y = Product8.apply(x, weight)
    y.backward(gradient)
    with torch.no_grad():
        triples = (
            (y, rounded(x, E4M3), rounded(weight, E4M3).T),
            (x.grad, rounded(gradient, E5M2), rounded(weight, E4M3)),
            (weight.grad, rounded(gradient, E5M2).T, rounded(x, E4M3)),
        )
        for found, one, other in triples:
            expected = one @ other
            torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-3 * float(expected.abs().mean()))


@pytest.mark.parametrize(("kind", "error"), [(E4M3, 2**-4), (E5M2, 2**-3)])
def test_a_tensor_has_one_scale_and_its_largest_value_is_the_largest_there_is(kind: torch.dtype, error: float) -> None:
    """Half a step of 3 or 2 bits behind the point, for all that is not tiny beside the largest; zeros stay zeros."""
    x = drawn(N, D, size=1e-4)
    held, scale = eighth(x, kind)
    assert held.float().abs().max() == torch.finfo(kind).max
    back, large = held.float() * scale, x.float().abs() > 1e-3 * x.float().abs().max()
    assert ((back - x.float()).abs() / x.float().abs())[large].max() <= error * 1.01
    assert eighth(torch.zeros(16, 16), kind)[0].float().abs().max() == 0
    twice, double = eighth(x * 2, kind)
    assert torch.equal(twice.view(torch.uint8), held.view(torch.uint8)) and double == 2 * scale


def test_what_does_not_fit_kernels_is_multiplied_plainly() -> None:
    plain = torch.nn.Linear(D, F).bfloat16()
    eight = torch.nn.Linear(D, F).bfloat16()
    eight.load_state_dict(plain.state_dict())
    eight.__class__ = Linear8
    assert torch.equal(eight(drawn(3, 5, D)), plain(drawn(3, 5, D)))
    found, expected = eight(drawn(2, N, D)), plain(drawn(2, N, D))
    assert found.shape == (2, N, F) and not torch.equal(found, expected)
    assert (found - expected).float().square().mean().sqrt() < 0.05 * expected.float().square().mean().sqrt()


def test_matrices_of_attention_and_feed_forwards_alone_are_in_8_bits() -> None:
    spec = decoder(
        d_model=32,
        n_layers=5,
        ffn=Pattern(first=(SwiGLU(d_ff=48), SwiGLU(d_ff=40)), parts=(MoE(d_ff=16, experts=4, active=2, shared=1),)),
    )
    parts = (
        spec.attention,
        MLA(n_heads=4, d_head=8, rank=16, rope_dim=8),
        Mamba(d_inner=64, dt_rank=16),
        GatedDeltaNet(n_heads=4, n_key_heads=4, d_key=8, d_value=8),
        spec.attention,
    )
    model = build(replace(spec, attention=Pattern(parts=parts)), 32)
    before = {name: id(weight) for name, weight in model.named_parameters()}
    in_8_bits(model)
    assert {name: id(weight) for name, weight in model.named_parameters()} == before
    assert {name for name, module in model.named_modules() if isinstance(module, Linear8)} == {
        "blocks.0.attention.qkv",
        "blocks.0.attention.out",
        "blocks.0.ffn.gate_up",
        "blocks.0.ffn.down",
        "blocks.1.attention.q",
        "blocks.1.attention.kv_up",
        "blocks.1.attention.out",
        "blocks.1.ffn.gate_up",  # 32 to 80; from 40 back is no multiple of 16
        *(f"blocks.{layer}.ffn.shared.{name}" for layer in (2, 3, 4) for name in ("gate_up", "down")),
        "blocks.4.attention.qkv",
        "blocks.4.attention.out",
    }


def test_a_model_without_such_matrices_is_refused() -> None:
    states = replace(decoder(ffn=None), attention=Mamba(d_inner=64, dt_rank=16))
    with pytest.raises(UserError, match="train it in bf16"):
        in_8_bits(build(states, 32))
