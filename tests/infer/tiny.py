"""Engines over small decoders with drawn weights."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch

from nachim.infer.engine import Engine
from nachim.infer.folder import Loaded
from nachim.infer.request import Completion
from nachim.spec import MTP, Attention, Decoder, SwiGLU
from tests.model.contract import drawn

CONTEXT = 64
PLAIN = Decoder(
    vocab_size=61,
    d_model=24,
    n_layers=2,
    attention=Attention(n_heads=3, n_kv_heads=1, d_head=8),
    ffn=SwiGLU(d_ff=37),
    mtp=MTP(depth=1),
)


@functools.lru_cache(maxsize=4)
def loaded(spec: Decoder = PLAIN, ends: frozenset[int] = frozenset()) -> Loaded:
    """A model without a tokenizer, the same whenever it is drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Loaded(drawn(spec), None, ends, CONTEXT)


def engine(spec: Decoder = PLAIN, **options: Any) -> Engine:
    """An engine whose blocks are one page."""
    return Engine(loaded(spec), **{"block": 16, "cache_tokens": 1024} | options)


def prompts(spec: Decoder, *lengths: int, seed: int = 0) -> list[list[int]]:
    """Prompts of these lengths."""
    draw = random.Random(seed)
    return [[draw.randrange(spec.vocab_size) for _ in range(length)] for length in lengths]


def said(completions: list[Completion]) -> list[tuple[Any, ...]]:
    """What must be equal bit for bit."""
    return [
        (one.tokens, one.logprobs, one.finish_reason)
        for completion in completions
        for one in completion.samples or (completion,)
    ]


def alone(spec: Decoder, asked: list[list[int]], **sampling: Any) -> list[tuple[Any, ...]]:
    """What each prompt is answered by an engine that serves nothing else."""
    return [one for prompt in asked for one in said(engine(spec, prefixes=False).generate([prompt], **sampling))]
