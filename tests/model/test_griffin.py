"""Griffin's recurrent block: scan and recurrence against a loop, the block against RecurrentGemma's in transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.griffin import SHARPNESS, Scan
from nachim.spec import RGLRU, Attention, GeGLU, Pattern, UserError
from tests.model.contract import hold
from tests.model.mixers import WIDTH, counted, declared, drawn, framed, position_of, remembered, run
from tests.spec.examples import decoder

PART = RGLRU(d_rnn=24, n_blocks=3, d_conv=3)


def loop(decay_BTR: Tensor, x_BTR: Tensor, h_BR: Tensor) -> Tensor:
    """The recurrence as it is written."""
    found = []
    for decay_BR, x_BR in zip(decay_BTR.unbind(1), x_BTR.unbind(1), strict=True):
        h_BR = decay_BR * h_BR + x_BR
        found.append(h_BR)
    return torch.stack(found, 1)


def inputs(T: int, dtype: torch.dtype = torch.float64, B: int = 2, R: int = 5) -> list[Tensor]:
    """Decays in (0, 1), some of them 0 and 1, inputs, and a state."""
    decay_BTR = torch.rand(B, T, R, dtype=dtype) ** 0.2
    decay_BTR[:, ::7, 0], decay_BTR[:, ::5, 1] = 0, 1
    return [decay_BTR, torch.randn(B, T, R, dtype=dtype), torch.randn(B, R, dtype=dtype)]


@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 33, 255, 256, 257, 300])
def test_the_scan_gives_what_the_loop_gives(T):
    given = inputs(T)
    torch.testing.assert_close(Scan.apply(*given), loop(*given), rtol=1e-11, atol=1e-12)


def test_the_scan_stays_with_the_loop_over_4096_steps():
    given = inputs(4096, torch.float32, B=1)
    expected = loop(*given)
    assert (Scan.apply(*given) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("T", [1, 3, 20])
def test_the_scan_has_the_gradients_of_finite_differences(T):
    given = [x.requires_grad_() for x in inputs(T, B=1, R=2)]
    assert torch.autograd.gradcheck(Scan.apply, given)


def test_the_scan_has_the_gradients_of_the_loop():
    given, found = inputs(300), []
    weights_BTR = torch.randn_like(given[0])
    for form in (Scan.apply, loop):
        own = [x.clone().requires_grad_() for x in given]
        (form(*own) * weights_BTR).sum().backward()
        found.append([x.grad for x in own])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def twins() -> tuple[nn.Module, nn.Module]:
    """Our module, and transformers' with the same weights."""
    name = "transformers.models.recurrent_gemma"
    reference = pytest.importorskip(f"{name}.modeling_recurrent_gemma", reason="needs transformers, the reference")
    config = reference.RecurrentGemmaConfig(
        hidden_size=WIDTH, lru_width=PART.d_rnn, num_attention_heads=PART.n_blocks, conv1d_width=PART.d_conv
    )
    ours, theirs = drawn(PART), reference.RecurrentGemmaRecurrentBlock(config, 0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn_like(weight) * (weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.5))
        unit, gates = theirs.rg_lru, ours.gates
        gates.weight.copy_(torch.cat((unit.input_gate_weight, unit.recurrent_gate_weight)).mT)
        gates.bias.copy_(torch.cat((unit.input_gate_bias, unit.recurrent_gate_bias)).flatten())
        ours.log_rate.copy_(unit.recurrent_param)
        for kind in ("weight", "bias"):
            pair = [getattr(linear, kind) for linear in (theirs.linear_y, theirs.linear_x)]
            getattr(ours.gated, kind).copy_(torch.cat(pair))
            getattr(ours.out, kind).copy_(getattr(theirs.linear_out, kind))
        ours.convolution.kernel.copy_(theirs.conv_1d.weight[:, 0])
        ours.convolution.bias.copy_(theirs.conv_1d.bias)
    return ours, theirs


def test_the_block_is_that_of_transformers():
    ours, theirs = twins()
    x_BTD, position_BT = torch.randn(2, 40, WIDTH), torch.arange(40).expand(2, -1)
    with torch.no_grad():
        expected, _ = theirs(x_BTD, position_BT, None, use_cache=False)
        torch.testing.assert_close(run(ours, x_BTD), expected, rtol=1e-4, atol=1e-6)
        memory: dict[str, Tensor] = {}
        for begin, end in [(0, 7), (7, 30), *((t, t + 1) for t in range(30, 40))]:
            part = x_BTD[:, begin:end]
            y_BTD = ours(part, framed(part, begin), position_of(), memory)
            torch.testing.assert_close(y_BTD, expected[:, begin:end], rtol=1e-4, atol=1e-6)


def test_documents_begin_again_as_in_transformers():
    """Its unit forgets where positions begin again; its convolution does not, so it is held alone."""
    ours, theirs = twins()
    x_BTR, edges = torch.randn(1, 20, PART.d_rnn), (9, 11)
    position_BT = torch.cat([torch.arange(length) for length in edges])[None]
    expected = theirs.rg_lru(x_BTR, position_BT)
    with torch.no_grad():  # of our block nothing is left but the unit
        for weight in (ours.gated.weight, ours.gated.bias, ours.out.weight, ours.out.bias, ours.convolution.bias):
            weight.zero_()
        ours.convolution.kernel.copy_(torch.tensor([0.0, 0.0, 1.0]).expand_as(ours.convolution.kernel))
    heard: list[Tensor] = []
    ours.gated.register_forward_hook(lambda *_: torch.cat((torch.ones_like(x_BTR), x_BTR), -1))
    ours.out.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    run(ours, torch.zeros(1, 20, WIDTH), torch.tensor([[4] * 9 + [2] * 11]))
    torch.testing.assert_close(heard[0] / F.gelu(torch.ones(()), approximate="tanh"), expected, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_transformers():
    ours, theirs = twins()
    x_BTD, weights_BTD = torch.randn(2, 40, WIDTH), torch.randn(2, 40, WIDTH)
    found = []
    for module in (ours, theirs):
        own = x_BTD.clone().requires_grad_()
        y_BTD = run(ours, own) if module is ours else theirs(own, torch.arange(40).expand(2, -1), None, False)[0]
        (y_BTD * weights_BTD).sum().backward()
        found.append(own.grad)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
    unit = theirs.rg_lru
    torch.testing.assert_close(ours.log_rate.grad, unit.recurrent_param.grad, rtol=1e-3, atol=1e-5)
    gates = torch.cat((unit.input_gate_weight.grad, unit.recurrent_gate_weight.grad)).mT
    torch.testing.assert_close(ours.gates.weight.grad, gates, rtol=1e-3, atol=1e-5)


def test_a_gate_that_is_shut_or_open_leaves_gradients_finite():
    module = drawn(PART)
    for rate in (-200.0, 200.0):  # decays of exactly 1, and of 0
        nn.init.constant_(module.log_rate, rate)
        module.zero_grad()
        y_BTD = run(module, torch.randn(1, 20, WIDTH))
        y_BTD.square().sum().backward()
        assert y_BTD.isfinite().all()
        assert all(weight.grad.isfinite().all() for weight in module.parameters())


@pytest.mark.parametrize("part", [PART, replace(PART, d_conv=1, n_blocks=1)])
def test_a_decoder_with_it_keeps_the_contract(part):
    hold(replace(decoder(), attention=part))


def test_griffin_is_a_pattern_that_keeps_the_contract():
    local = Attention(n_heads=4, n_kv_heads=1, d_head=8, window=5)
    hold(replace(decoder(), n_layers=3, attention=Pattern(parts=(PART, PART, local)), ffn=GeGLU(d_ff=40)))


@pytest.mark.parametrize("part", [PART, replace(PART, n_blocks=1, d_conv=5)])
def test_what_it_declares_is_what_is_counted(part):
    module, x_BTD = drawn(part), torch.randn(2, 24, WIDTH)
    assert sum(weight.numel() for weight in module.parameters()) == part.params(WIDTH)
    matrices = (module.gated.weight, module.gates.weight, module.out.weight)
    assert sum(weight.numel() for weight in matrices) == part.matmul_params(WIDTH)
    memory: dict[str, Tensor] = {}
    for tokens_BTD, start in ((x_BTD, 0), (x_BTD[:, :1], 24)):  # the scan's multiply-adds are products of no matrix
        assert counted(part, tokens_BTD, start, memory) == tokens_BTD[..., 0].numel() * 2 * part.matmul_params(WIDTH)
    assert part.mixing_flops(24) == part.decode_flops(24) == 2 * part.d_rnn * part.d_conv + 2 * part.d_rnn
    assert sum(tensor.nbytes for tensor in memory.values()) == 2 * part.cache_bytes(25, 4)


@pytest.mark.parametrize("part", [PART, replace(PART, d_rnn=64, n_blocks=1, d_conv=5)])
def test_what_it_says_of_memory_is_what_autograd_keeps(part):
    assert declared(part) == pytest.approx(remembered(part), rel=0.03)


def test_decays_begin_where_the_paper_has_them():
    module = drawn(PART)
    module.draw(torch.Generator().manual_seed(1))
    decay_R = torch.exp(-SHARPNESS * F.softplus(module.log_rate))
    assert ((decay_R >= 0.9 - 1e-5) & (decay_R <= 0.999 + 1e-5)).all()
    assert decay_R.std() > 0.01


def test_blocks_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="n_blocks is 5; it must divide d_rnn=24"):
        replace(PART, n_blocks=5)
