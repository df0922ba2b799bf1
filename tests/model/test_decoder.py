"""Weights come from a seed alone, the first loss is known, and a decoder serves training whoever used it before."""

from __future__ import annotations

import math

import pytest
import torch

from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import PreNorm, UserError
from tests.spec.examples import decoder


def drawn(seed: int, **shape: object) -> torch.nn.Module:
    """A decoder with its weights drawn."""
    spec = decoder(**shape)
    model = build(spec, spec.d_model)
    initialise(model, seed)
    return model


def test_weights_are_a_pure_function_of_the_seed():
    one = drawn(3, previous_key=True, qk_norm=True).state_dict()
    torch.manual_seed(99)
    torch.rand(7)
    same = drawn(3, previous_key=True, qk_norm=True).state_dict()
    other = drawn(4, previous_key=True, qk_norm=True).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    random = [name for name, weight in one.items() if weight.ndim == 2 and name != "head.weight"]
    assert not any(torch.equal(one[name], other[name]) for name in random)


def test_drawing_weights_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    model = build(decoder(), 32)
    state = torch.get_rng_state()
    initialise(model, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_first_loss_of_an_untied_head_is_that_of_a_uniform_guess(qk_norm):
    model = drawn(0, qk_norm=qk_norm)
    ids_BT = torch.randint(300, (2, 9))
    assert model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).item() == pytest.approx(math.log(300), rel=1e-6)


def test_the_first_loss_of_a_tied_head_is_not_wild():
    model = drawn(0, tied=True)
    ids_BT = torch.randint(300, (4, 33))
    assert model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).item() < math.log(300) + 1.5
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embedding.weight", 0.5),
        ("blocks.0.attention.qkv.weight", 64**-0.5),
        ("blocks.1.ffn.gate_up.weight", 64**-0.5),
        ("blocks.1.attention.out.weight", 32**-0.5 / 8**0.5),
        ("blocks.3.ffn.down.weight", 40**-0.5 / 8**0.5),
    ],
)
def test_every_matrix_has_the_spread_its_place_asks_for(name, std):
    weight = dict(drawn(1, d_model=64, n_layers=4).named_parameters())[name]
    assert weight.std().item() == pytest.approx(std, rel=0.06)
    assert abs(weight.mean().item()) < 0.1 * std


def test_gains_start_at_one_and_an_untied_head_at_zero():
    weights = dict(drawn(1, qk_norm=True).named_parameters())
    assert all((weight == 1).all() for weight in weights.values() if weight.ndim == 1)
    assert (weights["head.weight"] == 0).all()


def test_a_decoder_first_used_without_gradients_can_be_trained():
    model = drawn(0)
    ids_BT = torch.randint(300, (2, 9))
    with torch.inference_mode():
        quiet = model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).item()
    loss = model.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(quiet, rel=1e-6)


def test_rotations_follow_the_length_and_the_precision():
    model = drawn(0)
    torch.nn.init.normal_(model.head.weight)
    ids_BT = torch.randint(300, (1, 24))
    whole = model(ids_BT)
    for length in (3, 24, 7):
        torch.testing.assert_close(model(ids_BT[:, :length]), whole[:, :length], rtol=1e-4, atol=1e-5)
    assert model.to(torch.bfloat16)(ids_BT).dtype == torch.bfloat16
    assert model.to(torch.float64)(ids_BT).dtype == torch.float64


def test_a_part_without_a_module_is_named():
    with pytest.raises(UserError, match="no module computes PreNorm"):
        build(PreNorm(), 32)
