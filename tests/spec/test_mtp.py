"""What multi-token prediction declares, and who counts it or leaves it out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nachim.budget.convention import chinchilla_flops, conventions, softmax_flops
from nachim.budget.device import device_named
from nachim.budget.serve import Demand, serve
from nachim.spec import MTP, UserError
from tests.spec.examples import decoder

PLAIN = decoder()
AHEAD = replace(PLAIN, mtp=MTP(depth=2))


def test_a_module_costs_a_block_a_matrix_and_three_norms():
    one_block = (PLAIN.params_non_embedding - 32) / PLAIN.n_layers
    assert AHEAD.params_total - PLAIN.params_total == 2 * (one_block + 2 * 32 * 32 + 3 * 32)
    assert AHEAD.params_active - PLAIN.params_active == AHEAD.params_total - PLAIN.params_total
    assert AHEAD.params_embedding == PLAIN.params_embedding
    per_layer = PLAIN.flops_per_token(16) / PLAIN.n_layers
    assert AHEAD.flops_per_token(16) - PLAIN.flops_per_token(16) == 2 * (per_layer + 6 * 2 * 32 * 32)
    assert AHEAD.head_flops_per_token == 3 * PLAIN.head_flops_per_token


def test_reading_and_writing_do_without_it():
    assert AHEAD.prefill_flops(16) == PLAIN.prefill_flops(16)
    assert AHEAD.decode_flops(16) == PLAIN.decode_flops(16)
    assert AHEAD.cache_bytes(16) == PLAIN.cache_bytes(16)


def test_every_convention_counts_it():
    """Two more of both layers' blocks and of both tables' passes, and the matrices that join them."""
    less, more = ({row.name: row.flops_per_token for row in conventions(model, 16)} for model in (PLAIN, AHEAD))
    blocks, joins, norms = PLAIN.n_layers, 2 * 6 * 2 * 32 * 32, 2 * 6 * 3 * 32
    head = PLAIN.head_flops_per_token
    assert blocks == 2
    assert more["M, causal"] == 2 * less["M, causal"] + joins
    assert more["6N, blocks"] == 2 * less["6N, blocks"] - 6 * 32 + joins + norms
    assert more["6N, blocks + head"] == more["6N, blocks"] + 3 * head
    assert softmax_flops(AHEAD, 16) == 2 * softmax_flops(PLAIN, 16)
    assert chinchilla_flops(AHEAD, 16) == AHEAD.flops_per_token(16) + 3 * 2 * head + 3 * softmax_flops(AHEAD, 16)


def test_serving_leaves_it_out():
    demand = Demand(tokens_per_day=1e9, prompt_tokens=100, answer_tokens=100, days=10)
    device = replace(device_named("H100"), dollars_per_hour=2.0)
    assert serve(AHEAD, device, demand) == serve(PLAIN, device, demand)


@pytest.mark.parametrize(("fields", "said"), [({"depth": 0}, "MTP.depth is 0"), ({"weight": 0}, "MTP.weight is 0.0")])
def test_values_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(UserError, match=f"{said}; it must be above 0"):
        MTP(**fields)
