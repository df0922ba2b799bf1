"""Before anything is rounded the scaled network is the unscaled one; after, its outputs move less."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nachim.infer.quantize.awq import clipped, divided, factors, scaled
from nachim.infer.quantize.calibrate import Seen, calibrate
from nachim.infer.quantize.fold import Joint, joints
from nachim.infer.quantize.gptq import moved
from nachim.infer.quantize.method import by_awq
from nachim.model.quantized.grid import nearest
from nachim.spec import (
    MLA,
    MLP,
    NF4,
    Attention,
    Decoder,
    InfiniAttention,
    Int4,
    Int8,
    LayerNorm,
    Mamba,
    MoE,
    OutputNorm,
    Parallel,
    RMSNorm,
    SandwichNorm,
    SwiGLU,
)
from nachim.spec.quantize import Scheme
from tests.model.contract import drawn

SCHEME = Int4(group=8)
GROUPED = Attention(n_heads=4, n_kv_heads=2, d_head=8, bias="all")
PLAIN = Decoder(vocab_size=61, d_model=32, n_layers=2, attention=GROUPED, ffn=SwiGLU(d_ff=48))
SHAPES = {
    "Llama": PLAIN,
    "keys of the token before": replace(PLAIN, attention=replace(GROUPED, previous_key=True, qk_norm=True)),
    "offset gains": replace(PLAIN, norm=RMSNorm(offset=True), residual=SandwichNorm()),
    "LayerNorm and ReLU": replace(PLAIN, norm=LayerNorm(), ffn=MLP(d_ff=48, activation="relu", bias=True)),
    "squared ReLU": replace(PLAIN, ffn=MLP(d_ff=48, activation="relu2")),
    "GELU": replace(PLAIN, ffn=MLP(d_ff=48, activation="gelu")),
    "one norm for both": replace(PLAIN, residual=Parallel(shared=True)),
    "side by side": replace(PLAIN, residual=Parallel()),
    "no norm before": replace(PLAIN, residual=OutputNorm()),
    "experts": replace(PLAIN, ffn=MoE(experts=4, active=2, d_ff=16, shared=1, shared_gate=True)),
    "latent": replace(PLAIN, attention=MLA(n_heads=4, d_head=8, rank=16, rope_dim=8, q_rank=24)),
    "segments": replace(PLAIN, attention=InfiniAttention(n_heads=4, n_kv_heads=2, d_head=8, segment=8)),
    "another mixer": replace(PLAIN, attention=Mamba(d_inner=32, d_state=4, dt_rank=2)),
}


def text(seed: int = 0, sequences: int = 4) -> Tensor:
    return torch.randint(61, (sequences, 24), generator=torch.Generator().manual_seed(seed))


def inputs(seed: int, rows: int, width: int) -> Tensor:
    """Inputs of which a few channels are much larger."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=draw)
    x[:, :3] *= 30
    return x


def seen(x_RI: Tensor) -> Seen:
    found = Seen.none(x_RI.shape[1])
    found.add(x_RI)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_the_scaled_network_is_the_unscaled_one(shape: str) -> None:
    """Every joint is scaled by far from 1, and the logits stay: what feeds it was divided by just that."""
    model, ids = drawn(SHAPES[shape]), text()
    before, scales = model(ids).detach(), []

    def change(layer: int, block: torch.nn.Module, sight: dict) -> None:
        for joint in joints(block, sight):
            groups = joint.heads or (joint.readers[0][0].shape[1], 1)
            drawn_I = torch.rand(groups[0], generator=torch.Generator().manual_seed(layer)) * 3 + 0.3
            width = joint.readers[0][0].shape[1] // (groups[0] * groups[1])
            scales.append(drawn_I.repeat_interleave(groups[1] * width))
            joint.apply(scales[-1])

    calibrate(model, ids.numpy(), change)
    torch.testing.assert_close(model(ids).detach(), before, rtol=2e-4, atol=2e-4)
    folded = {"no norm before": 2, "GELU": 3, "another mixer": 2, "segments": 3, "experts": 8, "latent": 5}
    assert len(scales) == 2 * folded.get(shape, 3 if shape == "one norm for both" else 4)


def test_what_was_seen_is_scaled_as_the_inputs_are() -> None:
    model, ids = drawn(PLAIN), text()
    sights: list[dict] = []

    def change(layer: int, block: torch.nn.Module, sight: dict) -> None:
        for joint in joints(block, sight) if not sights else ():
            joint.apply(
                factors(joint.readers[0][1].magnitude_I, 0.5) if joint.heads is None else torch.full((32,), 2.0)
            )
        sights.append(sight)

    calibrate(model, ids.numpy(), change)
    again: list[dict] = []
    calibrate(model, ids.numpy(), lambda layer, block, sight: again.append(sight))
    for name, (found,) in again[0].items():
        torch.testing.assert_close(found.moments_II, sights[0][name][0].moments_II, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.magnitude_I, sights[0][name][0].magnitude_I, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", [Int8(), Int4(group=16), NF4(group=16)], ids=repr)
def test_outputs_move_no_more_than_by_rounding_to_nearest(scheme: Scheme) -> None:
    for seed in range(4):
        x = inputs(seed, 200, 64)
        weight, sight = torch.randn(24, 64, generator=torch.Generator().manual_seed(seed)), seen(x)
        plain = moved(nearest(weight, scheme).decode() - weight, sight.moments_II).sum()
        found = divided(weight, sight, scheme)
        assert moved(found.decode() - weight, sight.moments_II).sum() < (0.97 if scheme == Int8() else 0.7) * plain


def test_the_divided_inputs_give_what_the_decoded_matrix_gives() -> None:
    x = inputs(1, 50, 32)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    kept, sight = weight.clone(), seen(x)
    found = divided(weight, sight, SCHEME)
    assert found.divisor_I is not None and torch.equal(weight, kept)
    assert torch.equal(sight.moments_II, seen(x).moments_II)
    values = found.grid.decode(found.codes_OI)
    torch.testing.assert_close((x / found.divisor_I) @ values.mT, x @ found.decode().mT, rtol=1e-4, atol=1e-4)


def test_a_grid_reaches_less_far_only_where_its_group_is_better_for_it() -> None:
    """Every group of every row does at least as well as at its full reach, judged alone, on real inputs."""
    x = inputs(2, 200, 32)
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    found, plain = clipped(weight, seen(x), SCHEME), nearest(weight, SCHEME)

    def errors(decoded: Tensor) -> Tensor:
        parts = [x[:, i : i + 8] @ (decoded - weight)[:, i : i + 8].mT for i in range(0, 32, 8)]
        return torch.stack([part.square().sum(0) for part in parts], 1)

    assert (errors(found.decode()) <= errors(plain.decode()) * (1 + 1e-4)).all()
    assert (found.grid.scale_OG < plain.grid.scale_OG).any()


def test_factors_are_a_power_about_the_middle() -> None:
    magnitude = torch.tensor([1.0, 4.0, 16.0]).double()
    torch.testing.assert_close(factors(magnitude, 0.5), torch.tensor([0.5, 1.0, 2.0]))
    assert torch.equal(factors(magnitude, 0.0), torch.ones(3))
    assert torch.equal(factors(torch.zeros(3).double(), 0.5), torch.ones(3))


def test_a_channel_never_seen_keeps_its_weights_finite() -> None:
    x = inputs(3, 50, 16)
    x[:, 7] = 0
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    assert torch.isfinite(divided(weight, seen(x), SCHEME).decode()).all()


def test_the_power_is_that_of_the_least_error() -> None:
    """Inputs of one magnitude want none; a few large ones do."""
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(4))
    even = torch.ones(1, 32).repeat(40, 1) * torch.randn(40, 32, generator=torch.Generator().manual_seed(5)).sign()
    assert scaled(Joint([(weight.clone(), seen(even))], lambda scale: None, []), SCHEME) == 0
    assert scaled(Joint([(weight.clone(), seen(inputs(4, 100, 32)))], lambda scale: None, []), SCHEME) > 0


def test_what_nothing_before_can_divide_is_divided_itself() -> None:
    """Behind GELU no factor can go before; all that stands behind a norm, or the values, has none of its own."""
    model, found = drawn(SHAPES["GELU"]), {}

    def change(layer: int, block: torch.nn.Module, sight: dict) -> None:
        for (one,) in sight.values():
            one.moments_II[0] *= 100
            one.moments_II[:, 0] *= 100
            one.magnitude_I[0] *= 100
        found.update(by_awq(block, sight, SCHEME))

    calibrate(model, text().numpy(), change)
    assert [name for name, (coded,) in found.items() if coded.divisor_I is not None] == ["ffn.down"]
