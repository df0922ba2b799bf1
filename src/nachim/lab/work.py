"""Carrying out runs in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.data.prepared import TOKENIZER, Prepared
from nachim.evaluate.bpb import Windows, measure
from nachim.lab.ladder import Chain, name_of
from nachim.model import DecoderModule, build
from nachim.model.decoder import initialise
from nachim.model.load import decoder_of, load
from nachim.model.weights import fingerprint
from nachim.spec import Run, UserError, diff
from nachim.spec.disk import read_json, write_text
from nachim.train import checkpoint
from nachim.train.guard import Diverged
from nachim.train.loop import Stage, Watch, train
from nachim.train.schedule import stable_steps


@dataclass(frozen=True)
class Place:
    """Where and how runs are carried out: the token cache, the device, and how much work a kill may cost (seconds)."""

    cache: Path
    device: str = "cpu"
    threads: int = 1
    checkpoint_seconds: float = 20.0


@dataclass(frozen=True)
class Share:
    """What a run takes from its chain: the checkpoint it starts from, and the steps whose checkpoints it leaves."""

    start: Path | None = None
    keep: frozenset[int] = field(default_factory=frozenset)


OnStep = Callable[[Run, int, float], None]
"""Called with (run, steps done, loss) after every step."""


def carry_out(
    run: Run, out: Path, place: Place, on_step: OnStep, share: Share = Share(), watch: Watch = Watch()
) -> dict[str, Any]:
    """Train `run` into `out`, or finish it, and return its result.

    Raises UserError, Diverged from the guard, and Stopped when `watch` asks for it.
    """
    if (out / "result.json").exists():
        return result_of(out)
    settle(place)
    prepared = prepare(run.data, place.cache)
    batches = Batches(prepared, run.data)
    keep_tokenizer(prepared, out)
    model = begin(run, out)
    ids = batches.validation(run.validation.tokens)
    windows = Windows(ids, batches.target_bytes(ids))
    stage = Stage(
        device=place.device,
        start=share.start,
        keep=share.keep,
        checkpoint_seconds=place.checkpoint_seconds,
        on_step=lambda step, loss: on_step(run, step, loss),
        watch=watch,
    )
    return train(run, model, batches.batch, next_token_loss, lambda model: measure(model, windows), out, stage)


def begin(run: Run, out: Path) -> DecoderModule:
    """The model of `run`, its weights drawn, or read where it starts from others'.

    A run that has a checkpoint in `out` needs no start any more. Raises UserError where the start does not fit: another
    decoder, other weights than it was made with, another tokenizer.
    """
    if run.start is None or checkpoint.latest(out / "checkpoint"):
        model = build(run.model, run.model.d_model)
        initialise(model, run.train.seed)
        return model
    folder = Path(run.start.folder)
    found = fingerprint(folder)
    if run.start.fingerprint not in ("", found):
        raise UserError(f"Start.fingerprint is {run.start.fingerprint}, and the weights in {folder} have {found}")
    decoder = decoder_of(folder)
    if decoder != run.model:
        changes = "; ".join(str(change) for change in diff(run.model, decoder))
        raise UserError(f"Start.folder is {folder}, which holds another decoder than the run's ({changes})")
    theirs, ours = (place / TOKENIZER for place in (folder, out))
    if theirs.is_file() and theirs.read_bytes() != ours.read_bytes():
        raise UserError(f"Start.folder is {folder}, whose weights know another tokenizer than the run's")
    return load(folder).train()


def keep_tokenizer(prepared: Prepared, out: Path) -> None:
    """Put the tokenizer of the run in `out` beside it: whoever exports the run needs nothing but its folder."""
    if not (out / TOKENIZER).exists():
        write_text(out / TOKENIZER, (prepared.folder / TOKENIZER).read_text(encoding="utf-8"))


def carry_out_chain(chain: Chain, root: Path, place: Place, on_step: OnStep) -> None:
    """Train every run of `chain` into its own folder under `root`, each from where it leaves the one before.

    A run that diverges is recorded in its folder as `diverged.json` and ends the chain: longer ones share its fault.
    """
    start: Path | None = None
    for run in chain.runs:
        out = root / name_of(run)
        leave = stable_steps(run.train) if run is not chain.runs[-1] else 0
        share = Share(start=start, keep=frozenset({leave} if leave else ()))
        if chain.rungs:
            share = Share(start=rung_below(chain, root, run), keep=frozenset(chain.rungs))
        try:
            carry_out(run, out, place, on_step, share)
        except Diverged as error:
            write_text(out / "diverged.json", json.dumps({"why": str(error)}, indent=2) + "\n")
            return
        if start and not chain.rungs:
            checkpoint.prune(start.parent, frozenset({chain_end(start)}))
        start = checkpoint.path_at(out / "checkpoint", leave)


def rung_below(chain: Chain, root: Path, run: Run) -> Path | None:
    """The farthest checkpoint kept at a rung of `chain` from which `run` can start: that of a finished run."""
    folders = [root / name_of(other) for other in chain.runs]
    steps = [step for step in chain.rungs if step <= stable_steps(run.train)]
    found = [
        path
        for folder in folders
        for step in steps
        if (path := checkpoint.path_at(folder / "checkpoint", step)).exists() and (folder / "result.json").exists()
    ]
    return max(found, key=checkpoint.step_of, default=None)


def chain_end(start: Path) -> int:
    """The last checkpoint beside `start`: the one that stays when the chain has moved on."""
    last = checkpoint.latest(start.parent)
    return checkpoint.step_of(last) if last else 0


def result_of(out: Path) -> dict[str, Any]:
    """The result of the finished run in `out`. Raises UserError when it cannot be read."""
    return read_json(out / "result.json")


def next_token_loss(model: nn.Module, x_BT: Tensor) -> Tensor:
    """Mean cross-entropy, nat/token, of every token of `x_BT` [B, T + 1] after the first."""
    return model.loss(x_BT[:, :-1], x_BT[:, 1:])


def settle(place: Place) -> None:
    """Set threads, and on a GPU insist on deterministic kernels."""
    torch.set_num_threads(place.threads)
    if place.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
