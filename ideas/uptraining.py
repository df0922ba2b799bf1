"""What do fewer key-value heads cost a trained model, and how much does a twentieth of its training win back?

    python ideas/uptraining.py --out runs/ideas/uptraining [--seeds 3]

The run of recipes/stdlib.py (four heads of keys and values) is trained, its heads are pooled into two and into one, and
5 % of its tokens are spent on what comes out, or 20 %, at a few learning rates that fall to zero. Beside it: the first
head of each group in place of the mean (5 %), the unpooled model trained on for as long, and models that had fewer
heads from the beginning and all the tokens. Finished runs are not repeated. What came of it: uptraining.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file

from nachim import load
from nachim.app.ask import CACHE
from nachim.app.convert import converted
from nachim.app.train import run_of
from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.evaluate.bpb import Windows, measure
from nachim.lab.work import Place, carry_out
from nachim.model.load import decoder_of
from nachim.model.weights import CHECKPOINT, WEIGHTS, fingerprint, latest, path_at
from nachim.spec import WSD, Run, Start

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "stdlib.py"
SHARES = (0.05, 0.2)
"""Tokens of the continued training, as a share of the first's."""
RATES = (1.0, 0.3, 0.1)
"""Learning rates of the continued training, times that of the first."""
GROUPS = (2, 1)


def first(run: Run, tokens: int, n_kv_heads: int) -> Run:
    """`run` with fewer heads from its beginning."""
    model = replace(run.model, attention=replace(run.model.attention, n_kv_heads=n_kv_heads))
    return replace(run, model=model, train=replace(run.train, tokens=tokens))


def further(run: Run, folder: Path, share: float, rate: float) -> Run:
    """`run` continued from the weights in `folder`: for a share of its tokens, from `rate` times its rate to zero."""
    optimizer = replace(run.train.optimizer, lr=rate * run.train.optimizer.lr)
    tokens = round(share * run.train.steps) * run.train.batch_tokens
    train = replace(run.train, tokens=tokens, optimizer=optimizer, schedule=WSD(decay=1.0))
    start = Start(folder=str(folder), fingerprint=fingerprint(folder))
    return replace(run, model=decoder_of(folder), train=train, start=start, data=replace(run.data, seed=1))


def first_heads(source: Path, out: Path, n_kv_heads: int) -> None:
    """A copy of the run in `source` whose groups of key-value heads all equal their first: pooling them keeps it."""
    model = decoder_of(source)
    part, weights = model.attention, load_file(latest(source / CHECKPOINT) / WEIGHTS)
    group = part.n_kv_heads // n_kv_heads
    for name in [name for name in weights if name.endswith("attention.qkv.weight")]:
        heads = weights[name].unflatten(0, (-1, part.d_head)).clone()
        others = heads[part.n_heads :].unflatten(0, (-1, group))
        others[:] = others[:, :1].clone()
        weights[name] = heads.flatten(0, 1)
    path_at(out / CHECKPOINT, 0).mkdir(parents=True)
    save_file(weights, path_at(out / CHECKPOINT, 0) / WEIGHTS)
    model.save(out / "run.json")
    (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


def measured(root: Path, seed: int) -> Iterator[tuple[str, float]]:
    """Rows of one seed: what the model is, and its validation loss, nat/token."""
    run = run_of(RECIPE)
    run = replace(run, train=replace(run.train, seed=seed))
    batches = Batches(prepare(run.data, CACHE), run.data)
    ids = batches.validation(run.validation.tokens)
    windows = Windows(ids, batches.target_bytes(ids))
    place = Place(cache=CACHE)

    def trained(one: Run, name: str) -> float:
        return carry_out(one, root / f"{name}-{seed}", place, lambda run, step, loss: None)["validation"]["loss"]

    def continued(what: str, folder: Path, name: str, shares: Sequence[float] = SHARES) -> Iterator[tuple[str, float]]:
        for share, rate in itertools.product(shares, RATES):
            on = trained(further(run, folder, share, rate), f"{name}-{share:.0%}-{rate:g}")
            yield f"{what}: {share:.0%} more at {rate:g} of the rate", on

    whole = root / f"heads-4-{seed}"
    yield "4 heads", trained(run, "heads-4")
    yield from continued("4 heads", whole, "heads-4")
    for heads in GROUPS:
        for way in ("mean", "first"):
            source, folder = whole, root / f"{way}-{heads}-{seed}"
            if not folder.exists():
                if way == "first":
                    source = root / f"equal-{heads}-{seed}"
                    first_heads(whole, source, heads)
                converted(source, folder, heads)
            yield f"{heads}, {way}: as converted", measure(load(folder), windows)["loss"]
            yield from continued(f"{heads}, {way}", folder, f"{way}-{heads}", SHARES if way == "mean" else SHARES[:1])
        yield f"{heads} from the beginning", trained(first(run, run.train.tokens, heads), f"heads-{heads}")


def main(out: Annotated[Path, tyro.conf.arg(metavar="DIR")], seeds: int = 3) -> None:
    """Train what is missing, measure, and print the table."""
    torch.set_num_threads(1)
    rows = [dict(measured(out, seed)) for seed in range(seeds)]
    print(f"validation loss, nat/token, and how far above that of 4 heads: mean and spread of {seeds} seeds")
    print("| heads of keys and values | loss | above |\n|---|--:|--:|")
    for name in rows[0]:
        losses = np.array([row[name] for row in rows])
        above = np.array([row[name] - row["4 heads"] for row in rows])
        cells = (f"{found.mean():.4f} ± {found.std(ddof=1):.4f}" for found in (losses, above))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    tyro.cli(main)
