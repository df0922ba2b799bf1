"""The gated delta rule: its forms against each other and against Qwen3-Next's in transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.delta import chunked, recurrent
from nachim.model.frame import Frame
from nachim.spec import GatedDeltaNet, NoPosition, Pattern, UserError
from tests.model.contract import hold
from tests.model.mixers import WIDTH, counted, declared, drawn, framed, position_of, remembered, run
from tests.spec.examples import ATTENTION, decoder

PART = GatedDeltaNet(n_heads=4, n_key_heads=2, d_key=6, d_value=5, d_conv=3, chunk=8)


def inputs(T: int, dtype: torch.dtype = torch.float64, B: int = 2) -> list[Tensor]:
    """Queries and keys of length 1, values, log decays, strengths and a state of `PART`'s heads."""
    G, H, E, V = PART.n_key_heads, PART.n_heads, PART.d_key, PART.d_value
    q, k = (F.normalize(torch.randn(B, G, T, E, dtype=dtype), dim=-1) for _ in "qk")
    decay, strength = F.logsigmoid(torch.randn(B, H, T, dtype=dtype) + 2), torch.rand(B, H, T, dtype=dtype)
    return [q, k, torch.randn(B, H, T, V, dtype=dtype), decay, strength, torch.randn(B, H, E, V, dtype=dtype)]


def documents(B: int, T: int) -> Tensor:
    """Padding on the left, then documents of any length."""
    body = torch.randint(0, 3, (B, T - T // 4)).sort(1).values
    return torch.cat((torch.full((B, T // 4), -1), body), 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("T", "chunk"), [(1, 8), (7, 8), (8, 8), (21, 8), (64, 64), (70, 32)])
def test_chunks_give_what_the_recurrence_gives(T, chunk, packed):
    frame = Frame((2, T), torch.device("cpu"), 0, documents(2, T) if packed else None)
    given = inputs(T)
    for one, other in zip(chunked(*given, frame, chunk), recurrent(*given, frame), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_chunks_stay_with_the_recurrence_over_4096_steps():
    frame, given = Frame((1, 4096), torch.device("cpu")), inputs(4096, torch.float32, B=1)
    for one, other in zip(chunked(*given, frame, 64), recurrent(*given, frame), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_those_of_finite_differences(packed):
    given = [x.requires_grad_() for x in inputs(5, B=1)]
    frame = Frame((1, 5), torch.device("cpu"), 0, torch.tensor([[0, 0, 1, 1, 1]]) if packed else None)
    assert torch.autograd.gradcheck(lambda *parts: chunked(*parts, frame, 3), given, fast_mode=True)


def reference() -> nn.Module:
    """Qwen3-Next's functions."""
    return pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next", reason="needs transformers")


@pytest.mark.parametrize("form", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_the_rule_is_that_of_transformers(form):
    q, k, v, decay, strength, state = inputs(37, torch.float32)
    theirs = (x.transpose(1, 2) for x in (q, k, v, decay, strength))
    keys = ("query", "key", "value", "g", "beta")
    y_BTHF, last = getattr(reference(), form)(
        **dict(zip(keys, theirs, strict=True)), initial_state=state, output_final_state=True
    )
    frame = Frame((2, 37), torch.device("cpu"))
    ours, state = chunked(q * PART.d_key**-0.5, k, v, decay, strength, state, frame, 16)
    torch.testing.assert_close(ours, y_BTHF.transpose(1, 2), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-6)


def twins() -> tuple[nn.Module, nn.Module, object]:
    """Our module, transformers' with the same weights, and its config."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, the reference")
    config = transformers.Qwen3NextConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        linear_num_value_heads=PART.n_heads,
        linear_num_key_heads=PART.n_key_heads,
        linear_key_head_dim=PART.d_key,
        linear_value_head_dim=PART.d_value,
        linear_conv_kernel_dim=PART.d_conv,
        layer_types=["linear_attention"],
    )
    ours, theirs = drawn(PART), reference().Qwen3NextGatedDeltaNet(config, 0)
    repeats = PART.n_heads // PART.n_key_heads
    widths = (PART.d_key, PART.d_key, repeats * PART.d_value, repeats * PART.d_value)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn_like(weight) * (weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.5))
        pieces = theirs.in_proj_qkvz.weight.unflatten(0, (PART.n_key_heads, -1)).split(widths, 1)
        ours.qkvz.weight.copy_(torch.cat([piece.flatten(0, 1) for piece in pieces]))
        pieces = theirs.in_proj_ba.weight.unflatten(0, (PART.n_key_heads, -1)).split(repeats, 1)
        ours.rates.weight.copy_(torch.cat([piece.flatten(0, 1) for piece in pieces]))
        ours.convolution.kernel.copy_(theirs.conv1d.weight[:, 0])
        for name, weight in {
            "log_rate": theirs.A_log,
            "step_bias": theirs.dt_bias,
            "norm.weight": theirs.norm.weight,
            "out.weight": theirs.out_proj.weight,
        }.items():
            ours.get_parameter(name).copy_(weight)
    return ours, theirs, config


def test_the_module_is_that_of_transformers():
    ours, theirs, config = twins()
    transformers, x_BTD = pytest.importorskip("transformers"), torch.randn(2, 29, WIDTH)
    with torch.no_grad():
        expected = theirs(x_BTD)
        torch.testing.assert_close(run(ours, x_BTD), expected, rtol=1e-4, atol=1e-6)
        cache, memory = transformers.DynamicCache(config=config), {}
        for begin, end in [(0, 20), *((t, t + 1) for t in range(20, 29))]:
            part = x_BTD[:, begin:end]
            y_BTD = ours(part, framed(part, begin), position_of(), memory)
            torch.testing.assert_close(y_BTD, theirs(part, cache_params=cache), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(y_BTD, expected[:, begin:end], rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_transformers():
    ours, theirs, _ = twins()
    x_BTD = torch.randn(2, 13, WIDTH)
    weights_BTD = torch.randn(2, 13, WIDTH)
    pairs = []
    for module in (ours, theirs):
        own = x_BTD.clone().requires_grad_()
        y_BTD = run(ours, own) if module is ours else theirs(own)
        (y_BTD * weights_BTD).sum().backward()
        pairs.append(own.grad)
    torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.log_rate.grad, theirs.A_log.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.step_bias.grad, theirs.dt_bias.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.convolution.kernel.grad, theirs.conv1d.weight.grad[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", [PART, replace(PART, n_key_heads=4, chunk=3), replace(PART, d_conv=1, chunk=64)])
def test_a_decoder_with_it_keeps_the_contract(part):
    hold(replace(decoder(), attention=Pattern(parts=(part, ATTENTION)), position=NoPosition()))


@pytest.mark.parametrize("part", [PART, replace(PART, n_key_heads=4), replace(PART, n_key_heads=1, d_value=9)])
def test_what_it_declares_is_what_is_counted(part):
    module, x_BTD = drawn(part), torch.randn(2, 24, WIDTH)
    assert sum(weight.numel() for weight in module.parameters()) == part.params(WIDTH)
    multiplied = sum(weight.numel() for weight in module.parameters() if weight is not module.convolution.kernel)
    assert multiplied - 2 * part.n_heads - part.d_value == part.matmul_params(WIDTH)
    convolution = 2 * part.d_conv * part.channels  # multiply-adds that no counter of products sees
    matrices = 2 * part.matmul_params(WIDTH) - convolution
    assert counted(part, x_BTD) == x_BTD[..., 0].numel() * (matrices + part.mixing_flops(24))
    memory: dict[str, Tensor] = {}
    counted(part, x_BTD, 0, memory)
    assert sum(tensor.nbytes for tensor in memory.values()) == 2 * part.cache_bytes(24, 4)
    assert counted(part, x_BTD[:, :1], 24, memory) == 2 * (matrices + part.decode_flops(25))


@pytest.mark.parametrize("part", [PART, replace(PART, n_key_heads=4, d_value=12, chunk=32)])
def test_what_it_says_of_memory_is_what_autograd_keeps(part):
    assert declared(part) == pytest.approx(remembered(part), rel=0.03)


def test_a_causal_chunk_meets_half_of_itself():
    dense = 8 * (4 * PART.keys + 2 * PART.values)
    assert PART.mixing_flops(24) - PART.mixing_flops(24, causal=True) == pytest.approx(dense * (1 - 4.5 / 8))


def test_states_stay_in_fp32_in_a_model_of_fewer_digits():
    module, memory, x_BTD = drawn(PART, torch.bfloat16), {}, torch.randn(1, 9, WIDTH)
    y_BTD = module(x_BTD.bfloat16(), framed(x_BTD), position_of(), memory)
    assert y_BTD.dtype == torch.bfloat16
    assert memory["state"].dtype == torch.float32
    expected = run(module.float(), x_BTD.bfloat16().float())
    assert (y_BTD - expected).abs().max() < 0.05 * expected.abs().max()


def test_steps_and_rates_begin_as_in_mamba2():
    module = drawn(PART)
    module.draw(torch.Generator().manual_seed(1))
    step_H, rate_H = F.softplus(module.step_bias), module.log_rate.exp()
    assert ((step_H > 0.001 - 1e-6) & (step_H < 0.1 + 1e-6)).all()
    assert ((rate_H > 0) & (rate_H < 16)).all()


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="n_key_heads is 3; it must divide n_heads=4"):
        replace(PART, n_key_heads=3)
    with pytest.raises(UserError, match=r"chunk is 0; it must be above 0"):
        replace(PART, chunk=0)
