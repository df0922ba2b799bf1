"""The set of designs around an optimum: what it spends, what it costs, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest

from nachim.budget.designs import (
    BAND,
    EPSILON,
    FEWEST_STEPS,
    WIDTHS,
    Asked,
    batch_tokens,
    decoder,
    design_of,
    designs,
    given_decoder,
    shapes_between,
)
from nachim.budget.designs import settings as defaults
from nachim.law.published import BATCH_OPT, LAWS
from nachim.law.repeat import effective_tokens
from nachim.model import build
from nachim.spec import MTP, Decoder, UserError


def asked(flops: float, law: str = "deepseek", **fields: object) -> Asked:
    vocab_size, seq_len = defaults(flops)
    said = {"vocab_size": vocab_size, "seq_len": seq_len} | fields
    return Asked(flops=flops, law=LAWS[law], **said)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("flops", [1e12, 1e15, 1e18, 1e21, 1e24])
def test_designs_spend_the_compute_within_epsilon_of_the_least_loss(flops, law):
    found = designs(asked(flops, law))
    assert 1 <= len(found) <= 8
    assert [one.loss for one in found] == sorted(one.loss for one in found)
    assert found[-1].loss <= found[0].loss * (1 + EPSILON) * (1 + 1e-12)
    for one in found:
        assert one.flops_per_token * one.tokens == pytest.approx(flops)
        assert one.steps * one.batch_tokens == pytest.approx(one.tokens, rel=0.002)
        assert one.steps >= FEWEST_STEPS * 0.99


@pytest.mark.parametrize("law", ["deepseek", "chinchilla-corrected"])
@pytest.mark.parametrize("flops", [1e14, 1e21])
def test_modules_for_further_tokens_take_compute_and_give_no_loss(flops, law):
    question = asked(flops, law, mtp=MTP(depth=2))
    found, plain = designs(question), designs(asked(flops, law))
    assert found[0].loss > plain[0].loss  # of the same compute less is left for the decoder
    for one in found:
        assert one.model.mtp == MTP(depth=2)
        assert one.flops_per_token == one.model.flops_per_token(question.seq_len)
        assert one.flops_per_token * one.tokens == pytest.approx(flops)
        alone = dataclasses.replace(one.model, mtp=None)
        spent = alone.flops_per_token(question.seq_len) * one.tokens
        same_tokens = design_of(dataclasses.replace(asked(flops, law), flops=spent), alone)
        assert one.loss == pytest.approx(same_tokens.loss)
    for model in shapes_between(question, found[0].flops_per_token / 2, found[0].flops_per_token * 2):
        assert model.mtp == MTP(depth=2)
        assert 0.5 <= model.flops_per_token(question.seq_len) / found[0].flops_per_token <= 2


@pytest.mark.parametrize("flops", [1e19, 1e21, 1e23, 3.8e25])
def test_large_designs_look_like_published_ones(flops):
    for one in designs(asked(flops)):
        model = one.model
        heads, keys = model.attention.n_heads, model.attention.n_kv_heads
        assert 32 <= model.d_model / model.n_layers <= 136
        assert heads % keys == 0 and model.attention.d_head in (64, 128)
        assert model.d_model == heads * model.attention.d_head
        assert keys == (8 if model.d_model >= 1024 else heads)
        assert heads % 8 == 0 or model.d_model < 1024
        assert model.ffn.d_ff % 64 == 0 and 2.6 < model.ffn.d_ff / model.d_model < 3.7


def test_the_loss_of_a_design_is_the_laws():
    """Chinchilla's own closed form, with the corrected coefficients and every parameter counted."""
    for one in designs(asked(1e21, "chinchilla-corrected")):
        by_hand = 1.8172 + 482.01 / one.model.params_total**0.3478 + 2085.43 / one.tokens**0.3658
        assert one.loss == pytest.approx(by_hand)


def test_the_optimum_of_a_surface_is_not_missed():
    """Real shapes reach the loss of the continuous optimum to 0.3 %: M leaves out the head that 6N counts."""
    law = LAWS["chinchilla-corrected"]
    for flops in (1e20, 1e22, 1e24):
        optimum = law.optimum(flops)
        least = law.surface.loss(optimum.x, optimum.tokens)
        assert designs(asked(flops, law.name))[0].loss == pytest.approx(least, rel=0.003)


def test_a_set_shows_smaller_and_larger_members():
    costs = [one.flops_per_token for one in designs(asked(1e22))]
    assert max(costs) / min(costs) > 1.8


def test_repeated_tokens_are_worth_less_and_ask_for_larger_models():
    free, short = asked(1e21), asked(1e21, unique_tokens=2e9)
    model = designs(free)[0].model
    fresh, repeated = design_of(free, model), design_of(short, model)
    worth = effective_tokens(fresh.tokens, 2e9)
    assert repeated.loss == pytest.approx(LAWS["chinchilla-corrected"].surface.loss(model.params_total, worth))
    assert repeated.loss > fresh.loss
    mean = [
        sum(math.log(one.model.params_total) for one in designs(each)) / len(designs(each)) for each in (free, short)
    ]
    assert mean[1] > mean[0]


@pytest.mark.parametrize("flops", [1e12, 1e18, 1e21, 1e24])
@pytest.mark.parametrize("devices", [1, 8, 24, 64])
def test_batches_are_near_the_law_and_shared_evenly(flops, devices):
    one = asked(flops, devices=devices)
    batch = batch_tokens(one)
    assert batch % one.seq_len == 0
    assert batch == pytest.approx(float(BATCH_OPT(flops)), rel=0.13)
    if batch // one.seq_len >= 8 * devices:
        assert batch // one.seq_len % devices == 0


def test_the_smallest_budget_that_works_works():
    with pytest.raises(
        UserError, match=r"1e\+06 FLOP is too little: the smallest decoder \(2 layers x 32\) has M = "
    ) as said:
        designs(asked(1e6))
    least = float(str(said.value).split("take ")[1].split(" FLOP")[0])
    assert 1e10 < least < 1e12
    assert designs(asked(1.1 * least))
    with pytest.raises(UserError, match="too little"):
        designs(asked(0.9 * least))


def test_small_designs_are_the_ladders_and_can_be_built():
    for one in designs(asked(1e12)):
        assert one.model.attention.previous_key
        counted = sum(weight.numel() for weight in build(one.model, one.model.d_model).parameters())
        assert counted == one.model.params_total


def test_a_shape_can_be_given():
    model = given_decoder("30x4096x32x32", 102_400)
    assert (model.n_layers, model.d_model, model.attention.n_heads, model.attention.n_kv_heads) == (30, 4096, 32, 32)
    assert given_decoder("12x768", 32_768) == decoder(768, 12, 32_768)
    for text in ("30", "ax4", "30x4096x32x8x1", "0x64", "30x"):
        with pytest.raises(UserError, match="give LAYERSxWIDTH"):
            given_decoder(text, 1000)
    with pytest.raises(UserError, match="n_heads is 30; it must divide d_model=4096"):
        given_decoder("30x4096x30", 1000)
    with pytest.raises(UserError, match="n_kv_heads is 5; it must divide n_heads=32"):
        given_decoder("30x4096x32x5", 1000)


def test_published_shapes_come_back():
    """Llama-3-8B's width has its heads, groups and feed-forward, Llama-3.2's and Qwen2.5-7B's their heads."""
    llama, qwen = decoder(4096, 32, 128_256), decoder(3584, 28, 152_064)
    assert (llama.attention.n_heads, llama.attention.n_kv_heads, llama.ffn.d_ff) == (32, 8, 14_336)
    for d_model, n_heads, d_head in ((2048, 32, 64), (3072, 24, 128)):
        heads = decoder(d_model, 16, 128_256).attention
        assert (heads.n_heads, heads.n_kv_heads, heads.d_head) == (n_heads, 8, d_head)
    assert (qwen.attention.n_heads, qwen.attention.n_kv_heads) == (28, 4)
    assert isinstance(llama, Decoder) and not llama.tied
    assert decoder(2048, 16, 128_256).tied


@pytest.mark.parametrize("vocab_size", [32_768, 131_072])
def test_the_grid_leaves_no_gap_in_size(vocab_size):
    """Any M from a small decoder's to a trillion parameters' has a shape in its band."""
    for step in range(61):
        wanted = 10 ** (8.7 + step * 0.06)
        found = shapes_between(asked(1e27, vocab_size=vocab_size), wanted / BAND**0.5, wanted * BAND**0.5)
        assert found, wanted


def test_the_cache_grows_with_the_width():
    per_layer = [decoder(width, 1, 1000).cache_bytes(1) for width in WIDTHS if width >= 1024]
    assert per_layer == sorted(per_layer)
    assert set(per_layer) == {2 * 2 * 8 * 64, 2 * 2 * 8 * 128}


def test_no_shape_for_an_absurd_length():
    with pytest.raises(UserError, match=r"too little|no decoder near"):
        designs(dataclasses.replace(asked(1e18), seq_len=10_000_000))
