"""How does the memory of exact attention grow with the length of the sequence?

    python ideas/attention_memory.py [--longest 8192] [--json]

One attention, forward and backward, one sequence of n tokens: the plain n x n form beside what a decoder calls, with
each option that the fused kernel has no mask for. Prints the most bytes that tensors hold at once (inputs and gradients
included, exact: every allocation is added up) and the exponent of n that fits them from 1,024 tokens on. What came of
it: attention_memory.md.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nachim.model import build
from nachim.model.attend import Rule, attend, plain_attention
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import ALiBi
from nachim.train.peak import peak_bytes

HEADS, KV_HEADS, WIDTH = 4, 2, 64
SHORTEST, FITTED = 256, 1024
DOCUMENT = 300
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def called(rule: Rule = Rule(), sinks: bool = False, packed: bool = False, biased: bool = False) -> Form:
    """What `AttentionModule` calls, for one sequence, or one of packed documents."""
    position = build(ALiBi(), HEADS * WIDTH) if biased else PositionModule()

    def form(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        tokens = q_BHTE.shape[2]
        documents = torch.arange(tokens)[None] // DOCUMENT if packed else None
        frame = Frame((1, tokens), q_BHTE.device, 0, documents)
        sinks_H = torch.zeros(HEADS, requires_grad=True) if sinks else None
        return attend(q_BHTE, k_BKTE, v_BKTE, frame, position, rule, sinks_H)

    return form


FORMS: dict[str, Form] = {
    "plain n x n": lambda q, k, v: plain_attention(q, k, v),
    "causal": called(),
    "window 128": called(Rule(window=128)),
    "window 1,024": called(Rule(window=1024)),
    "packed documents": called(packed=True),
    "ALiBi": called(biased=True),
    "soft-cap": called(Rule(softcap=50.0)),
    "sinks": called(sinks=True),
    "soft-cap, sinks, window 128": called(Rule(window=128, softcap=50.0), sinks=True),
}


def peak(form: Form, tokens: int) -> int:
    """Peak bytes of `form` on one sequence, forward and backward."""

    def work() -> None:
        q, k, v = (torch.randn(1, heads, tokens, WIDTH, requires_grad=True) for heads in (HEADS, KV_HEADS, KV_HEADS))
        form(q, k, v).sum().backward()

    return peak_bytes(work)


def exponent(lengths: list[int], bytes_: list[int]) -> float:
    """Slope of log bytes over log tokens, by least squares from `FITTED` tokens on."""
    pairs = [(tokens, found) for tokens, found in zip(lengths, bytes_, strict=True) if tokens >= FITTED]
    return float(np.polyfit(*np.log(np.array(pairs, float)).T, 1)[0])


def main(longest: int = 8192, json: bool = False) -> None:
    """Measure every form at every power of two up to `longest` and print the table."""
    lengths = [SHORTEST << step for step in range((longest // SHORTEST).bit_length())]
    rows = {}
    for name, form in FORMS.items():
        found = [peak(form, tokens) for tokens in lengths]
        rows[name] = {"bytes": dict(zip(lengths, found, strict=True)), "exponent": exponent(lengths, found)}
    if json:
        print(jsonlib.dumps({"heads": HEADS, "kv_heads": KV_HEADS, "d_head": WIDTH, "forms": rows}))
        return
    table = Table(title=f"peak MiB, {HEADS} heads on {KV_HEADS} of keys, {WIDTH} wide, fp32, forward and backward")
    for place, head in enumerate(("form", *(f"{tokens:,}" for tokens in lengths), "exponent", "KiB/token")):
        table.add_column(head, justify="right" if place else "left")
    for name, row in rows.items():
        sizes = [f"{found / 2**20:,.1f}" for found in row["bytes"].values()]
        table.add_row(name, *sizes, f"{row['exponent']:.2f}", f"{row['bytes'][lengths[-1]] / lengths[-1] / 1024:.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    tyro.cli(main)
