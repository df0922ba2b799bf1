"""A parametrisation is its published table: spreads of the weights and factors of the forward pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from nachim.model import DecoderModule, build
from nachim.model.decoder import initialise
from nachim.spec import CompleteP, MuP, Parametrisation, Standard, UserError
from tests.spec.examples import decoder

COMPLETEP = CompleteP(base_width=32, base_head=8, base_depth=2)
IDS = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(1))


def drawn(parametrisation: Parametrisation, **shape: object) -> DecoderModule:
    """A decoder with its weights drawn; an untied head is not left at zero."""
    spec = decoder(parametrisation=parametrisation, **shape)
    model = build(spec, spec.d_model)
    initialise(model, 3)
    if not spec.tied:
        nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("part", [COMPLETEP, MuP(base_width=32, base_head=8)], ids=["completep", "mup"])
def test_at_its_base_it_is_the_standard_one_bit_for_bit(part, tied):
    standard, other = drawn(Standard(), tied=tied, qk_norm=True), drawn(part, tied=tied, qk_norm=True)
    assert all(torch.equal(a, b) for a, b in zip(standard.parameters(), other.parameters(), strict=True))
    assert torch.equal(standard(IDS), other(IDS))


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embedding.weight", 0.5),
        ("blocks.0.attention.qkv.weight", 128**-0.5),
        ("blocks.1.ffn.gate_up.weight", 128**-0.5),
        ("blocks.1.attention.out.weight", 32**-0.5 * 4**-0.5),
        ("blocks.5.ffn.down.weight", 40**-0.5 * 4**-0.5),
    ],
)
def test_spreads_are_one_over_fan_in_and_do_not_know_the_depth(name, std):
    weight = dict(drawn(COMPLETEP, d_model=128, n_layers=6).named_parameters())[name]
    assert weight.std().item() == pytest.approx(std, rel=0.06)


def test_mup_alone_leaves_the_depth_to_the_standard_rule_and_a_tied_table_to_the_base():
    weights = dict(drawn(MuP(base_width=32, base_head=8), d_model=128, n_layers=6, tied=True).named_parameters())
    assert weights["blocks.5.ffn.down.weight"].std().item() == pytest.approx(40**-0.5 * 12**-0.5, rel=0.06)
    assert weights["embedding.weight"].std().item() == pytest.approx(32**-0.5, rel=0.06)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_factors_are_those_of_the_table_folded_into_a_standard_decoders_weights(qk_norm):
    shape = {"d_model": 128, "n_layers": 6, "d_head": 16, "qk_norm": qk_norm}
    ours, plain = drawn(COMPLETEP, **shape), drawn(Standard(), **shape)
    weights = {name: weight.clone() for name, weight in ours.state_dict().items()}
    wider, deeper, score = 128 / 32, 6 / 2, (8 / 16) ** 0.5
    for name, weight in weights.items():
        if name.endswith(("attention.out.weight", "ffn.down.weight")):
            weight /= deeper
        elif name == "head.weight":
            weight /= wider
        elif qk_norm and name.endswith("q_norm.weight"):
            weight *= score
        elif not qk_norm and name.endswith("qkv.weight"):
            weight[: 4 * 16] *= score
    plain.load_state_dict(weights)
    torch.testing.assert_close(ours(IDS), plain(IDS), rtol=1e-5, atol=1e-5)
    standard = plain
    standard.load_state_dict(ours.state_dict())
    assert (ours(IDS) - standard(IDS)).abs().max() > 0.1, "the factors do something"


def test_scores_go_as_one_over_head_width():
    part = MuP(base_width=32, base_head=16)
    for d_head in (8, 16, 64):
        assert part.score(d_head) * d_head**-0.5 == pytest.approx(16**0.5 / d_head)


@pytest.mark.parametrize("field", ["base_width", "base_head", "base_depth"])
def test_a_base_of_nothing_is_refused(field):
    with pytest.raises(UserError, match=f"CompleteP.{field} is 0; it must be above 0"):
        dataclasses.replace(COMPLETEP, **{field: 0})
