"""Mamba-2: chunks are the recurrence, whole, in pieces and differentiated; the layer is that of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nachim.model import build
from nachim.model.frame import Frame
from nachim.model.mamba2 import GroupedRMSNorm, Mamba2Module, ssd, step
from nachim.model.position import PositionModule
from nachim.spec import Mamba2
from tests.model.mixers import WIDTH, declared, remembered

CPU = torch.device("cpu")
DOCUMENTS = [
    [0] * 11,
    [0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3],
    [-1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0],
    [0] * 8 + [1] * 2 + [0],
]


def given(B: int, T: int, G: int, R: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Values, logarithms of decays, inputs and readouts of states of E = 3 and heads of F = 2, the state before."""
    torch.manual_seed(0)
    values, write, read = (torch.randn(shape, dtype=dtype) for shape in ((B, T, G, R, 2), (B, T, G, 3), (B, T, G, 3)))
    log_decay = -torch.exp(torch.empty(B, T, G, R, dtype=dtype).uniform_(-6, 1))
    state = torch.randn(B, G, 3, R, 2, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (values, log_decay, write, read, state)]


def loop(values: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor, frame: Frame) -> tuple:
    """The recurrence of the paper, a token at a time, by nothing but autograd."""
    found = []
    for t in range(frame.T):
        if frame.begins_BT is not None:
            state = torch.where(frame.begins_BT[:, t, None, None, None, None], 0, state)
        written = torch.einsum("bge,bgrf->bgerf", write[:, t], values[:, t])
        state = log_decay[:, t, :, None, :, None].exp() * state + written
        found.append(torch.einsum("bge,bgerf->bgrf", read[:, t], state))
    return torch.stack(found, 1), state


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one document", "documents"])
@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 256])
@pytest.mark.parametrize(("groups", "heads"), [(1, 4), (2, 2), (3, 1)])
def test_chunks_are_the_recurrence_and_so_are_their_gradients(groups, heads, chunk, documents):
    frame = Frame((4, 11), CPU, documents_BS=None if documents is None else torch.tensor(documents))
    ours = given(4, 11, groups, heads)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    found, expected = ssd(*ours, frame, chunk), loop(*theirs, frame)
    torch.manual_seed(1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    weights = [torch.randn_like(result) for result in expected]
    for results in (found, expected):
        sum((weight * result).sum() for weight, result in zip(weights, results, strict=True)).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradients_are_those_of_finite_differences():
    frame = Frame((1, 5), CPU, documents_BS=torch.tensor([[0, 0, 0, 1, 1]]))
    assert torch.autograd.gradcheck(lambda *inputs: ssd(*inputs, frame, 2), given(1, 5, 1, 2))


def stepwise(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A token at a time, by the step that decoding takes."""
    *sequences, state = inputs
    found = []
    for t in range(sequences[0].shape[1]):
        y, state = step(*(sequence[:, t : t + 1] for sequence in sequences), state, Frame((len(state), 1), CPU, t))
        found.append(y)
    return torch.cat(found, 1), state


@pytest.mark.parametrize("forgets", [False, True], ids=["slowly", "all at once, now and then"])
def test_chunks_and_a_token_at_a_time_agree_after_4096_steps(forgets):
    """A head that forgets everything and then nothing is where sums of logarithms would lose their digits."""
    values, log_decay, *rest = (tensor.detach() for tensor in given(1, 4096, 1, 4, torch.float32))
    log_decay = log_decay * 0.02
    if forgets:
        log_decay[:, ::37] = -1e4
    inputs = [values, log_decay, *rest]
    expected, last = stepwise(inputs)
    bound = 1e-5 * expected.abs().max()
    for chunk in (64, 256):
        found, state = ssd(*inputs, Frame((1, 4096), CPU), chunk)
        assert (found - expected).abs().max() <= bound
        assert (state - last).abs().max() <= bound


@pytest.mark.parametrize("log_decay", [-1e-30, -1e30])
def test_decays_of_any_size_leave_everything_finite(log_decay):
    values, decays, *rest = given(1, 11, 1, 2, torch.float32)
    decays = torch.full_like(decays, log_decay, requires_grad=True)
    y, state = ssd(values, decays, *rest, Frame((1, 11), CPU), 4)
    (y.sum() + state.sum()).backward()
    assert all(
        tensor.isfinite().all() for tensor in (y, state, decays.grad, *(tensor.grad for tensor in (values, *rest)))
    )


PART = Mamba2(n_heads=4, d_head=6, d_state=5, n_groups=2, d_conv=3, chunk=4)


def drawn(part: Mamba2 = PART, d_model: int = 12) -> Mamba2Module:
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


NAMES = {
    "in_proj.weight": "enter.weight",
    "conv1d.weight": "convolution.kernel",
    "conv1d.bias": "convolution.bias",
    "norm.weight": "norm.weight",
    "out_proj.weight": "out.weight",
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
}


def test_a_layer_is_that_of_transformers_read_whole_and_token_by_token():
    transformers = pytest.importorskip("transformers", reason="needs transformers, the reference, from the dev extra")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    shape = {"num_heads": 4, "head_dim": 6, "state_size": 5, "n_groups": 2, "expand": 2, "conv_kernel": 3}
    config = transformers.Mamba2Config(hidden_size=12, num_hidden_layers=1, chunk_size=8, **shape)
    reference, ours = Mamba2Mixer(config, 0), drawn()
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            weight.copy_(weights[NAMES[name]].view_as(weight))
    assert sorted(weights) == sorted(NAMES[name] for name, _ in reference.named_parameters())
    x_BTD = torch.randn(2, 19, 12)
    cache, memory, found = transformers.DynamicCache(config=config), {}, []
    with torch.no_grad():
        expected = reference(x_BTD)
        bound = 1e-4 * expected.abs().max()
        assert (forward(ours, x_BTD) - expected).abs().max() <= bound
        for start, end in ((0, 14), *((t, t + 1) for t in range(14, 19))):
            piece = x_BTD[:, start:end]
            stepwise = reference(piece, cache_params=cache)
            found.append(forward(ours, piece, start, memory))
            assert (found[-1] - stepwise).abs().max() <= bound
    assert (torch.cat(found, 1) - expected).abs().max() <= bound


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_a_grouped_norm_is_a_norm_of_each_group(groups):
    norm, x = GroupedRMSNorm(20, groups, 1e-3), torch.randn(2, 3, 20)
    torch.nn.init.normal_(norm.weight)
    parts = [part / (part.square().mean(-1, keepdim=True) + 1e-3).sqrt() for part in x.split(20 // groups, -1)]
    torch.testing.assert_close(norm(x), torch.cat(parts, -1) * norm.weight)


@pytest.mark.parametrize("part", [PART, Mamba2(n_heads=3, d_head=4, d_state=6)])
def test_declared_parameters_and_cache_are_the_counted_ones(part):
    module, memory = drawn(part), {}
    assert sum(weight.numel() for weight in module.parameters()) == part.params(12)
    for length in (1, 2, 7):
        forward(module, torch.randn(3, length, 12), 0, memory)
        assert sum(tensor.numel() for tensor in memory.values()) == 3 * part.cache_values(length)


@pytest.mark.parametrize("part", [PART, Mamba2(n_heads=3, d_head=4, d_state=6, chunk=8)])
@pytest.mark.parametrize("length", [2, 3, 8, 16, 24])
def test_declared_flops_are_the_counted_ones_in_training(part, length):
    """By torch's counter, the convolution apart: it is two FLOP a tap, and no matrix.

    In a sequence of one chunk no gradient goes through the state: there, the forward pass alone is held.
    """
    module, x_BTD = drawn(part), torch.randn(2, length, 12, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y_BTD = forward(module, x_BTD)
    convolution = 2 * part.d_conv * (part.d_inner + part.shared)
    declared = part.flops_per_token(12, length) - 3 * convolution
    assert 3 * counter.get_total_flops() == 2 * length * declared
    with FlopCounterMode(display=False) as backward:
        y_BTD.sum().backward()
    if length > part.chunk:
        assert backward.get_total_flops() == 2 * counter.get_total_flops()


@pytest.mark.parametrize("part", [PART, Mamba2(n_heads=3, d_head=4, d_state=6, chunk=8)])
def test_declared_flops_are_the_counted_ones_in_decoding(part):
    module, memory = drawn(part), {}
    forward(module, torch.randn(2, 5, 12), 0, memory)
    with FlopCounterMode(display=False) as counter:
        forward(module, torch.randn(2, 1, 12), 5, memory)
    convolution = 2 * part.d_conv * (part.d_inner + part.shared)
    assert counter.get_total_flops() == 2 * (2 * part.matmul_params(12) + part.decode_flops(6) - convolution)


@pytest.mark.parametrize("part", [replace(PART, chunk=32), Mamba2(n_heads=4, d_head=16, d_state=16, chunk=64)])
def test_declared_memory_of_training_is_what_autograd_keeps(part):
    assert declared(part) + part.saved(WIDTH).normed == pytest.approx(remembered(part), rel=0.04)


def test_weights_are_drawn_as_the_paper_says():
    module = build(Mamba2(n_heads=4000, d_head=1, d_state=4), 8)
    for _, weight in module.named_parameters():
        torch.nn.init.ones_(weight)
    module.draw(torch.Generator().manual_seed(0))
    rates = module.A_log.exp()
    assert 1 <= rates.min() < 1.05 and 15.95 < rates.max() <= 16.001
    assert (module.D == 1).all() and (module.norm.weight == 1).all()
    log_size = F.softplus(module.dt_bias).log10()
    assert -3.001 <= log_size.min() < -2.99
    assert -1.01 < log_size.max() <= -0.999
    assert log_size.mean().item() == pytest.approx(-2, abs=0.03)


def test_low_precision_works_on_states_in_fp32():
    module, x_BTD = drawn(), torch.randn(1, 40, 12)
    expected = forward(module, x_BTD)
    memory = {}
    found = forward(module.bfloat16(), x_BTD.bfloat16(), 0, memory)
    assert found.dtype == memory["state"].dtype == memory["convolution"].dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() <= 0.05 * expected.abs().max()
