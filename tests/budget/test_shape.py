"""Real decoders near a wanted cost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nachim.budget.shape import WIDTHS, ladder_shapes, nearest_shape, shape
from nachim.model import build
from nachim.spec import UserError

FAMILY = [shape(width, 512) for width in WIDTHS]


def test_heads_fill_every_width_and_come_in_pairs_of_channels():
    for model in FAMILY:
        part = model.attention
        assert part.n_heads * part.d_head == model.d_model, model
        assert part.d_head % 2 == 0, model
        assert part.n_heads % part.n_kv_heads == 0, model


def test_depth_and_width_grow_together():
    for smaller, larger in itertools.pairwise(FAMILY):
        assert larger.n_layers - smaller.n_layers in (0, 1, 2)
        assert larger.ffn.d_ff > smaller.ffn.d_ff
    shapes = {model.d_model: model.n_layers for model in FAMILY}
    assert [shapes[width] for width in (32, 64, 128, 1024)] == [2, 2, 4, 22]


@pytest.mark.parametrize("seq_len", [1, 128, 4096])
def test_a_wider_member_always_costs_more(seq_len):
    costs = [model.flops_per_token(seq_len) for model in FAMILY]
    assert costs == sorted(set(costs))


@pytest.mark.parametrize("seq_len", [64, 1024])
@settings(max_examples=25)
@given(st.floats(6, 11))
def test_the_nearest_member_is_the_nearest_and_within_reach(seq_len, power):
    wanted = 10**power
    costs = [model.flops_per_token(seq_len) for model in FAMILY]
    assert costs[0] < 1e6
    assert costs[-1] > 1e11
    found = nearest_shape(wanted, 512, seq_len).flops_per_token(seq_len)
    apart = max(found / wanted, wanted / found)
    assert apart == pytest.approx(min(max(cost / wanted, wanted / cost) for cost in costs), rel=1e-12)
    widest_gap = max(larger / smaller for smaller, larger in itertools.pairwise(costs))
    assert apart <= widest_gap**0.5 * (1 + 1e-9)


def test_a_member_is_nearest_to_its_own_cost():
    for model in FAMILY[::200]:
        assert nearest_shape(model.flops_per_token(128), 512, 128) == model


@pytest.mark.parametrize("wanted", [240, 1e3, 1e15])
def test_a_cost_that_no_decoder_has_is_refused(wanted):
    with pytest.raises(UserError, match=r"no decoder has M = .* FLOP/token at length 128; the nearest has"):
        nearest_shape(wanted, 512, 128)
    with pytest.raises(UserError, match="no decoder has M"):
        ladder_shapes(wanted, wanted * 10, 3, 512, 128)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_a_ladder_rises_from_its_lowest_to_its_highest_rung(count):
    low, high = 1e6, 1e9
    rungs = ladder_shapes(low, high, count, 512, 128)
    costs = [model.flops_per_token(128) for model in rungs]
    assert costs == sorted(set(costs))
    assert len(rungs) == count
    assert rungs[0] == nearest_shape(low, 512, 128)
    assert count == 1 or rungs[-1] == nearest_shape(high, 512, 128)
    wanted = (high / low) ** (1 / max(1, count - 1))
    for one, other in itertools.pairwise(costs):
        assert other / one == pytest.approx(wanted, rel=0.6)


def test_a_crowded_ladder_names_no_decoder_twice():
    rungs = ladder_shapes(1e6, 2e6, 10, 512, 128)
    assert 1 < len(rungs) < 10
    assert len(set(rungs)) == len(rungs)


def test_members_can_be_built():
    for model in FAMILY[:3]:
        counted = sum(weight.numel() for weight in build(model, model.d_model).parameters())
        assert counted == model.params_total
