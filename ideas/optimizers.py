"""AdamW, AdamW in 8 bits, Muon and schedule-free AdamW at the same tokens, each at the best of its rates.

    python ideas/optimizers.py --out runs/ideas/optimizers

The recipe of recipes/stdlib.py, shortened, with each optimizer over rates in factors of two, seeds paired. Prints the
validation bits per byte of every rate, and those of the best for every seed beside AdamW's. Finished runs are not
repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from nachim.app.ask import CACHE
from nachim.lab.work import Place, carry_out
from nachim.spec import (
    BPE,
    WSD,
    AdamW,
    AdamW8,
    Attention,
    Constant,
    Data,
    Decoder,
    Muon,
    Run,
    Schedule,
    ScheduleFreeAdamW,
    SwiGLU,
    Train,
    Validation,
)

TOKENS, BATCH, WARMUP = 409_600, 1024, 32
DECAYING = WSD(warmup_tokens=WARMUP * BATCH)
WAYS: dict[str, tuple[type[AdamW], Schedule]] = {
    "AdamW": (AdamW, DECAYING),
    "AdamW8": (AdamW8, DECAYING),
    "Muon": (Muon, DECAYING),
    "ScheduleFreeAdamW": (ScheduleFreeAdamW, Constant(warmup_tokens=WARMUP * BATCH)),
}
RATES = {"AdamW": (0.005, 0.01, 0.02), "Muon": (0.005, 0.01, 0.02, 0.04), "ScheduleFreeAdamW": (0.01, 0.02, 0.04)}
"""What the first seed tries. AdamW8 takes the best of AdamW: it is to stand in for it."""
BASE = "AdamW"


def trained(name: str, lr: float, seed: int) -> Run:
    """The run of one optimizer at one rate."""
    part, schedule = WAYS[name]
    attention = Attention(n_heads=4, n_kv_heads=4, d_head=16, qk_norm=True, previous_key=True)
    return Run(
        model=Decoder(vocab_size=512, d_model=64, n_layers=2, attention=attention, ffn=SwiGLU(d_ff=168)),
        data=Data(tokenizer=BPE(vocab_size=512), seq_len=128, seed=seed),
        train=Train(tokens=TOKENS, batch_tokens=BATCH, optimizer=part(lr=lr), schedule=schedule, seed=seed),
        validation=Validation(tokens=131_072),
    )


def measured(name: str, lr: float, seed: int, out: Path) -> float:
    """Validation bits per byte of a run."""
    folder = out / f"{name}-{lr:g}-{seed}"
    result = carry_out(trained(name, lr, seed), folder, Place(cache=CACHE), lambda run, step, loss: None)
    return float(result["validation"]["bpb"])


def main(out: Annotated[Path, tyro.conf.arg(metavar="DIR")], seeds: tuple[int, ...] = (0, 1)) -> None:
    """Train what is missing, and print the table."""
    print(f"{TOKENS:,} tokens, seeds {seeds}: validation bits per byte")
    print("| optimizer | first seed by rate | best | by seed | mean | over AdamW, by seed |")
    print("|---|--:|--:|--:|--:|--:|")
    best, base = 0.0, np.ones(len(seeds))
    for name in WAYS:
        tried = {lr: measured(name, lr, seeds[0], out) for lr in RATES.get(name, (best,))}
        best = min(tried, key=tried.__getitem__)
        values = np.array([measured(name, best, seed, out) for seed in seeds])
        base = values if name == BASE else base
        rates = ", ".join(f"{lr:g}: {value:.4f}" for lr, value in tried.items())
        listed, over = " ".join(map("{:.4f}".format, values)), " ".join(map("{:+.2%}".format, values / base - 1))
        print(f"| {name} | {rates} | {best:g} | {listed} | {values.mean():.4f} | {over} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
