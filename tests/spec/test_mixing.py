"""What mixers and feed-forwards declare, against the operations of plain implementations of their papers' equations."""

from __future__ import annotations

import dataclasses

import pytest

from nachim.spec import (
    MLA,
    MLP,
    Attention,
    Decoder,
    GeGLU,
    LayerNorm,
    Learned,
    LinearAttention,
    Mamba,
    Mamba2,
    MixtureOfDepths,
    MoE,
    Pattern,
    SandwichNorm,
    SwiGLU,
)
from tests.spec.examples import decoder

torch = pytest.importorskip("torch", reason="needs torch, whose counter of operations is the reference")
counter = pytest.importorskip("torch.utils.flop_counter")
F = torch.nn.functional


def counted(work: object) -> tuple[int, object]:
    """FLOP of the matrix multiplications and convolutions of `work()`, and what it returns."""
    with counter.FlopCounterMode(display=False) as found:
        result = work()
    return found.get_total_flops(), result


@pytest.mark.parametrize("window", [None, 1, 2, 5, 7, 8, 100])
@pytest.mark.parametrize("seq_len", [1, 2, 7, 30])
def test_a_token_meets_the_keys_of_its_window(window, seq_len):
    part = Attention(n_heads=2, n_kv_heads=1, d_head=4, window=window)
    seen = [[j for j in range(i + 1) if window is None or i - j < window] for i in range(seq_len)]
    assert part.keys(seq_len, causal=True) == pytest.approx(sum(map(len, seen)) / seq_len)
    assert part.keys(seq_len) == len(seen[-1])
    assert part.decode_flops(seq_len) == 2 * (2 * 2 * 4) * len(seen[-1])
    assert part.cache_values(seq_len) == 2 * 4 * len(seen[-1])


class Latent:
    """The equations of MLA without norm and rotation (arXiv 2405.04434, eq. 9-19), with random weights."""

    def __init__(self, part: MLA, d_model: int) -> None:
        heads, self.part = part.n_heads, part
        widths = {
            "down_q": (d_model, part.q_rank),
            "up_q": (part.q_rank, heads, part.d_head + part.rope_dim),
            "down_kv": (d_model, part.rank + part.rope_dim),
            "up_k": (part.rank, heads, part.d_head),
            "up_v": (part.rank, heads, part.value_width),
            "out": (heads, part.value_width, d_model),
        }
        self.weights = {name: torch.randn(*sizes, dtype=torch.float64) for name, sizes in widths.items()}

    def queries(self, x_TD: object) -> tuple[object, object]:
        """Queries without and with position: [T, H, d_head] and [T, H, rope_dim]."""
        q = torch.einsum("tr,rhe->the", x_TD @ self.weights["down_q"], self.weights["up_q"])
        return q.split([self.part.d_head, self.part.rope_dim], -1)

    def rebuilt(self, x_TD: object) -> object:
        """Keys and values are rebuilt from the latent; [T, T] scores without a mask."""
        q, q_rope = self.queries(x_TD)
        latent, k_rope = (x_TD @ self.weights["down_kv"]).split([self.part.rank, self.part.rope_dim], -1)
        k, v = (torch.einsum("sr,rhe->she", latent, self.weights[name]) for name in ("up_k", "up_v"))
        scores = torch.einsum("the,she->hts", q, k) + torch.einsum("the,se->hts", q_rope, k_rope)
        return torch.einsum("the,hed->td", torch.einsum("hts,she->the", scores.softmax(-1), v), self.weights["out"])

    def absorbed(self, x_D: object, cache_SC: object) -> object:
        """One new token against cached latents [S, rank + rope_dim], its own the last: nothing is rebuilt."""
        q, q_rope = self.queries(x_D[None])
        own = x_D[None] @ self.weights["down_kv"]
        cache_SC = torch.cat([cache_SC, own])
        latent, k_rope = cache_SC.split([self.part.rank, self.part.rope_dim], -1)
        q_latent = torch.einsum("the,rhe->thr", q, self.weights["up_k"])
        scores = torch.einsum("thr,sr->hts", q_latent, latent) + torch.einsum("the,se->hts", q_rope, k_rope)
        mixed = torch.einsum("hts,sr->thr", scores.softmax(-1), latent)
        return torch.einsum(
            "the,hed->td", torch.einsum("thr,rhe->the", mixed, self.weights["up_v"]), self.weights["out"]
        )


def test_latent_attention_costs_its_equations_rebuilt_and_absorbed():
    part, d_model, seq_len = MLA(n_heads=3, d_head=8, rank=12, rope_dim=4, q_rank=10, d_value=6), 16, 7
    layer, x_TD = Latent(part, d_model), torch.randn(seq_len, d_model, dtype=torch.float64)
    flops, rebuilt = counted(lambda: layer.rebuilt(x_TD))
    assert flops == seq_len * (2 * part.matmul_params(d_model) + part.mixing_flops(seq_len))
    cache_SC = x_TD[:-1] @ layer.weights["down_kv"]
    flops, absorbed = counted(lambda: layer.absorbed(x_TD[-1], cache_SC))
    assert flops == 2 * part.matmul_params(d_model) + part.decode_flops(seq_len)
    torch.testing.assert_close(absorbed[0], rebuilt[-1])
    assert cache_SC.numel() == part.cache_values(seq_len - 1)


def recurrence(q_THN: object, k_THN: object, v_THP: object, decay_TH: object) -> object:
    """y_t = q_t S_t with S_t = decay_t S_(t-1) + k_t v_t^T, a token at a time (arXiv 2405.21060, eq. 16)."""
    state_HNP, found = torch.zeros(k_THN.shape[1], k_THN.shape[2], v_THP.shape[2], dtype=v_THP.dtype), []
    for q_HN, k_HN, v_HP, decay_H in zip(q_THN, k_THN, v_THP, decay_TH, strict=True):
        state_HNP = decay_H[:, None, None] * state_HNP + k_HN[:, :, None] @ v_HP[:, None, :]
        found.append((q_HN[:, None, :] @ state_HNP)[:, 0])
    return torch.stack(found)


def chunked(q_TGN: object, k_TGN: object, v_THP: object, decay_TH: object, chunk: int) -> object:
    """The same in chunks: attention inside one, the state between them; queries and keys are shared in G groups."""
    repeat = v_THP.shape[1] // q_TGN.shape[1]
    state_HNP, found = torch.zeros(v_THP.shape[1], k_TGN.shape[2], v_THP.shape[2], dtype=v_THP.dtype), []
    for start in range(0, len(v_THP), chunk):
        q, k, v, decay = (part[start : start + chunk] for part in (q_TGN, k_TGN, v_THP, decay_TH))
        passed = decay.log().cumsum(0)
        factor = (passed[:, None] - passed[None]).exp().permute(2, 0, 1).tril()
        scores = torch.einsum("tgn,sgn->gts", q, k).repeat_interleave(repeat, 0) * factor
        q, k = q.repeat_interleave(repeat, 1), k.repeat_interleave(repeat, 1)
        inside = torch.einsum("hts,shp->thp", scores, v)
        before = torch.einsum("thn,hnp->thp", q * passed.exp()[..., None], state_HNP)
        written = torch.einsum("shn,shp->hnp", k * (passed[-1] - passed).exp()[..., None], v)
        state_HNP = passed[-1].exp()[:, None, None] * state_HNP + written
        found.append(inside + before)
    return torch.cat(found)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_state_space_duality_costs_its_chunks_and_its_recurrence(groups):
    part = Mamba2(n_heads=4, d_head=6, d_state=5, n_groups=groups, d_conv=3, chunk=4)
    seq_len, channels = 12, part.d_inner + part.shared
    x_CT, filters = (
        torch.randn(channels, seq_len, dtype=torch.float64),
        torch.randn(channels, 1, 3, dtype=torch.float64),
    )
    decay_TH = torch.rand(seq_len, 4, dtype=torch.float64)

    def split(x_CT: object) -> tuple[object, object, object]:
        convolved = F.conv1d(F.pad(x_CT, (2, 0)), filters, groups=channels).T
        v, k, q = convolved.split([part.d_inner, part.shared // 2, part.shared // 2], -1)
        return *(half.unflatten(-1, (groups, 5)) for half in (q, k)), v.unflatten(-1, (4, 6))

    flops, in_chunks = counted(lambda: chunked(*split(x_CT), decay_TH, 4))
    assert flops == seq_len * part.mixing_flops(seq_len)

    def stepwise() -> object:
        q, k, v = split(x_CT)
        return recurrence(q.repeat_interleave(4 // groups, 1), k.repeat_interleave(4 // groups, 1), v, decay_TH)

    flops, one_by_one = counted(stepwise)
    assert flops == seq_len * part.decode_flops(seq_len)
    torch.testing.assert_close(in_chunks, one_by_one)


def test_linear_attention_costs_its_chunks_and_its_recurrence():
    part = LinearAttention(n_heads=3, d_key=5, d_value=6, chunk=4)
    q, k = (torch.randn(12, 3, 5, dtype=torch.float64) for _ in "qk")
    v, decay = torch.randn(12, 3, 6, dtype=torch.float64), torch.rand(12, 3, dtype=torch.float64)
    flops, in_chunks = counted(lambda: chunked(q, k, v, decay, 4))
    assert flops == 12 * part.mixing_flops(12)
    flops, one_by_one = counted(lambda: recurrence(q, k, v, decay))
    assert flops == 12 * part.decode_flops(12)
    torch.testing.assert_close(in_chunks, one_by_one)


@pytest.mark.parametrize(
    "part", [Mamba2(n_heads=4, d_head=6, d_state=5, chunk=4), LinearAttention(n_heads=3, d_key=5, d_value=6, chunk=4)]
)
def test_a_causal_chunk_meets_half_of_itself(part):
    inside = part.mixing_flops(12) - part.decode_flops(12)
    assert part.mixing_flops(12, causal=True) - part.decode_flops(12) == pytest.approx(inside * (1 + 2 + 3 + 4) / 16)
    assert part.mixing_flops(2) < part.mixing_flops(4) == part.mixing_flops(4000)


def test_a_selective_scan_costs_its_steps():
    """Of a channel's state [N]: dt*A, decay*h, (dt*x)*B, their sum, h*C and its sum (arXiv 2312.00752, eq. 2)."""
    part = Mamba(d_inner=6, d_state=5, dt_rank=2, d_conv=3)
    steps = ["dt*A", "decay*h", "dtx*B", "+", "h*C", "sum"]
    assert part.mixing_flops(9) == part.mixing_flops(9, causal=True) == part.decode_flops(9)
    assert part.mixing_flops(9) == 6 * 5 * len(steps) + 2 * 3 * 6
    assert part.cache_values(9) == part.cache_values(90) == 6 * 5 + 6 * 2


FAMILIES = {
    "Qwen2": (
        {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2},
        {"attention": Attention(n_heads=4, n_kv_heads=2, d_head=4, bias="qkv"), "ffn": SwiGLU(d_ff=24)},
    ),
    "Gemma2": (
        {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 6}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None},
        {
            "attention": Attention(n_heads=4, n_kv_heads=2, d_head=6),
            "ffn": GeGLU(d_ff=24),
            "residual": SandwichNorm(),
            "tied": True,
        },
    ),
    "GPT2": (
        {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
        {"attention": Attention(n_heads=4, n_kv_heads=4, d_head=4, bias="all"), "ffn": MLP(d_ff=64, bias=True)}
        | {"norm": LayerNorm(), "position": Learned(length=32), "tied": True},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_and_writing_cost_what_transformers_computes(family):
    """A whole prompt, then one token on its cache: eager attention multiplies every pair, as M counts them."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, the reference, from the dev extra")
    fields, parts = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    spec = Decoder(vocab_size=50, d_model=16, n_layers=2, **parts)
    assert spec.params_total == sum(weight.numel() for weight in model.parameters())
    ids_BT = torch.arange(9)[None]
    with torch.no_grad():
        flops, read = counted(lambda: model(ids_BT, use_cache=True))
        assert flops == 9 * (2 * spec.matmul_params + spec.mixing_flops(9) + spec.head_flops_per_token / 3)
        flops, _ = counted(lambda: model(ids_BT[:, :1], past_key_values=read.past_key_values))
    assert flops == spec.decode_flops(10)


def test_a_mixture_of_experts_is_charged_for_the_experts_a_token_meets():
    part, d_model = MoE(d_ff=10, experts=8, active=2, shared=1, shared_gate=True), 16
    assert part.params(d_model) == 16 * 8 + 9 * (3 * 16 * 10) + 16
    assert part.matmul_params(d_model) == part.params_active(d_model) == 16 * 8 + 3 * (3 * 16 * 10) + 16
    dense = MoE(d_ff=10, experts=1, active=1)
    assert dense.params(d_model) - d_model == SwiGLU(d_ff=10).params(d_model)


def test_a_mixture_of_depths_works_on_a_share_of_the_tokens():
    """Half of the layers see a quarter of the tokens, which attend to each other alone (arXiv 2404.02258)."""
    plain = decoder(n_layers=4)
    deep = dataclasses.replace(plain, depth=MixtureOfDepths(capacity=0.25, every=2))
    matrices, layers, seq_len = plain.matmul_params / 4, 4, 32
    assert deep.matmul_params == 2 * matrices + 2 * (0.25 * matrices + plain.d_model)
    keys = 4 * 4 * 8
    assert plain.mixing_flops(seq_len) == layers * keys * 32
    assert deep.mixing_flops(seq_len) == 2 * keys * 32 + 2 * 0.25 * keys * 8
    assert deep.params_total == plain.params_total + 2 * plain.d_model
    assert deep.cache_bytes(seq_len) == plain.cache_bytes(seq_len) * (1 + 0.25) / 2
    assert dataclasses.replace(plain, depth=MixtureOfDepths(capacity=1, every=2)).flops_per_token(
        32
    ) == plain.flops_per_token(32)


def test_a_hybrid_costs_the_sum_of_its_layers():
    state, attention = Mamba(d_inner=64, dt_rank=2), Attention(n_heads=4, n_kv_heads=4, d_head=8)
    dense, experts = SwiGLU(d_ff=40), MoE(d_ff=40, experts=4, active=2)
    mixed = Decoder(
        vocab_size=300,
        d_model=32,
        n_layers=4,
        attention=Pattern(parts=(state, attention)),
        ffn=Pattern(first=(dense, dense), parts=(experts,)),
    )
    pairs = [(state, dense), (attention, dense), (state, experts), (attention, experts)]
    alone = [Decoder(vocab_size=300, d_model=32, n_layers=1, attention=a, ffn=f) for a, f in pairs]
    for count in ("params_non_embedding", "matmul_params"):
        norms = 3 * 32 if count == "params_non_embedding" else 0
        assert getattr(mixed, count) == sum(getattr(one, count) for one in alone) - norms
    assert mixed.flops_per_token(64) == sum(one.flops_per_token(64) for one in alone)
    assert mixed.cache_bytes(64) == sum(one.cache_bytes(64) for one in alone)
    assert mixed.prefill_flops(64) == sum(one.prefill_flops(64) for one in alone)
