"""Dense feed-forwards are their closed forms, and cost what they declare."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import FFN, MLP, GeGLU, SwiGLU, UserError
from tests.spec.examples import decoder

PARTS = {
    "relu": MLP(d_ff=24, activation="relu"),
    "relu2": MLP(d_ff=24, activation="relu2", bias=True),
    "gelu": MLP(d_ff=24, activation="gelu", bias=True),
    "gelu_tanh": MLP(d_ff=24, activation="gelu_tanh"),
    "swiglu": SwiGLU(d_ff=20),
    "swiglu with biases": SwiGLU(d_ff=20, bias=True),
    "geglu": GeGLU(d_ff=20),
    "exact geglu": GeGLU(d_ff=20, exact=True),
}


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x (arXiv 1606.08415, sec. 2)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    """Its approximation (arXiv 1606.08415, sec. 2)."""
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMS = {
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x * x * (x > 0),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "swiglu with biases": lambda x: x / (1 + torch.exp(-x)),
    "geglu": gelu_tanh,
    "exact geglu": gelu,
}


def built(part: FFN) -> torch.nn.Module:
    """The module of `part` in float64, every parameter random."""
    generator = torch.Generator().manual_seed(1)
    module = build(part, 16).double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, generator=generator)
    return module


@pytest.mark.parametrize("name", PARTS)
def test_a_feed_forward_is_its_closed_form(name):
    part = PARTS[name]
    module, x = built(part), torch.randn(2, 3, 16, dtype=torch.float64)
    weights = dict(module.named_parameters())
    if isinstance(part, MLP):
        hidden = FORMS[name](x @ weights["up.weight"].T + weights.get("up.bias", 0))
    else:
        gate, up = (x @ weights["gate_up.weight"].T + weights.get("gate_up.bias", 0)).split(part.d_ff, -1)
        hidden = FORMS[name](gate) * up
    expected = hidden @ weights["down.weight"].T + weights.get("down.bias", 0)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", PARTS)
def test_its_gradients_are_the_finite_differences(name):
    x = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(built(PARTS[name]), x)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_declared_costs_are_the_counted_ones(part):
    spec = decoder(ffn=part)
    model = build(spec, spec.d_model)
    ids_BT = torch.zeros(2, 6, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.blocks[0].ffn(torch.zeros(2, 6, spec.d_model, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == part.flops_per_token(spec.d_model) * ids_BT.numel()
    assert sum(weight.numel() for weight in model.parameters()) == spec.params_total


def test_biases_start_at_zero():
    spec = decoder(ffn=PARTS["gelu"])
    model = build(spec, spec.d_model)
    initialise(model, 0)
    biases = [weight for name, weight in model.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 2 * spec.n_layers
    assert not any(bias.any() for bias in biases)


def test_an_unknown_activation_is_refused():
    with pytest.raises(UserError, match=r"MLP.activation is 'swish'"):
        MLP(d_ff=8, activation="swish")
