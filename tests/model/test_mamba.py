"""Mamba: the scan is the recurrence, whole, in pieces and differentiated; the layer is that of transformers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nachim.model import build, mamba
from nachim.model.frame import Frame
from nachim.model.mamba import PIECE, MambaModule, scan, step
from nachim.model.position import PositionModule
from nachim.spec import Mamba
from tests.model.mixers import WIDTH, declared, remembered

CPU = torch.device("cpu")
LENGTH = 2 * PIECE + 5


def given(B: int, T: int, I: int, N: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:  # noqa: E741
    """Inputs of a scan: values, steps, rates, inputs and readouts of states, the state before."""
    torch.manual_seed(0)
    steps_BTI = torch.exp(torch.empty(B, T, I, dtype=dtype).uniform_(math.log(1e-3), math.log(0.5)))
    rates_NI = -torch.arange(1, N + 1, dtype=dtype)[:, None] * torch.rand(1, I, dtype=dtype)
    drawn = [torch.randn(shape, dtype=dtype) for shape in ((B, T, I), (B, T, N), (B, T, N), (B, N, I))]
    return [tensor.requires_grad_() for tensor in (drawn[0], steps_BTI, rates_NI, *drawn[1:])]


def loop(
    x: Tensor, size: Tensor, rate: Tensor, write: Tensor, read: Tensor, state: Tensor, begins: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The recurrence of the paper, a token at a time, by nothing but autograd."""
    found = []
    for t in range(x.shape[1]):
        if begins is not None:
            state = torch.where(begins[:, t, None, None], 0, state)
        state = torch.exp(size[:, t, None] * rate) * state + torch.einsum(
            "bn,bi->bni", write[:, t], size[:, t] * x[:, t]
        )
        found.append(torch.einsum("bn,bni->bi", read[:, t], state))
    return torch.stack(found, 1), state


BEGINS = torch.zeros(3, LENGTH, dtype=torch.bool)
BEGINS[:, 0] = True
BEGINS[0, [1, PIECE - 1, PIECE, 2 * PIECE + 3]] = True
BEGINS[2, LENGTH - 1] = True


@pytest.mark.parametrize("cached", [1, mamba.CACHED], ids=["row by row", "all rows"])
@pytest.mark.parametrize("begins_BT", [None, BEGINS], ids=["one document", "documents"])
def test_the_scan_is_the_recurrence_and_so_are_its_gradients(monkeypatch, begins_BT, cached):
    monkeypatch.setattr(mamba, "CACHED", cached)
    ours = given(3, LENGTH, 4, 3)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    torch.manual_seed(1)
    weights = torch.randn(3, LENGTH, 4, dtype=torch.float64), torch.randn(3, 3, 4, dtype=torch.float64)
    for results, inputs in ((scan(*ours, begins_BT), ours), (loop(*theirs, begins_BT), theirs)):
        sum((weight * result).sum() for weight, result in zip(weights, results, strict=True)).backward()
        inputs.append(results)
    for one, other in zip(ours.pop(), theirs.pop(), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(mamba, "PIECE", 2)
    begins_BT = torch.tensor([[True, False, False, True, False]])
    assert torch.autograd.gradcheck(lambda *inputs: scan(*inputs, begins_BT), given(1, 5, 2, 2))
    assert torch.autograd.gradcheck(scan, given(1, 5, 2, 2))


def test_the_scan_and_a_token_at_a_time_agree_after_4096_steps():
    inputs = [tensor.detach() for tensor in given(1, 4096, 8, 4, torch.float32)]
    x, size, rate, write, read, state = inputs
    whole_BTI, last_BNI = scan(*inputs)
    found = []
    for t in range(4096):
        now = slice(t, t + 1)
        y_B1I, state = step(x[:, now], size[:, now], rate, write[:, now], read[:, now], state)
        found.append(y_B1I)
    scale = whole_BTI.abs().max()
    assert (torch.cat(found, 1) - whole_BTI).abs().max() <= 1e-5 * scale
    assert (state - last_BNI).abs().max() <= 1e-5 * scale
    exact_BTI, _ = scan(*(tensor.double() for tensor in inputs))
    assert (whole_BTI - exact_BTI).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("size", [1e-30, 1e4])
def test_steps_of_any_size_leave_everything_finite(size):
    x, sizes, *rest = given(1, LENGTH, 3, 2, torch.float32)
    sizes = torch.full_like(sizes, size, requires_grad=True)
    y, state = scan(x, sizes, *rest)
    (y.sum() + state.sum()).backward()
    assert all(tensor.isfinite().all() for tensor in (y, state, sizes.grad, *(tensor.grad for tensor in (x, *rest))))


def test_a_layer_keeps_one_state_in_sixteen_for_its_backward_pass():
    inputs, kept = given(2, 8 * PIECE, 6, 5), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        scan(*inputs)
    states = 2 * 6 * 5
    assert sum(kept) <= (8 + 1) * states + 2 * 8 * PIECE * (2 * 6 + 2 * 5) + 6 * 5


PART = Mamba(d_inner=24, d_state=5, dt_rank=3, d_conv=3)


def drawn(part: Mamba = PART, d_model: int = 16) -> MambaModule:
    """A layer with every weight random."""
    module = build(part, d_model)
    torch.manual_seed(3)
    for name, weight in module.named_parameters():
        torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.5)
        if name == "A_log":
            torch.nn.init.uniform_(weight, 0, 2)
    return module


def forward(module: torch.nn.Module, x_BTD: Tensor, start: int = 0, memory: dict[str, Tensor] | None = None) -> Tensor:
    """What a layer gives for one document a row."""
    return module(x_BTD, Frame(x_BTD.shape[:2], CPU, start), PositionModule(), memory)


def theirs(family: str) -> tuple[torch.nn.Module, type]:
    """The layer of a family in transformers."""
    import transformers
    from transformers.models.jamba.modeling_jamba import JambaMambaMixer
    from transformers.models.mamba.modeling_mamba import MambaMixer

    if family == "mamba":
        shape = {"state_size": 5, "expand": 2, "conv_kernel": 3, "time_step_rank": 3}
        config = transformers.MambaConfig(hidden_size=12, num_hidden_layers=1, **shape)
        return MambaMixer(config, 0), config
    shape = {"mamba_expand": 2, "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_dt_rank": 3, "attn_layer_offset": 1}
    config = transformers.JambaConfig(hidden_size=12, num_hidden_layers=1, attn_layer_period=2, **shape)
    return JambaMambaMixer(config, 0), config


NAMES = {
    "in_proj.weight": "enter.weight",
    "conv1d.weight": "convolution.kernel",
    "conv1d.bias": "convolution.bias",
    "x_proj.weight": "select.weight",
    "dt_proj.weight": "step.weight",
    "dt_proj.bias": "step.bias",
    "out_proj.weight": "out.weight",
    "A_log": "A_log",
    "D": "D",
    "dt_layernorm.weight": "norms.0.weight",
    "b_layernorm.weight": "norms.1.weight",
    "c_layernorm.weight": "norms.2.weight",
}


@pytest.mark.parametrize("family", ["mamba", "jamba"])
def test_a_layer_is_that_of_transformers_read_whole_and_token_by_token(family):
    transformers = pytest.importorskip("transformers", reason="needs transformers, the reference, from the dev extra")
    reference, config = theirs(family)
    ours = drawn(Mamba(d_inner=24, d_state=5, dt_rank=3, d_conv=3, inner_norm=family == "jamba"), 12)
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            weight.copy_(weights[NAMES[name]].view_as(weight))
    assert sorted(weights) == sorted(NAMES[name] for name, _ in reference.named_parameters())
    x_BTD = torch.randn(2, 2 * PIECE + 3, 12)
    cache, memory, found = transformers.DynamicCache(config=config), {}, []
    with torch.no_grad():
        expected = reference(x_BTD)
        bound = 1e-4 * expected.abs().max()
        assert (forward(ours, x_BTD) - expected).abs().max() <= bound
        for start, end in ((0, 30), *((t, t + 1) for t in range(30, 35))):
            piece = x_BTD[:, start:end]
            stepwise = reference(piece, cache_params=cache)
            found.append(forward(ours, piece, start, memory))
            assert (found[-1] - stepwise).abs().max() <= bound
    assert (torch.cat(found, 1) - expected).abs().max() <= bound


@pytest.mark.parametrize("part", [PART, Mamba(d_inner=8, dt_rank=2, inner_norm=True)])
def test_declared_parameters_and_cache_are_the_counted_ones(part):
    module, memory = drawn(part), {}
    assert sum(weight.numel() for weight in module.parameters()) == part.params(16)
    for length in (1, 2, 7):
        forward(module, torch.randn(3, length, 16), 0, memory)
        assert sum(tensor.numel() for tensor in memory.values()) == 3 * part.cache_values(length)


class Elementwise(TorchDispatchMode):
    """FLOP of multiply-adds, and of products that have the state's axis, beside those of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if func.overloadpacket in (torch.ops.aten.addcmul, torch.ops.aten.addcmul_):
            self.flops += 2 * result.numel()
        elif func.overloadpacket == torch.ops.aten.mul and result.ndim == 4:
            self.flops += result.numel()
        return result


@pytest.mark.parametrize("length", [1, 9, 40])
def test_declared_flops_are_the_counted_ones(length):
    module, x_BTD, inputs = drawn(), torch.randn(2, length, 16), given(2, length, 24, 5)
    with torch.no_grad(), FlopCounterMode(display=False) as matrices, Elementwise() as elementwise:
        scan(*inputs)
        module.convolution(inputs[0].float(), Frame((2, length), CPU))
    assert matrices.get_total_flops() + elementwise.flops == 2 * length * PART.mixing_flops(length)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        forward(module, x_BTD)
    linear = whole.get_total_flops() - matrices.get_total_flops()
    assert linear == 2 * length * 2 * PART.matmul_params(16)


@pytest.mark.parametrize("part", [PART, Mamba(d_inner=64, d_state=16, dt_rank=4, inner_norm=True)])
def test_declared_memory_of_training_is_what_autograd_keeps(part):
    assert declared(part) + part.saved(WIDTH).normed == pytest.approx(remembered(part), rel=0.04)


def test_weights_are_drawn_as_the_paper_says():
    module = build(Mamba(d_inner=4000, d_state=4, dt_rank=9), 8)
    for name, weight in module.named_parameters():
        torch.nn.init.zeros_(weight) if name.endswith(".bias") else torch.nn.init.ones_(weight)
    module.draw(torch.Generator().manual_seed(0))
    torch.testing.assert_close(module.A_log.exp(), torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(4000, 4))
    assert (module.D == 1).all()
    log_size = F.softplus(module.step.bias).log10()
    assert -3.001 <= log_size.min() < -2.99
    assert -1.01 < log_size.max() <= -0.999
    assert log_size.mean().item() == pytest.approx(-2, abs=0.03)
    assert 0.33 < module.step.weight.abs().max() <= 1 / 3


def test_low_precision_works_on_states_in_fp32():
    module, x_BTD = drawn(), torch.randn(1, 40, 16)
    expected = forward(module, x_BTD)
    memory = {}
    found = forward(module.bfloat16(), x_BTD.bfloat16(), 0, memory)
    assert found.dtype == memory["state"].dtype == memory["convolution"].dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() <= 0.05 * expected.abs().max()
