"""What positions cost, how stretched frequencies follow from plain ones, and which a decoder refuses."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from nachim.spec import (
    FIRE,
    MLA,
    ALiBi,
    DynamicNTK,
    Interpolated,
    Learned,
    Llama3Scaling,
    LongRoPE,
    Mamba,
    MRoPE,
    NTKAware,
    Pattern,
    RoPE,
    Sinusoidal,
    UserError,
    YaRN,
)
from tests.spec.examples import decoder

THETA, PAIRS = 10_000.0, 16
PLAIN = [THETA ** (-pair / PAIRS) for pair in range(PAIRS)]


def test_fields_that_came_later_are_not_written_at_their_defaults():
    assert RoPE(theta=500.0).to_json() == {"part": "RoPE", "theta": 500.0}
    assert set(RoPE(dim=4, scaling=Interpolated(factor=2.0)).to_json()) == {"part", "theta", "dim", "scaling"}


def test_tables_count_with_the_embedding_and_biases_with_the_layers():
    plain = decoder()
    learned = decoder(position=Learned(length=50))
    assert learned.params_embedding == plain.params_embedding + 50 * 32
    assert learned.params_non_embedding == plain.params_non_embedding
    fire = decoder(position=FIRE(n_heads=4, width=6))
    assert fire.params_non_embedding == plain.params_non_embedding + 2 * (2 + 2 * 6 + 4 * 6)
    for free in (ALiBi(), Sinusoidal(), RoPE(dim=4), MRoPE(sections=(2, 1, 1))):
        assert decoder(position=free).params_total == plain.params_total


def test_interpolation_turns_every_pair_slower_alike():
    assert Interpolated(factor=4.0).stretched(PLAIN, THETA, 0) == [turn / 4 for turn in PLAIN]


def test_a_larger_base_leaves_the_fastest_pair_and_turns_the_slowest_that_much_slower():
    found = NTKAware(factor=8.0).stretched(PLAIN, THETA, 0)
    base = THETA * 8 ** (2 * PAIRS / (2 * PAIRS - 2))
    assert found == pytest.approx([base ** (-pair / PAIRS) for pair in range(PAIRS)], rel=1e-12)
    assert found[0] == 1
    assert found[-1] == pytest.approx(PLAIN[-1] / 8, rel=1e-12)


def test_a_dynamic_base_begins_to_grow_at_the_original_length():
    scaling = DynamicNTK(factor=3.0, original=100)
    for length in (0, 7, 100):
        assert scaling.stretched(PLAIN, THETA, length) == PLAIN
    assert scaling.stretched(PLAIN, THETA, 250)[-1] == pytest.approx(PLAIN[-1] / (3 * 2.5 - 2), rel=1e-12)


def test_yarn_keeps_fast_pairs_interpolates_slow_ones_and_falls_from_one_to_the_other():
    found = YaRN(factor=8.0, original=512, beta_fast=16.0, beta_slow=1.0).stretched(PLAIN, THETA, 0)
    turns = [512 * frequency / math.tau for frequency in PLAIN]
    ratio = [new / old for new, old in zip(found, PLAIN, strict=True)]
    assert ratio == sorted(ratio, reverse=True)
    assert {r for r, t in zip(ratio, turns, strict=True) if t > 16} == {1.0}
    assert [r for r, t in zip(ratio, turns, strict=True) if t < 1] == pytest.approx([1 / 8] * 8)
    ends = YaRN(factor=8.0, original=512, beta_fast=16.0, truncate=False).stretched(PLAIN, THETA, 0)
    first, last = (PAIRS * math.log(512 / (turns * math.tau)) / math.log(THETA) for turns in (16, 1))
    share = (4 - first) / (last - first)
    assert ends[4] == pytest.approx(PLAIN[4] * (1 - share + share / 8), rel=1e-12)


def test_factors_on_cosines_and_on_the_scores_of_latent_attention():
    assert Interpolated(factor=4.0).magnitude == Llama3Scaling(factor=8.0).magnitude == 1
    assert YaRN(factor=4.0, original=8).magnitude == pytest.approx(0.1 * math.log(4) + 1)
    assert YaRN(factor=4.0, original=8, attention_factor=1.3).magnitude == 1.3
    deepseek = YaRN(factor=40.0, original=4096, mscale=0.707, mscale_all_dim=1.0)
    assert deepseek.magnitude == pytest.approx((0.0707 * math.log(40) + 1) / (0.1 * math.log(40) + 1))
    assert deepseek.latent_score == pytest.approx((0.1 * math.log(40) + 1) ** 2)
    assert YaRN(factor=40.0, original=4096).latent_score == Interpolated(factor=4.0).latent_score == 1
    assert YaRN(factor=1.0, original=8).magnitude == 1
    long = LongRoPE(short=(1.0,), long=(2.0,), factor=32.0, original=4096)
    assert long.magnitude == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert LongRoPE(short=(1.0,), long=(2.0,), factor=1.0, original=4096).magnitude == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RoPE(dim=3), "RoPE.dim is 3; pairs turn, so it must be even and above 0"),
        (lambda: RoPE(dim=0), "RoPE.dim is 0; pairs turn, so it must be even and above 0"),
        (lambda: RoPE(theta=1.0, scaling=Interpolated(factor=2.0)), "RoPE.theta is 1.0; scaling needs pairs that turn"),
        (lambda: MRoPE(sections=(2, 2)), "MRoPE.sections is (2, 2); it must be three counts of pairs"),
        (lambda: MRoPE(sections=(2, -1, 3)), "MRoPE.sections is (2, -1, 3); it must be three counts of pairs"),
        (lambda: ALiBi(steepness=0), "ALiBi.steepness is 0.0; it must be above 0"),
        (lambda: FIRE(n_heads=0), "FIRE.n_heads is 0; it must be above 0"),
        (lambda: FIRE(n_heads=4, c=-0.1), "FIRE.c is -0.1; it must be above 0"),
        (lambda: Interpolated(factor=0.5), "Interpolated.factor is 0.5; it must be at least 1"),
        (lambda: NTKAware(factor=0.0), "NTKAware.factor is 0.0; it must be at least 1"),
        (lambda: DynamicNTK(factor=2.0, original=0), "DynamicNTK.original is 0; it must be above 0"),
        (lambda: YaRN(factor=2.0, original=8, beta_fast=1, beta_slow=4), "YaRN.beta_fast is 1.0; it must be at least"),
        (lambda: YaRN(factor=2.0, original=8, attention_factor=0), "YaRN.attention_factor is 0.0; it must be above 0"),
        (lambda: Llama3Scaling(factor=8.0, low=4.0), "Llama3Scaling.high is 4.0; it must be above low=4.0"),
        (lambda: LongRoPE(short=(1.0,), long=(), factor=2.0, original=8), "LongRoPE.long has 0 divisors, short has 1"),
        (lambda: LongRoPE(short=(), long=(), factor=2.0, original=8), "LongRoPE.short and long need divisors above 0"),
        (lambda: LongRoPE(short=(1.0,), long=(0.0,), factor=2.0, original=8), "and long need divisors above 0"),
        (lambda: LongRoPE(short=(1.0,), long=(1.0,), factor=2.0, original=1), "LongRoPE.original is 1; it must be at"),
        (lambda: decoder(d_head=7), "Decoder.attention has d_head=7; RoPE turns pairs, so it must be even"),
        (lambda: decoder(d_head=7, position=MRoPE(sections=(1, 1, 1))), "has d_head=7; RoPE turns pairs"),
        (
            lambda: decoder(position=RoPE(dim=10)),
            "Decoder.attention has heads of 8 channels to turn; RoPE.dim=10 is more than that",
        ),
        (
            lambda: replace(decoder(), attention=MLA(n_heads=4, d_head=8, rank=8, rope_dim=4), position=RoPE(dim=6)),
            "Decoder.attention has heads of 4 channels to turn; RoPE.dim=6 is more than that",
        ),
        (
            lambda: decoder(position=FIRE(n_heads=8)),
            "Decoder.attention has n_heads=4; FIRE.n_heads=8 must equal it",
        ),
        (
            lambda: replace(decoder(), attention=Mamba(d_inner=8, d_state=2, dt_rank=2), position=FIRE(n_heads=8)),
            "Decoder.attention has a mixer without scores; FIRE is a bias on those of heads: give its layers",
        ),
        (
            lambda: decoder(position=MRoPE(sections=(2, 2, 1))),
            "Decoder.attention has heads of 4 pairs to turn; MRoPE.sections=(2, 2, 1) must fill them",
        ),
        (
            lambda: decoder(position=RoPE(scaling=LongRoPE(short=(1.0,) * 3, long=(2.0,) * 3, factor=2.0, original=8))),
            "Decoder.attention has heads of 4 pairs to turn; LongRoPE has 3 divisors for them",
        ),
        (lambda: decoder(position=Pattern(parts=(RoPE(), RoPE(dim=10)))), "RoPE.dim=10 is more than that"),
        (lambda: decoder(position=Pattern(parts=(RoPE(), Sinusoidal()))), "Decoder.position is a pattern with a part"),
    ],
)
def test_positions_that_make_no_sense_or_do_not_fit_are_refused(make, said):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_decoder_may_turn_less_than_a_head():
    assert decoder(d_head=7, position=RoPE(dim=4)).position.turned(7) == 4
