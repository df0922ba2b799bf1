"""Conventions of counting, against the tables that their authors printed."""

from __future__ import annotations

import dataclasses

import pytest

from nachim.budget.convention import Convention, chinchilla_flops, conventions, softmax_flops
from nachim.spec import MLP, Attention, Decoder, LinearAttention, MixtureOfDepths, UserError
from nachim.spec.known import known

# arXiv 2401.02954, table 3 (vocabulary 102,400, sequences of 4,096): layers, width, N1, N2, M, 6 N1/M, 6 N2/M.
DEEPSEEK_TABLE_3 = [
    (8, 512, 25.2e6, 77.6e6, 352e6, 0.43, 1.32),
    (12, 768, 84.9e6, 164e6, 963e6, 0.53, 1.02),
    (24, 1024, 302e6, 407e6, 3.02e9, 0.60, 0.81),
    (24, 2048, 1.21e9, 1.42e9, 9.66e9, 0.75, 0.88),
    (32, 4096, 6.44e9, 6.86e9, 45.1e9, 0.86, 0.91),  # printed 0.85; its own N1 and M give 0.857
    (40, 5120, 12.6e9, 13.1e9, 85.6e9, 0.88, 0.92),
    (80, 8192, 64.4e9, 65.3e9, 419e9, 0.92, 0.94),
]
# arXiv 2203.15556, tables A9 and A4: parameters, layers, width, heads, width of a head, FLOP ratio (ours/6ND).
CHINCHILLA_TABLE_A4 = [
    (74e6, 10, 640, 10, 64, 1.03),
    (306e6, 20, 1024, 16, 64, 1.10),
    (552e6, 24, 1280, 10, 128, 1.08),
    (1143e6, 26, 1792, 14, 128, 1.04),
    (1593e6, 28, 2048, 16, 128, 1.03),
    (6796e6, 40, 3584, 28, 128, 0.99),
]


def block(layers: int, width: int, heads: int, d_head: int, vocab_size: int) -> Decoder:
    """The block both tables are about: multi-head attention and a feed-forward of four times the width; 12 d^2."""
    attention = Attention(n_heads=heads, n_kv_heads=heads, d_head=d_head)
    ffn = MLP(d_ff=4 * width)
    return Decoder(vocab_size=vocab_size, d_model=width, n_layers=layers, attention=attention, ffn=ffn, tied=True)


def named(model: Decoder, seq_len: int) -> dict[str, Convention]:
    """The conventions by name."""
    return {row.name: row for row in conventions(model, seq_len)}


def digits(value: float, like: float) -> float:
    """`value` in the three digits of the table's sizes."""
    return float(f"{value:.2e}") if like >= 100 else round(value, 2)


@pytest.mark.parametrize("row", DEEPSEEK_TABLE_3, ids=lambda row: f"{row[0]}x{row[1]}")
def test_deepseeks_table_of_conventions(row):
    layers, width, n1, n2, m, ratio_1, ratio_2 = row
    model = block(layers, width, width // 64, 64, 102_400)
    found = named(model, 4096)
    gains = 6 * model.norm.params(width) * (2 * layers + 1)  # the table's N are matrices alone
    bare = found["6N, blocks"].flops_per_token - gains
    whole = found["6N"].flops_per_token - gains
    assert digits(bare / 6, n1) == n1
    assert digits(whole / 6, n2) == n2
    assert found["M"].flops_per_token == 72 * layers * width**2 + 12 * layers * width * 4096
    assert digits(found["M"].flops_per_token, m) == m
    assert digits(bare / found["M"].flops_per_token, ratio_1) == ratio_1
    assert digits(whole / found["M"].flops_per_token, ratio_2) == ratio_2


@pytest.mark.parametrize("row", CHINCHILLA_TABLE_A4, ids=lambda row: f"{row[0]:.0e}")
def test_chinchillas_table_of_ratios(row):
    """Sequences of 2,048, vocabulary 32,000. Its parameters hold one d^2 a layer more, for relative positions, which
    its FLOP leave out; its ratios hold neither embedding nor head, though its formula does."""
    size, layers, width, heads, d_head, ratio = row
    model = block(layers, width, heads, d_head, 32_000)
    params = 12 * layers * width**2 + layers * width**2 + 32_000 * width
    assert params == pytest.approx(size, rel=5e-3)
    tables = 12 * model.vocab_size * width
    assert round((chinchilla_flops(model, 2048) - tables) / (6 * params), 2) == ratio


def test_chinchilla_counts_what_its_appendix_lists():
    """Appendix F line by line, for a sequence: embedding, queries to values, scores, softmax, sum, output, dense."""
    s, v, d, f, h, k, layers = 2048, 32_000, 640, 2560, 10, 64, 10
    attention = (
        2 * 3 * s * d * (k * h) + 2 * s * s * (k * h) + 3 * h * s * s + 2 * s * s * (k * h) + 2 * s * (k * h) * d
    )
    forward = 2 * s * v * d + layers * (attention + 2 * s * (d * f + d * f)) + 2 * s * d * v
    assert chinchilla_flops(block(layers, d, h, k, v), s) * s == 3 * forward


def test_conventions_of_a_published_model():
    """Llama-3-8B at 8,192 tokens, term by term."""
    model, d, v, layers = known("llama-3-8b").decoder, 4096, 128_256, 32
    matrices = layers * (d * (4096 + 2 * 1024 + 4096) + 3 * d * 14_336)
    pairs = layers * 12 * d * 8192
    gains = (2 * layers + 1) * d
    expected = {
        "M": 6 * matrices + pairs,
        "M + head": 6 * (matrices + d * v) + pairs,
        "6N": 6 * (matrices + gains + 2 * d * v),
        "6N, blocks + head": 6 * (matrices + gains + d * v),
        "6N, blocks": 6 * (matrices + gains),
        "Chinchilla": 6 * (matrices + 2 * d * v) + pairs + 9 * layers * 32 * 8192,
        "M, causal": 6 * matrices + pairs * (8192 + 1) / (2 * 8192),
    }
    found = named(model, 8192)
    assert list(found) == list(expected)
    for name, flops in expected.items():
        assert found[name].flops_per_token == pytest.approx(flops, rel=1e-12)
        assert found[name].percent_of_m == pytest.approx(100 * (flops / expected["M"] - 1))
        assert found[name].percent_of_m_with_head == pytest.approx(100 * (flops / expected["M + head"] - 1))
        assert "arXiv" in found[name].source and found[name].counts


def test_a_tied_table_is_the_head_and_is_counted_once():
    found = named(known("qwen2.5-0.5b").decoder, 4096)
    assert found["6N"].flops_per_token == found["6N, blocks + head"].flops_per_token
    gpt = known("gpt-2").decoder
    positions = 6 * 1024 * 768
    found = named(gpt, 1024)
    assert found["6N"].flops_per_token == found["6N, blocks + head"].flops_per_token + positions


def test_only_experts_that_a_token_meets_count():
    model = known("mixtral-8x7b").decoder
    assert named(model, 4096)["6N"].flops_per_token == 6 * model.params_active < 2 * model.params_total


def test_softmax_is_counted_where_there_is_one():
    assert softmax_flops(known("mamba2-130m").decoder, 4096) == 0
    assert softmax_flops(known("jamba-v0.1").decoder, 4096) == 4 * 3 * 32 * 4096
    assert softmax_flops(known("gemma-2-2b").decoder, 8192) == 13 * 3 * 8 * (4096 + 8192)
    assert softmax_flops(known("deepseek-v2").decoder, 100) == 60 * 3 * 128 * 100
    plain = block(2, 64, 4, 16, 300)
    deep = dataclasses.replace(plain, depth=MixtureOfDepths(capacity=0.25, every=2))
    assert softmax_flops(deep, 64) == 3 * 4 * (64 + 0.25 * 16)
    linear = dataclasses.replace(plain, attention=LinearAttention(n_heads=4, d_key=16, d_value=16))
    assert softmax_flops(linear, 64) == 0


def test_a_sequence_without_tokens_is_refused():
    with pytest.raises(UserError, match="seq_len is 0"):
        conventions(block(1, 64, 4, 16, 300), 0)
