"""How the literature counts the training FLOP of a token: every convention side by side, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec import MLA, Attention, Decoder, UserError


@dataclass(frozen=True)
class Convention:
    """One way to count: training FLOP/token, and its percent over M, and over M with the head."""

    name: str
    flops_per_token: float
    percent_of_m: float
    percent_of_m_with_head: float
    counts: str
    source: str


def conventions(model: Decoder, seq_len: int) -> tuple[Convention, ...]:
    """Every convention for `model` at sequences of `seq_len` tokens, M first.

    N is the parameters that take part in a token (the experts it meets), a tied table once. Raises UserError when
    `seq_len` is below 1.
    """
    if seq_len < 1:
        raise UserError(f"seq_len is {seq_len}; a sequence has at least 1 token")
    m, head = model.flops_per_token(seq_len), model.head_flops_per_token
    bare = model.params_active - model.params_embedding
    rows = (
        ("M", m, "blocks, whole attention", "arXiv 2401.02954, eq. 2"),
        ("M + head", m + head, "M, and the output head", "arXiv 2401.02954, eq. 2, and 6 d V"),
        ("6N", 6 * model.params_active, "all parameters, no attention", "arXiv 2001.08361"),
        (
            "6N, blocks + head",
            6 * bare + model.head_flops_per_token,
            "without embedding",
            "arXiv 2406.19146",
        ),
        ("6N, blocks", 6 * bare, "neither embedding nor head", "arXiv 2001.08361"),
        ("Chinchilla", chinchilla_flops(model, seq_len), "M, head, embedding, softmax", "arXiv 2203.15556, app. F"),
        (
            "M, causal",
            model.flops_per_token(seq_len, causal=True),
            "attention to earlier tokens",
            "arXiv 2307.08691, sec. 4.1",
        ),
    )
    return tuple(
        Convention(name, float(flops), 100 * (flops / m - 1), 100 * (flops / (m + head) - 1), counts, source)
        for name, flops, counts, source in rows
    )


def chinchilla_flops(model: Decoder, seq_len: int) -> float:
    """Training FLOP/token by the table of arXiv 2203.15556, appendix F, the backward pass twice the forward.

    Beside matrices, attention and head it counts the embedding as a multiplication (2 d V) and 3 FLOP a score for
    softmax. The ratios to 6ND printed in its table A4 hold no embedding and no head: with them the 73 M model's would
    be 1.58, not 1.03.
    """
    tables = 2 * model.head_flops_per_token
    return model.flops_per_token(seq_len) + tables + 3 * softmax_flops(model, seq_len)


def softmax_flops(model: Decoder, seq_len: int) -> float:
    """Forward FLOP/token of softmax over all layers, at 3 a score (arXiv 2203.15556, appendix F)."""
    total = 0.0
    for block, times in model.trained_kinds.items():
        met = max(1.0, block.share * seq_len)
        if isinstance(block.mixer, Attention):
            total += times * block.share * 3 * block.mixer.n_heads * block.mixer.keys(met)
        elif isinstance(block.mixer, MLA):
            total += times * block.share * 3 * block.mixer.n_heads * met
    return total
