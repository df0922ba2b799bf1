"""What every part costs to train, cached and timed: each beside the plain decoder, interleaved in one run.

    python bench/parts.py [--rounds 9] [--threads 1] [--only moe] [--json]
    python bench/parts.py --device cuda --d-model 2048 --n-layers 16 --seq-len 2048   # about 1B parameters

All shapes share width, depth, length, batch and vocabulary; each part replaces its like in the plain block (multi-head
attention, RoPE, SwiGLU, pre-norm RMSNorm). Each is timed against the plain decoder, steps of both in turn (fp32 on a
CPU, bf16 on a GPU; forward, backward, clipping, AdamW). Printed: parameters and M, both as declared (tests hold them
equal to the counted ones), bytes that decoding keeps of sequences of 1,024 and 8,192 tokens at 2 bytes a value, the
median tokens/s, and the FLOP/s by the declared count (body and head) over the plain decoder's: 1.0 is as fast for each.
"""

from __future__ import annotations

import json as jsonlib
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import tyro
from rich.console import Console
from rich.table import Table

from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import (
    BPE,
    FIRE,
    MLA,
    MLP,
    MTP,
    RGLRU,
    WSD,
    AdamW,
    ALiBi,
    Data,
    Decoder,
    GatedDeltaNet,
    GeGLU,
    InfiniAttention,
    LayerNorm,
    LinearAttention,
    Mamba,
    Mamba2,
    MixtureOfDepths,
    MoE,
    NoPosition,
    OutputNorm,
    Parallel,
    Pattern,
    Run,
    SandwichNorm,
    Train,
    plain,
)
from nachim.train.guard import Guard
from nachim.train.step import Stepper

VOCAB = 8192
CONTEXTS = (1024, 8192)


def shapes(d_model: int, n_layers: int) -> dict[str, Decoder]:
    """Every part in the place of its like in the plain decoder, which comes first."""
    base = plain(d_model=d_model, n_layers=n_layers, d_head=64, vocab_size=VOCAB)
    heads, ff = base.attention.n_heads, base.ffn.d_ff

    def attention(**changes: object) -> Decoder:
        return replace(base, attention=replace(base.attention, **changes))

    window = replace(base.attention, window=128)
    unit = RGLRU(d_rnn=d_model, n_blocks=4)
    state = Mamba2(n_heads=2 * d_model // 64, d_state=64)
    return {
        "plain": base,
        "multi-query": attention(n_kv_heads=1),
        "grouped-query": attention(n_kv_heads=max(1, heads // 4)),
        "qk-norm": attention(qk_norm=True),
        "previous key": attention(previous_key=True),
        "window 128": attention(window=128),
        "window 128, every other layer": replace(base, attention=Pattern(parts=(window, base.attention))),
        "soft-cap": attention(softcap=50.0),
        "sinks": attention(sinks=True),
        "MLA": replace(base, attention=MLA(n_heads=heads, d_head=64, rank=d_model // 2, rope_dim=32)),
        "ALiBi": replace(base, position=ALiBi()),
        "FIRE": replace(base, position=FIRE(n_heads=heads)),
        "NoPE": replace(base, position=NoPosition()),
        "LayerNorm": replace(base, norm=LayerNorm()),
        "sandwich norm": replace(base, residual=SandwichNorm()),
        "output norm": replace(base, residual=OutputNorm()),
        "parallel": replace(base, residual=Parallel()),
        "GeGLU": replace(base, ffn=GeGLU(d_ff=ff)),
        "squared ReLU": replace(base, ffn=MLP(d_ff=4 * d_model, activation="relu2")),
        "MoE 16, top-2": replace(base, ffn=MoE(d_ff=ff // 2, experts=16, active=2, bias_step=0.001)),
        "MoE 64, top-6, shared 2": replace(base, ffn=MoE(d_ff=ff // 8, experts=64, active=6, shared=2)),
        "mixture of depths": replace(base, depth=MixtureOfDepths(capacity=0.125, every=2)),
        "Mamba": replace(base, attention=Mamba(d_inner=2 * d_model, dt_rank=d_model // 16), ffn=None),
        "Mamba-2": replace(base, attention=state, ffn=None),
        "Mamba-2 3:1": replace(base, attention=Pattern(parts=(state, state, state, base.attention))),
        "gated delta rule": replace(
            base, attention=GatedDeltaNet(n_heads=heads, n_key_heads=heads, d_key=32, d_value=64)
        ),
        "Griffin, every other layer local": replace(base, attention=Pattern(parts=(unit, window))),
        "Infini-attention, segment 128": replace(
            base, attention=InfiniAttention(n_heads=heads, n_kv_heads=heads, d_head=64, segment=128)
        ),
        "multi-token prediction": replace(base, mtp=MTP(depth=1)),
        "RetNet": replace(base, attention=LinearAttention(n_heads=heads, d_key=64, d_value=128)),
        "GLA": replace(base, attention=LinearAttention(n_heads=heads, d_key=32, d_value=64, decay_rank=16)),
    }


def step_of(model: Decoder, seq_len: int, batch: int, device: str) -> Callable[[], object]:
    """One step of the loop's own stepper on random tokens."""
    data = Data(tokenizer=BPE(vocab_size=VOCAB), seq_len=seq_len)
    precision = "bf16" if device == "cuda" else "fp32"
    train = Train(
        tokens=batch * 10_000, batch_tokens=batch, optimizer=AdamW(lr=1e-4), schedule=WSD(), precision=precision
    )
    module = build(model, model.d_model).to(device)
    initialise(module, 0)
    stepper, guard = Stepper(Run(model=model, data=data, train=train), module, next_token_loss), Guard(1e-4)
    x_BT = torch.randint(VOCAB, (batch // seq_len, seq_len + 1), device=device)
    return lambda: stepper.take(0, x_BT, guard)


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measured(name: str, model: Decoder, base: Decoder, seq_len: int, batch: int, rounds: int, device: str) -> dict:
    """One row of the table."""
    pair = [step_of(shape, seq_len, batch, device) for shape in (base, model)]
    for step in pair:
        timed(step, device)
    times = [[timed(step, device) for step in pair] for _ in range(rounds)]
    plain_seconds, seconds = (statistics.median(column) for column in zip(*times, strict=True))
    flops, plain_flops = (shape.flops_per_token(seq_len) + shape.head_flops_per_token for shape in (model, base))
    ratios = sorted(one / other * flops / plain_flops for one, other in times)
    return {
        "part": name,
        "params_non_embedding": model.params_non_embedding,
        "flops_per_token": model.flops_per_token(seq_len),
        "cache_bytes": {context: model.cache_bytes(context) for context in CONTEXTS},
        "tokens_per_second": batch / seconds,
        "plain_tokens_per_second": batch / plain_seconds,
        "speed_per_flop": statistics.median(ratios),
        "speed_per_flop_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
    }


def main(
    rounds: int = 9,
    threads: int = 1,
    d_model: int = 256,
    n_layers: int = 4,
    seq_len: int = 512,
    batch: int = 2048,
    only: str = "",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Time every part whose name contains `only` and print the table."""
    torch.set_num_threads(threads)
    found = shapes(d_model, n_layers)
    base, rows = found["plain"], []
    for name, model in found.items():
        if only.lower() in name.lower():
            rows.append(measured(name, model, base, seq_len, batch, rounds, device))
            Console(stderr=True).print(f"{name}: {rows[-1]['speed_per_flop']:.2f}")
    if json:
        print(jsonlib.dumps({"seq_len": seq_len, "batch_tokens": batch, "device": device, "parts": rows}))
        return
    table = Table(title=f"{d_model} wide, {n_layers} layers, {batch} tokens in sequences of {seq_len}, {device}")
    short, long = CONTEXTS
    heads = ("part", "params", "M", f"cache, {short:,}", f"cache, {long:,}", "tokens/s", "speed a FLOP", "quartiles")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    for row in rows:
        low, high = row["speed_per_flop_quartiles"]
        table.add_row(
            row["part"],
            f"{row['params_non_embedding'] / 1e6:.2f} M",
            f"{row['flops_per_token'] / 1e6:.1f} M",
            *(f"{row['cache_bytes'][context] / 1024:,.0f} KiB" for context in CONTEXTS),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['speed_per_flop']:.2f}",
            f"{low:.2f}-{high:.2f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    tyro.cli(main)
