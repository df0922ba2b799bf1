"""What the quickstart's recipe is made of, each choice alone: previous-token keys, Muon, the context length.

    python ideas/quickstart_recipe.py --seeds 2 --out runs/ideas/quickstart_recipe

Trains one shape on three token counts for every variant and seed (as chains, so a kill costs little), and prints the
validation bpb with its spread over seeds, as mean +- standard deviation.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from nachim.app.ask import CACHE
from nachim.app.view import TerminalView
from nachim.budget.shape import shape
from nachim.data.prepare import prepare
from nachim.lab.ladder import Chain, name_of
from nachim.lab.launch.local import carry_out_all
from nachim.lab.recipe import Recipe
from nachim.lab.work import Place, result_of
from nachim.spec import BPE, Data, Decoder

TOKENS = (300_000, 600_000, 1_200_000)
FLOPS = 6e11
VOCAB = 512


def variants(width: int) -> dict[str, tuple[Recipe, Decoder]]:
    """Each variant changes one thing of the quickstart's recipe."""
    data = Data(tokenizer=BPE(vocab_size=VOCAB), seq_len=128)
    recipe = Recipe(data=data, precision="fp32", batch_factor=0.2)
    model = shape(width, VOCAB)
    bare = dataclasses.replace(model, attention=dataclasses.replace(model.attention, previous_key=False))
    longer = dataclasses.replace(recipe, data=dataclasses.replace(data, seq_len=256))
    adamw = dataclasses.replace(recipe, optimizer="adamw")
    return {
        "quickstart": (recipe, model),
        "without previous keys": (recipe, bare),
        "AdamW for Muon": (adamw, model),
        "AdamW, without previous keys": (adamw, bare),
        "length 256 for 128": (longer, model),
    }


def main(
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/ideas/quickstart_recipe"),
    seeds: int = 2,
    width: int = 48,
    workers: int = 2,
) -> None:
    """Train every variant and print the table."""
    rows = {}
    jobs = []
    for name, (recipe, model) in variants(width).items():
        prepare(recipe.data, CACHE)
        for seed in range(seeds):
            chain = Chain(runs=tuple(recipe.run(model, FLOPS, tokens, seed=seed) for tokens in TOKENS))
            folder = out / name.replace(" ", "-").replace(",", "")
            rows.setdefault(name, []).append((folder, chain))
            jobs.append((folder, chain))
    with TerminalView() as view:
        for folder in dict.fromkeys(folder for folder, _ in jobs):
            chains = [chain for where, chain in jobs if where == folder]
            carry_out_all(chains, folder, Place(cache=CACHE), workers, view.event)
    print(f"validation bpb, 2 layers x {width}, {seeds} seeds, at tokens of:")
    print(f"{'':30s}" + "".join(f"{tokens / 1e6:>18.1f} M" for tokens in TOKENS))
    for name, chains in rows.items():
        bpb = np.array([[result_of(f / name_of(r))["validation"]["bpb"] for r in c.runs] for f, c in chains])
        cells = [f"{m:.4f} +- {s:.4f}" for m, s in zip(bpb.mean(0), bpb.std(0, ddof=min(1, seeds - 1)), strict=True)]
        print(f"{name:30s}" + "".join(f"{cell:>20s}" for cell in cells))


if __name__ == "__main__":
    tyro.cli(main)
