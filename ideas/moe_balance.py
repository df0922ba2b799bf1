"""Do biases alone keep experts busy? Loss-free balancing, an auxiliary loss and nothing, on a model of the ladder.

    python ideas/moe_balance.py --out runs/ideas/moe_balance

The shape of recipes/stdlib.py with 16 experts, two a token, in place of each feed-forward (the same FLOPs a token),
trained with each way of balancing, at two sizes of the batch. Prints the imbalance of every step (the fullest expert's
load over the mean, in the worse layer) after the first tenth of the tokens, that of the trained model over all
validation tokens, and the validation loss. Beside it stands what no bias can go below: the imbalance of single batches
under the trained weights, their biases set so that the loads of many batches together are even. Finished runs are not
repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from torch import Tensor

from nachim import load
from nachim.app.ask import CACHE
from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.lab.work import Place, carry_out
from nachim.model import DecoderModule
from nachim.model.router import RouterModule
from nachim.spec import BPE, WSD, Attention, Data, Decoder, MoE, Muon, Run, Train, Validation

BOUND, LATER = 1.2, 0.1
"""The imbalance that is to hold at every step after this share of the tokens."""
EXPERTS = MoE(d_ff=84, experts=16, active=2, scores="sigmoid")
WAYS: dict[str, MoE] = {
    "nothing": EXPERTS,
    "bias, u = 0.003": replace(EXPERTS, bias_step=0.003),
    "bias, u = 0.01": replace(EXPERTS, bias_step=0.01),
    "bias, 0.06 of the share": replace(EXPERTS, bias_step=0.06, bias_by="share"),
    "auxiliary loss, 0.01": replace(EXPERTS, balance_loss=0.01),
}
VALIDATION = 131_072


@dataclass(frozen=True)
class Course:
    """How long runs are, and which are trained."""

    batch: int
    steps: int
    seeds: tuple[int, ...]
    ways: tuple[str, ...]


COURSES = (
    Course(4096, 300, (0, 1), tuple(WAYS)),
    Course(16_384, 200, (0,), ("nothing", "bias, u = 0.01", "auxiliary loss, 0.01")),
)


def trained(course: Course, name: str, seed: int) -> Run:
    """The run of one way of balancing."""
    attention = Attention(n_heads=4, n_kv_heads=4, d_head=16, qk_norm=True, previous_key=True)
    return Run(
        model=Decoder(vocab_size=512, d_model=64, n_layers=2, attention=attention, ffn=WAYS[name]),
        data=Data(tokenizer=BPE(vocab_size=512), seq_len=128, seed=seed),
        train=Train(
            tokens=course.steps * course.batch,
            batch_tokens=course.batch,
            optimizer=Muon(lr=0.01),
            schedule=WSD(warmup_tokens=16 * course.batch),
            seed=seed,
        ),
        validation=Validation(tokens=VALIDATION),
    )


def scores_of(model: DecoderModule, ids_NT: Tensor) -> list[Tensor]:
    """The scores [tokens, X] that the router of each layer gives to the tokens of sequences [N, T + 1]."""
    found: dict[RouterModule, list[Tensor]] = {}

    def keep(router: RouterModule, given: tuple[Tensor]) -> None:
        found.setdefault(router, []).append((given[0] @ router.weight.T).sigmoid().flatten(0, 1))

    hooks = [module.register_forward_pre_hook(keep) for module in model.modules() if isinstance(module, RouterModule)]
    with torch.inference_mode():
        for rows in ids_NT.split(32):
            model(rows[:, :-1])
    for hook in hooks:
        hook.remove()
    return [torch.cat(scores) for scores in found.values()]


def loads(scores_NX: Tensor, bias_X: Tensor) -> Tensor:
    """How many tokens each expert gets, by token: 0 or 1 in [N, X]."""
    return torch.zeros_like(scores_NX).scatter(1, (scores_NX + bias_X).topk(EXPERTS.active, 1).indices, 1.0)


def imbalance(load_X: Tensor) -> Tensor:
    """The largest load over the mean, of the last axis."""
    return load_X.amax(-1) / load_X.mean(-1)


def floor(scores_NX: Tensor, batch: int) -> float:
    """Mean imbalance of batches of so many tokens, with biases that make the loads of all tokens even."""
    bias_X = torch.zeros(EXPERTS.experts)
    for _ in range(100):
        load_X = loads(scores_NX, bias_X).sum(0)
        bias_X -= 0.03 * (load_X / load_X.mean() - 1)
    return imbalance(loads(scores_NX, bias_X).unflatten(0, (-1, batch)).sum(1)).mean().item()


def measured(course: Course, name: str, out: Path, seed: int) -> dict[str, np.ndarray]:
    """What is told of one run."""
    run, folder = trained(course, name, seed), out / f"{course.batch}-{name.replace(' ', '').replace(',', '-')}-{seed}"
    result = carry_out(run, folder, Place(cache=CACHE), lambda run, step, loss: None)
    table = pq.read_table(folder / "metrics.parquet")
    late = table["tokens"].to_numpy() > LATER * run.train.tokens
    model = load(folder)
    batches, rows = Batches(prepare(run.data, CACHE), run.data), VALIDATION // run.data.seq_len
    seen = scores_of(model, torch.from_numpy(batches.batch(run.train.tokens // run.data.seq_len - rows, rows)))
    unseen = scores_of(model, torch.from_numpy(batches.validation(VALIDATION)))
    biases = [block.ffn.router.selection_bias for block in model.blocks]
    zero = torch.zeros(EXPERTS.experts)
    overall = [imbalance(loads(s, zero if b is None else b).sum(0)).item() for s, b in zip(unseen, biases, strict=True)]
    return {
        "steps": table["imbalance"].to_numpy()[late].astype(float),
        "overall": np.array(max(overall)),
        "floor": np.array(max(floor(scores, course.batch) for scores in seen)),
        "loss": np.array(result["validation"]["loss"]),
    }


def row(name: str, runs: list[dict[str, np.ndarray]]) -> str:
    """A line of the table."""
    steps = np.concatenate([run["steps"] for run in runs])
    losses = np.array([run["loss"] for run in runs])
    spread = f" ± {losses.std(ddof=1):.4f}" if len(losses) > 1 else ""
    within, last = np.mean(steps <= BOUND), np.mean([run["steps"][-len(run["steps"]) // 2 :].mean() for run in runs])
    others = " | ".join(f"{np.mean([run[key] for run in runs]):.3f}" for key in ("overall", "floor"))
    cells = (
        f"{steps.mean():.3f} | {last:.3f} | {steps.max():.3f} | {within:.0%} | {others} | {losses.mean():.4f}{spread}"
    )
    return f"| {name} | {cells} |"


def main(out: Annotated[Path, tyro.conf.arg(metavar="DIR")]) -> None:
    """Train what is missing, and print the tables."""
    torch.set_num_threads(1)
    for course in COURSES:
        print(f"\n{course.steps} steps of {course.batch} tokens, seeds {', '.join(map(str, course.seeds))}\n")
        print(f"| balanced by | mean | in the second half | largest | within {BOUND} | over all | floor | nat/token |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
        for name in course.ways:
            print(row(name, list(map(partial(measured, course, name, out), course.seeds))), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
