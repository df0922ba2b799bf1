"""Serving against bandwidth arithmetic, published tables and published throughputs."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest

from nachim.budget.device import device_named
from nachim.budget.serve import FORMATS, REACHED, Demand, Replica, degrees, format_named, serve, ways
from nachim.budget.speculate import Speculation, tokens_per_pass
from nachim.spec import MLA, Attention, Decoder, Mamba2, MoE, SwiGLU, UserError

H100, H200 = (replace(device_named(name), dollars_per_hour=2.0) for name in ("H100", "H200"))
BF16, FP8 = FORMATS["bf16"], FORMATS["fp8"]


def llama(n_layers: int, d_model: int, n_heads: int, d_ff: int) -> Decoder:
    attention = Attention(n_heads=n_heads, n_kv_heads=8, d_head=128)
    return Decoder(vocab_size=128256, d_model=d_model, n_layers=n_layers, attention=attention, ffn=SwiGLU(d_ff=d_ff))


LLAMA_8B = llama(32, 4096, 32, 14336)
LLAMA_70B = llama(80, 8192, 64, 28672)
LLAMA_405B = llama(126, 16384, 128, 53248)
QWEN_235B = Decoder(
    vocab_size=151936,
    d_model=4096,
    n_layers=94,
    attention=Attention(n_heads=64, n_kv_heads=4, d_head=128, qk_norm=True),
    ffn=MoE(d_ff=1536, experts=128, active=8),
)
CHAT = Demand(tokens_per_day=2e9, prompt_tokens=1000, answer_tokens=300, days=365)


def test_one_sequence_decodes_at_the_speed_of_its_memory():
    """Llama-3-8B in bf16: (8.03e9 - 128256 x 4096) parameters and 131,072 bytes of cache a token, at 3.35 TB/s."""
    replica = Replica(LLAMA_8B, H100, 1, BF16, BF16, reached=1.0)
    position = 1150
    read = 2 * (8_030_261_248 - 128_256 * 4096) + 131_072 * position
    seconds = replica.decode_seconds(1, LLAMA_8B.decode_flops(position), replica.cache_bytes(position))
    assert seconds == pytest.approx(read / 3.35e12, rel=1e-4)  # the norms' vectors, 0.002 %, are not read
    assert 1 / seconds == pytest.approx(220, rel=0.01)


def test_reading_a_prompt_takes_its_arithmetic():
    """2 FLOP a parameter of the blocks and token, causal attention 2·L·d·s, one row of the head."""
    replica = Replica(LLAMA_8B, H100, 1, BF16, BF16, reached=1.0)
    length = 8000
    body = 32 * (4096 * (4096 + 1024 * 2 + 4096) + 3 * 4096 * 14336)
    flops = length * (2 * body + 2 * 32 * 4096 * (length + 1)) + 2 * 4096 * 128256
    counted = length * LLAMA_8B.prefill_flops(length) + LLAMA_8B.head_flops_per_token / 3
    assert counted == pytest.approx(flops, rel=1e-12)
    seconds = replica.prefill_seconds(1, length, counted, replica.cache_bytes(length))
    assert seconds == pytest.approx(flops / (989.4e12 * H100.sustained))


def test_weights_and_cache_are_cut_as_far_as_they_have_pieces():
    whole, cut = (Replica(LLAMA_8B, H100, tp, BF16, BF16) for tp in (1, 8))
    assert whole.weight_bytes == 2 * LLAMA_8B.params_total
    assert cut.weight_bytes == pytest.approx(whole.weight_bytes / 8, rel=1e-3)  # the norms stand everywhere
    assert whole.cache_bytes(8192) == LLAMA_8B.cache_bytes(8192)
    assert cut.cache_bytes(8192) == LLAMA_8B.cache_bytes(8192) / 8
    latent = replace(LLAMA_8B, attention=MLA(n_heads=32, d_head=128, rank=512, rope_dim=64))
    assert Replica(latent, H100, 8, BF16, BF16).cache_bytes(100) == latent.cache_bytes(100)  # every device holds it


def test_four_bits_take_a_quarter_and_their_scales():
    body = sum(
        32 * matrix.params
        for layer in (LLAMA_8B.attention, LLAMA_8B.ffn)
        for matrix in layer.matrices(LLAMA_8B.d_model)
    )
    small = Replica(LLAMA_8B, H100, 1, FORMATS["int4"], BF16).weight_bytes
    assert small == pytest.approx(body / 2 + body / 128 * 2 + 2 * (LLAMA_8B.params_total - body))


@pytest.mark.parametrize(("tokens", "touched"), [(1, 8), (2, 8 + 8 * 120 / 128), (10_000, 128)])
def test_a_batch_touches_the_experts_that_its_tokens_choose(tokens, touched):
    replica = Replica(QWEN_235B, H200, 1, BF16, BF16)
    expert = 94 * 3 * 4096 * 1536 * 2
    dense = 94 * 2 * (4096 * (64 + 4 * 2 + 64) * 128 + 4096 * 128) + 2 * 4096 * 151936
    assert replica.read_bytes(tokens) == pytest.approx(dense + touched * expert, rel=1e-9)


LENGTHS = (
    (128, 128), (128, 2048), (128, 4096), (500, 2000), (1000, 1000),
    (1000, 2000), (2048, 128), (2048, 2048), (5000, 500), (20000, 2000),
)  # fmt: skip
# TensorRT-LLM 1.0, docs/source/performance/perf-overview.md: output tokens/s of the group, fp8 weights and cache.
MEASURED = (
    (LLAMA_8B, H100, 1, (28312, 22714, 14325, 17660, 15220, 13899, 3450, 9305, 3459, 1351)),
    (LLAMA_8B, H200, 1, (27911, 26221, 18027, 20770, 17744, 16828, 3538, 12194, 3902, 1804)),
    (LLAMA_70B, H100, 2, (6378, 6651, 4199, 5222, 4205, 4146, 762, 3082, 898, 437)),
    (LLAMA_70B, H200, 1, (3803, 4336, 2872, 3666, 2909, 2994, 442, 2003, 566, 283)),
    (LLAMA_405B, H100, 8, (3627, 4340, 3116, 3994, 2919, 2895, 453, 2296, 610, 345)),
    (LLAMA_405B, H200, 8, (3814, 5348, 4741, 4724, 3330, 3722, 456, 2948, 650, 505)),
)
HELD_OUT = (
    (QWEN_235B, H100, 8, (None, 19658, 12447, 18351, 14898, 15136, None, 9924, 3225, None)),
    (QWEN_235B, H200, 8, (30429, 42821, 26852, 28026, 23789, 22061, 3331, 16672, 3623, 1876)),
)


def reached(rows) -> list[float]:
    """Measured over predicted for groups of the size that was measured."""
    found = []
    for model, device, tp, rates in rows:
        replica = Replica(model, device, tp, FP8, FP8)
        for (prompt, answer), rate in zip(LENGTHS, rates, strict=True):
            demand = Demand(tokens_per_day=1e9, prompt_tokens=prompt, answer_tokens=answer, days=1)
            (way,) = ways(replica, demand, None)
            seconds = prompt / way.prompt_rate + answer / way.answer_rate
            if rate is not None:
                found.append(rate / tp * seconds / answer)
    return found


def test_published_throughputs_lie_below_the_roofline_and_around_the_prediction():
    ratios = reached(MEASURED)
    assert len(ratios) == 60
    assert statistics.median(ratios) == pytest.approx(1, abs=0.02)  # REACHED is their median
    assert max(ratios) * REACHED < 1
    assert 0.6 < min(ratios) < max(ratios) < 1.5


def test_a_model_that_is_not_behind_the_number_is_predicted_too():
    ratios = reached(HELD_OUT)
    assert len(ratios) == 17
    assert 0.75 < min(ratios) < max(ratios) < 1.4
    assert statistics.median(ratios) == pytest.approx(1, abs=0.15)


def test_money_and_devices_follow_from_the_rates():
    way = serve(LLAMA_8B, H100, CHAT)
    questions = 2e9 * 365 / 1300
    hours = questions * (1000 / way.prompt_rate + 300 / way.answer_rate) / 3600
    assert way.dollars == pytest.approx(2.0 * hours)
    assert way.dollars_per_token * CHAT.tokens == pytest.approx(way.dollars)
    assert way.dollars == pytest.approx(
        questions * (1000 * way.dollars_per_million_prompt + 300 * way.dollars_per_million_answer) / 1e6
    )
    assert way.devices >= hours / (365 * 24)
    assert way.limit == "memory"


def test_the_batch_fills_the_memory_and_no_more():
    way = serve(LLAMA_8B, replace(H100, node_devices=1), CHAT)
    cache = way.batch * 131_072 * 1150
    room = 0.9 * H100.memory_bytes - 2 * LLAMA_8B.params_total
    assert cache <= room < cache + 131_072 * 1150


def test_a_limit_on_latency_is_met_by_a_smaller_batch_or_a_larger_group():
    free = serve(LLAMA_8B, H100, CHAT)
    for limit in (0.02, 0.01, 0.005):
        way = serve(LLAMA_8B, H100, replace(CHAT, max_tpot=limit))
        assert way.tpot <= limit
        assert way.dollars >= free.dollars
        assert way.limit == "latency"
    quick = serve(LLAMA_8B, H100, replace(CHAT, max_ttft=0.015))
    assert quick.ttft <= 0.015 < free.ttft


def test_samples_multiply_the_answers_and_share_the_prompt():
    one, many = (serve(LLAMA_8B, H100, replace(CHAT, samples=samples)) for samples in (1, 8))
    assert many.batch > 2 * one.batch  # a cache holds an eighth of the prompt for each
    prompt = CHAT.questions * 1000 * one.dollars_per_million_prompt / 1e6
    answers = 8 * CHAT.questions * 300 * many.dollars_per_million_answer / 1e6
    assert many.dollars == pytest.approx(prompt + answers)


def test_a_state_that_does_not_grow_serves_long_prompts_cheaper():
    state = replace(LLAMA_8B, attention=Mamba2(n_heads=128, d_state=128, d_head=64))
    long = replace(CHAT, prompt_tokens=30_000)
    assert serve(state, H100, long).dollars_per_million_answer < serve(LLAMA_8B, H100, long).dollars_per_million_answer


# arXiv 2211.17192, table 1 (c = 0), and the first tokens by hand.
@pytest.mark.parametrize(
    ("acceptance", "drafted", "printed"),
    [(0.6, 2, 1.96), (0.7, 3, 2.53), (0.8, 2, 2.44), (0.8, 5, 3.69), (0.9, 2, 2.71), (0.9, 10, 6.86)],
)
def test_the_published_speedups_of_drafting(acceptance, drafted, printed):
    assert tokens_per_pass(acceptance, drafted) == pytest.approx(printed, abs=0.005)
    assert tokens_per_pass(acceptance, drafted) == pytest.approx((1 - acceptance ** (drafted + 1)) / (1 - acceptance))


def test_drafting_gains_what_the_paper_says_for_one_sequence_and_little_where_arithmetic_binds():
    speculation = Speculation(acceptance=0.8, draft_cost=0.05)
    replica = Replica(LLAMA_8B, H100, 1, BF16, BF16, draft=0.05)

    def gain(batch: int, position: int) -> float:
        token = LLAMA_8B.decode_flops(position), replica.cache_bytes(position)
        drafted = replica.decode_seconds(batch, *token, 5) / tokens_per_pass(0.8, 5)
        return replica.decode_seconds(batch, *token) / drafted

    assert gain(1, 1000) == pytest.approx((1 - 0.8**6) / ((1 - 0.8) * (5 * 0.05 + 1)), rel=1e-3)  # theorem 3.8
    assert gain(1024, 100) < 1
    assert gain(1024, 20_000) > 1.5  # a long cache is read once for all that is verified
    assert serve(LLAMA_8B, H100, replace(CHAT, max_tpot=0.008), speculation=speculation).drafted > 0


@pytest.mark.parametrize("field", ["tokens_per_day", "prompt_tokens", "answer_tokens", "days", "samples", "max_tpot"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_demand_of_nothing_is_refused(field, value):
    with pytest.raises(UserError, match=rf"Demand.{field} is {value}.*must be above 0"):
        replace(CHAT, **{field: value})


def test_what_cannot_be_served_says_why_and_what_can():
    with pytest.raises(UserError, match=r"lacks 2\.\d+e\+11 bytes on 8 x H100; its weights in fp8 would fit"):
        serve(LLAMA_405B, H100, CHAT)
    with pytest.raises(UserError, match=r"bytes on 8 x H100; a node of \d+ such devices would fit"):
        serve(replace(LLAMA_405B, n_layers=1000), H100, CHAT)
    with pytest.raises(UserError, match=r"time per output token of 0.1 ms: the best is \d\.\d+ ms on \d of them"):
        serve(LLAMA_8B, H100, replace(CHAT, max_tpot=1e-4))
    with pytest.raises(UserError, match=r"first token of 0.1 ms: the best is"):
        serve(LLAMA_8B, H100, replace(CHAT, max_ttft=1e-4))
    with pytest.raises(UserError, match="nobody knows the price"):
        serve(LLAMA_8B, replace(H100, dollars_per_hour=None), CHAT)
    with pytest.raises(UserError, match="did you mean 'fp8'"):
        format_named("fp9")
    with pytest.raises(UserError, match=r"acceptance is 1.0"):
        Speculation(acceptance=1.0, draft_cost=0.1)


def test_the_best_time_that_is_promised_can_be_had():
    with pytest.raises(UserError) as refusal:
        serve(LLAMA_8B, H100, replace(CHAT, max_tpot=1e-4))
    best = float(str(refusal.value).split("best is ")[1].split(" ms")[0]) / 1e3
    assert serve(LLAMA_8B, H100, replace(CHAT, max_tpot=1.01 * best)).batch >= 1


def test_groups_stay_within_a_node_with_links():
    assert degrees(H100) == [1, 2, 4, 8]
    assert degrees(replace(H100, node_devices=6)) == [1, 2, 4]
    assert degrees(replace(H100, link_bandwidth=None)) == [1]
    assert math.isfinite(serve(LLAMA_8B, replace(H100, link_bandwidth=None), CHAT).dollars)
