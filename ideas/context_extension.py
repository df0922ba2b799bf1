"""How far beyond its training does a small model read? Positions stretched without more training, and other schemes.

    python ideas/context_extension.py --out runs/ideas/context_extension

The shape of recipes/stdlib.py is trained at 128 tokens with RoPE, ALiBi, FIRE and without positions, seeds paired,
then reads validation sequences of 512. Prints the loss by position in the sequence, for RoPE plain and with each way to
stretch it by four, beside the same model reading the same tokens with no more context than it was trained on, and what
the longer context changes at the sequence's end. Finished runs are not repeated.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from scipy.stats import t
from torch import Tensor

from nachim import load
from nachim.app.ask import CACHE
from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.lab.work import Place, carry_out
from nachim.model import DecoderModule, build
from nachim.spec import (
    BPE,
    FIRE,
    WSD,
    ALiBi,
    Attention,
    Data,
    Decoder,
    DynamicNTK,
    Interpolated,
    Llama3Scaling,
    Muon,
    NoPosition,
    NTKAware,
    Position,
    RoPE,
    Run,
    Scaling,
    SwiGLU,
    Train,
    YaRN,
)

SHORT, LONG = 128, 512
DATA = Data(tokenizer=BPE(vocab_size=512), seq_len=SHORT)
MODEL = Decoder(
    vocab_size=512,
    d_model=64,
    n_layers=2,
    attention=Attention(n_heads=4, n_kv_heads=4, d_head=16, qk_norm=True, previous_key=True),
    ffn=SwiGLU(d_ff=168),
)
FACTOR = LONG / SHORT
TOKENS, SEEDS = 1_024_000, (0, 1, 2)
WINDOWS = 256
"""Validation sequences read."""
EDGES = (0, 64, 128, 192, 256, 384, 512)
ROWS = 16
NEAR = ", no more context than trained on"
TRAINED: dict[str, Position] = {"RoPE": RoPE(), "ALiBi": ALiBi(), "FIRE": FIRE(n_heads=4), "no positions": NoPosition()}
STRETCHED: dict[str, Scaling] = {
    "position interpolation": Interpolated(factor=FACTOR),
    "NTK-aware": NTKAware(factor=FACTOR),
    "dynamic NTK, factor 1": DynamicNTK(factor=1.0, original=SHORT),
    "dynamic NTK, factor 4": DynamicNTK(factor=FACTOR, original=SHORT),
    "YaRN": YaRN(factor=FACTOR, original=SHORT),
    "Llama 3's": Llama3Scaling(factor=FACTOR, original=SHORT),
}


def trained(position: Position, seed: int) -> Run:
    """The run of one position scheme at the short context."""
    train = Train(
        tokens=TOKENS, batch_tokens=1024, optimizer=Muon(lr=0.01), schedule=WSD(warmup_tokens=64 * 1024), seed=seed
    )
    return Run(model=replace(MODEL, position=position), data=replace(DATA, seed=seed), train=train)


def stretch(model: DecoderModule, scaling: Scaling) -> None:
    """Give every layer RoPE with `scaling`; it has no weights."""
    for block in model.blocks:
        block.position = build(RoPE(scaling=scaling), model.spec.d_model)


def losses(model: DecoderModule, ids_NS: Tensor) -> Tensor:
    """Nat of every predicted token of sequences [N, S + 1], as [N, S]."""
    found = []
    with torch.inference_mode():
        for rows in ids_NS.split(ROWS):
            logits = model(rows[:, :-1]).flatten(0, 1).float()
            found.append(F.cross_entropy(logits, rows[:, 1:].flatten(), reduction="none").view(len(rows), -1))
    return torch.cat(found)


def near(model: DecoderModule, ids_NS: Tensor) -> Tensor:
    """As `losses`, each token predicted from the 64 to 127 before it at most: the context it was trained on."""
    half = SHORT // 2
    begins = range(0, LONG - half, half)
    parts = [losses(model, ids_NS[:, begin : begin + SHORT + 1]) for begin in begins]
    return torch.cat((parts[0], *(part[:, half:] for part in parts[1:])), 1)


def by_position(loss_NS: Tensor) -> list[float]:
    """Mean loss between the edges."""
    return [loss_NS[:, begin:end].mean().item() for begin, end in itertools.pairwise(EDGES)]


def measured(out: Path, seed: int, ids_NS: Tensor) -> dict[str, list[float]]:
    """Of one seed's models: row of the table to loss of short sequences, then of long ones by position."""
    found = {}
    first = ids_NS[:, : SHORT + 1]
    for name, position in TRAINED.items():
        folder = out / f"{name.lower().replace(' ', '-')}-{seed}"
        carry_out(trained(position, seed), folder, Place(cache=CACHE), lambda run, step, loss: None)
        model = load(folder)
        short = losses(model, first).mean().item()
        found[name + NEAR] = [short, *by_position(near(model, ids_NS))]
        found[name] = [short, *by_position(losses(model, ids_NS))]
        for kind, scaling in STRETCHED.items() if name == "RoPE" else ():
            stretch(model, scaling)
            found[f"RoPE, {kind}"] = [losses(model, first).mean().item(), *by_position(losses(model, ids_NS))]
    return found


def main(out: Annotated[Path, tyro.conf.arg(metavar="DIR")]) -> None:
    """Train what is missing, measure, and print the table."""
    torch.set_num_threads(1)
    data = replace(DATA, seq_len=LONG)
    ids_NS = torch.from_numpy(Batches(prepare(data, CACHE), data).validation(WINDOWS * LONG))
    report([measured(out, seed, ids_NS) for seed in SEEDS], len(ids_NS))


def report(rows: list[dict[str, list[float]]], sequences: int) -> None:
    """Print the table of all seeds."""
    print(f"{sequences} sequences of {LONG}; nat/token, mean and standard deviation over {len(SEEDS)} seeds")
    spans = [f"{begin} to {end - 1}" for begin, end in itertools.pairwise(EDGES)]
    print(f"| | sequences of {SHORT} | {' | '.join(spans)} | {spans[-1]}: change (95 %) |")
    print("|---|" + "--:|" * (2 + len(spans)))
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True)]
        near = [row[name.partition(",")[0] + NEAR][-1] for row in rows]
        print(f"| {name} | {' | '.join(cells)} | {'' if name.endswith(NEAR) else told(values[:, -1] - near)} |")


def told(change: np.ndarray) -> str:
    """Mean of paired differences with its 95 % interval."""
    half = t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
    return f"{change.mean():+.3f} ({change.mean() - half:+.3f} to {change.mean() + half:+.3f})"


if __name__ == "__main__":
    tyro.cli(main)
