"""Published models by name: their shapes, from their public configurations, and the figures their authors give."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from nachim.spec.attention import MLA, Attention
from nachim.spec.error import UserError, nearest
from nachim.spec.ffn import FFN, MLP, GeGLU, MoE, SwiGLU
from nachim.spec.mixer import Mamba, Mamba2
from nachim.spec.model import Decoder
from nachim.spec.norm import LayerNorm, RMSNorm
from nachim.spec.pattern import Pattern
from nachim.spec.position import Learned, NoPosition, RoPE
from nachim.spec.residual import SandwichNorm

LLAMA_2 = "arXiv 2307.09288, table 1; meta-llama/Llama-2-*-hf config.json, and the Hub's count of its weights"
LLAMA_3 = "arXiv 2407.21783, table 3; meta-llama/Meta-Llama-3* config.json, and the Hub's count of its weights"
LLAMA_3_2 = "model card of meta-llama/Llama-3.2-*, and its config.json"
DEEPSEEK_LLM = "arXiv 2401.02954, table 2; deepseek-ai/deepseek-llm-*-base config.json"
DEEPSEEK_V2 = "arXiv 2405.04434, sec. 3.1.2; deepseek-ai/DeepSeek-V2 config.json"
DEEPSEEK_V2_LITE = "arXiv 2405.04434, appendix B.1; deepseek-ai/DeepSeek-V2-Lite config.json"
DEEPSEEK_V3 = "README_WEIGHTS.md of deepseek-ai/DeepSeek-V3, without its MTP module; config.json"
MISTRAL = "arXiv 2310.06825, table 1; model card of mistralai/Mistral-7B-v0.1, and its config.json"
MIXTRAL = "arXiv 2401.04088, table 1; mistral.ai/news/mixtral-of-experts; mistralai/Mixtral-8x7B-v0.1 config.json"
GEMMA_2 = "arXiv 2408.00118, tables 1 and 2, with the 256,000 rows of google/gemma-2-* config.json"
QWEN_2_5 = "model cards of Qwen/Qwen2.5-*, and their config.json"
JAMBA = "arXiv 2403.19887, sec. 3.1; ai21labs/Jamba-v0.1 config.json"
JAMBA_1_5 = "arXiv 2408.12570, sec. 2; ai21labs/AI21-Jamba-1.5-* config.json"
MAMBA_2 = "arXiv 2405.21060; state-spaces/mamba2-* config.json, with its vocabulary filled up to a multiple of 16"
GPT_2 = "model card of openai-community/gpt2, and its config.json"
GPT_3 = "arXiv 2005.14165, tables 2.1 and D.1, with GPT-2's vocabulary"


@dataclass(frozen=True)
class Known:
    """A published model: its shape, the context it was made for (tokens), and what its authors say of its size.

    `total` and `active` are parameters as published, None where only a name rounds them.
    `active_counts` says what the published active count holds: "all" parameters that take part in a token, or all
    "without embedding", the table of which a token meets one row.
    """

    decoder: Decoder
    context: int
    source: str
    total: float | None = None
    active: float | None = None
    active_counts: Literal["all", "without embedding"] = "all"


def known(name: str) -> Known:
    """The published model called `name`, in any case. Raises UserError with the nearest name for an unknown one."""
    found = catalogue()
    if name.lower() not in found:
        raise UserError(f"there is no known model {name!r}{nearest(name.lower(), found)}")
    return found[name.lower()]


@functools.cache
def catalogue() -> dict[str, Known]:
    """Every known model by its name, in families."""
    return _llama() | _deepseek() | _mistral() | _gemma() | _qwen() | _jamba() | _mamba() | _gpt()


def _dense(
    width: tuple[int, int],
    depth: int,
    heads: tuple[int, int],
    vocab_size: int,
    *,
    d_head: int = 128,
    theta: float = 10_000.0,
    eps: float = 1e-5,
    tied: bool = False,
    window: int | None = None,
    bias: Literal["none", "qkv"] = "none",
    ffn: FFN | None = None,
) -> Decoder:
    """The Llama block: `width` is (d_model, d_ff), `heads` (n_heads, n_kv_heads)."""
    return Decoder(
        vocab_size=vocab_size,
        d_model=width[0],
        n_layers=depth,
        attention=Attention(n_heads=heads[0], n_kv_heads=heads[1], d_head=d_head, window=window, bias=bias),
        ffn=ffn or SwiGLU(d_ff=width[1]),
        norm=RMSNorm(eps=eps),
        position=RoPE(theta=theta),
        tied=tied,
    )


def _llama() -> dict[str, Known]:
    three = {"theta": 5e5}
    small = {**three, "tied": True}
    return {
        "llama-2-7b": Known(_dense((4096, 11_008), 32, (32, 32), 32_000), 4096, LLAMA_2, 6.74e9),
        "llama-2-13b": Known(_dense((5120, 13_824), 40, (40, 40), 32_000), 4096, LLAMA_2, 13.0e9),
        "llama-2-70b": Known(_dense((8192, 28_672), 80, (64, 8), 32_000), 4096, LLAMA_2, 69e9),
        "llama-3-8b": Known(_dense((4096, 14_336), 32, (32, 8), 128_256, **three), 8192, LLAMA_3, 8.03e9),
        "llama-3-70b": Known(_dense((8192, 28_672), 80, (64, 8), 128_256, **three), 8192, LLAMA_3, 70.6e9),
        "llama-3-405b": Known(_dense((16_384, 53_248), 126, (128, 8), 128_256, **three), 131_072, LLAMA_3, 405e9),
        "llama-3.2-1b": Known(
            _dense((2048, 8192), 16, (32, 8), 128_256, d_head=64, **small), 131_072, LLAMA_3_2, 1.23e9
        ),
        "llama-3.2-3b": Known(_dense((3072, 8192), 28, (24, 8), 128_256, **small), 131_072, LLAMA_3_2, 3.21e9),
    }


def _deepseek() -> dict[str, Known]:
    heads = {"n_heads": 128, "q_rank": 1536}
    return {
        "deepseek-llm-7b": Known(_dense((4096, 11_008), 30, (32, 32), 102_400, eps=1e-6), 4096, DEEPSEEK_LLM),
        "deepseek-llm-67b": Known(_dense((8192, 22_016), 95, (64, 8), 102_400, eps=1e-6), 4096, DEEPSEEK_LLM, 67e9),
        "deepseek-v2-lite": Known(
            _latent(102_400, 2048, 27, {"n_heads": 16}, 10_944, 1, MoE(d_ff=1408, experts=64, active=6, shared=2)),
            32_768,
            DEEPSEEK_V2_LITE,
            15.7e9,
            2.4e9,
            "without embedding",
        ),
        "deepseek-v2": Known(
            _latent(102_400, 5120, 60, heads, 12_288, 1, MoE(d_ff=1536, experts=160, active=6, shared=2)),
            131_072,
            DEEPSEEK_V2,
            236e9,
            21e9,
            "without embedding",
        ),
        "deepseek-v3": Known(
            _latent(129_280, 7168, 61, heads, 18_432, 3, MoE(d_ff=2048, experts=256, active=8, shared=1)),
            131_072,
            DEEPSEEK_V3,
            671e9,
            36.7e9,
            "without embedding",
        ),
    }


def _latent(
    vocab_size: int, d_model: int, n_layers: int, heads: dict[str, int], d_ff: int, dense: int, moe: MoE
) -> Decoder:
    """The block of DeepSeek-V2 and V3: latent attention, and experts after the first `dense` layers of width `d_ff`."""
    return Decoder(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        attention=MLA(d_head=128, rank=512, rope_dim=64, **heads),
        ffn=Pattern(first=(SwiGLU(d_ff=d_ff),) * dense, parts=(moe,)),
        norm=RMSNorm(eps=1e-6),
    )


def _mistral() -> dict[str, Known]:
    experts = MoE(d_ff=14_336, experts=8, active=2)
    return {
        "mistral-7b": Known(_dense((4096, 14_336), 32, (32, 8), 32_000, window=4096), 8192, MISTRAL, 7.24e9),
        "mixtral-8x7b": Known(
            _dense((4096, 14_336), 32, (32, 8), 32_000, theta=1e6, ffn=experts), 32_768, MIXTRAL, 46.7e9, 12.9e9
        ),
    }


def _gemma() -> dict[str, Known]:
    def gemma(width: tuple[int, int], depth: int, heads: tuple[int, int], d_head: int) -> Decoder:
        whole = Attention(n_heads=heads[0], n_kv_heads=heads[1], d_head=d_head)
        local = Attention(n_heads=heads[0], n_kv_heads=heads[1], d_head=d_head, window=4096)
        return Decoder(
            vocab_size=256_000,
            d_model=width[0],
            n_layers=depth,
            attention=Pattern(parts=(local, whole)),
            ffn=GeGLU(d_ff=width[1]),
            tied=True,
            residual=SandwichNorm(),
        )

    sizes = {
        "2b": 590_118_912 + 2_024_517_888,
        "9b": 917_962_752 + 8_324_201_984,
        "27b": 1_180_237_824 + 26_047_480_320,
    }
    shapes = {
        "2b": gemma((2304, 9216), 26, (8, 4), 256),
        "9b": gemma((3584, 14_336), 42, (16, 8), 256),
        "27b": gemma((4608, 36_864), 46, (32, 16), 128),
    }
    return {f"gemma-2-{size}": Known(shapes[size], 8192, GEMMA_2, total) for size, total in sizes.items()}


def _qwen() -> dict[str, Known]:
    kind = {"theta": 1e6, "eps": 1e-6, "bias": "qkv"}
    small = {**kind, "tied": True}
    shapes = {
        "0.5b": (_dense((896, 4864), 24, (14, 2), 151_936, d_head=64, **small), 32_768, 0.494e9),
        "1.5b": (_dense((1536, 8960), 28, (12, 2), 151_936, **small), 32_768, 1.54e9),
        "3b": (_dense((2048, 11_008), 36, (16, 2), 151_936, **small), 32_768, 3.09e9),
        "7b": (_dense((3584, 18_944), 28, (28, 4), 152_064, **kind), 131_072, 7.61e9),
        "14b": (_dense((5120, 13_824), 48, (40, 8), 152_064, **kind), 131_072, 14.7e9),
        "32b": (_dense((5120, 27_648), 64, (40, 8), 152_064, **kind), 131_072, 32.5e9),
        "72b": (_dense((8192, 29_568), 80, (64, 8), 152_064, **kind), 131_072, 72.7e9),
    }
    return {
        f"qwen2.5-{size}": Known(shape, context, QWEN_2_5, total) for size, (shape, context, total) in shapes.items()
    }


def _jamba() -> dict[str, Known]:
    def jamba(d_model: int, d_ff: int, depth: int, n_heads: int) -> Decoder:
        state = Mamba(d_inner=2 * d_model, dt_rank=d_model // 16, inner_norm=True)
        attention = Attention(n_heads=n_heads, n_kv_heads=8, d_head=128)
        return Decoder(
            vocab_size=65_536,
            d_model=d_model,
            n_layers=depth,
            attention=Pattern(parts=(state,) * 4 + (attention,) + (state,) * 3),
            ffn=Pattern(parts=(SwiGLU(d_ff=d_ff), MoE(d_ff=d_ff, experts=16, active=2))),
            position=NoPosition(),
        )

    return {
        "jamba-v0.1": Known(jamba(4096, 14_336, 32, 32), 262_144, JAMBA, 52e9, 12e9),
        "jamba-1.5-large": Known(jamba(8192, 24_576, 72, 64), 262_144, JAMBA_1_5, 398e9, 94e9),
    }


def _mamba() -> dict[str, Known]:
    def mamba(d_model: int, depth: int) -> Decoder:
        return Decoder(
            vocab_size=50_288,
            d_model=d_model,
            n_layers=depth,
            attention=Mamba2(n_heads=2 * d_model // 64, chunk=256),
            ffn=None,
            norm=RMSNorm(eps=1e-5),
            position=NoPosition(),
            tied=True,
        )

    shapes = {"130m": (768, 24), "370m": (1024, 48), "780m": (1536, 48), "1.3b": (2048, 48), "2.7b": (2560, 64)}
    return {f"mamba2-{size}": Known(mamba(*shape), 2048, MAMBA_2) for size, shape in shapes.items()}


def _gpt() -> dict[str, Known]:
    def gpt(d_model: int, depth: int, n_heads: int, context: int) -> Decoder:
        return Decoder(
            vocab_size=50_257,
            d_model=d_model,
            n_layers=depth,
            attention=Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_model // n_heads, bias="all"),
            ffn=MLP(d_ff=4 * d_model, bias=True),
            norm=LayerNorm(eps=1e-5),
            position=Learned(length=context),
            tied=True,
        )

    return {
        "gpt-2": Known(gpt(768, 12, 12, 1024), 1024, GPT_2, 124e6),
        "gpt-3": Known(gpt(12_288, 96, 96, 2048), 2048, GPT_3, 174.6e9),
    }
