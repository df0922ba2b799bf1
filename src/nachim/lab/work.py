"""Carrying out runs in this process."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nachim.data.mix import Mixed, open_mixture
from nachim.data.pack import Batches
from nachim.data.prepare import Progress, prepare
from nachim.data.prepared import TOKENIZER
from nachim.evaluate.bpb import Windows, documents_in, measure, measure_each
from nachim.lab.ladder import Chain, name_of
from nachim.model import DecoderModule, build
from nachim.model.decoder import initialise
from nachim.model.hf.checkpoint import ORIGIN
from nachim.model.load import decoder_of, load
from nachim.model.mtp import NONE
from nachim.model.weights import fingerprint
from nachim.spec import Activations, Data, Mixture, Run, UserError, diff
from nachim.spec.disk import write_text
from nachim.train import checkpoint
from nachim.train.ewc import open_penalty
from nachim.train.guard import Diverged
from nachim.train.loop import Stage, Validate, Watch, train
from nachim.train.manifest import RESULT, Damaged, read_result
from nachim.train.schedule import stable_steps
from nachim.train.step import LossFn

MIXTURE = "mixture.json"
"""What a run on a mixture reads of each corpus, and how many times over."""


@dataclass(frozen=True)
class Place:
    """Where and how runs are carried out: the token cache, the device, how much work a kill may cost (seconds), what is
    kept for backward passes."""

    cache: Path
    device: str = "cpu"
    threads: int = 1
    checkpoint_seconds: float = 20.0
    activations: Activations = Activations()


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
    if (out / RESULT).exists():
        with contextlib.suppress(Damaged):  # the loop writes it again
            return result_of(out)
    settle(place)
    batches = open_batches(run.data, place.cache)
    keep_tokenizer(batches.tokenizer, out)
    model = begin(run, out)
    penalty = open_penalty(run.ewc, model, place.device) if run.ewc else None
    if isinstance(batches, Mixed):
        write_text(out / MIXTURE, json.dumps(batches.seen(run.train.tokens), indent=2) + "\n")
    stage = Stage(
        device=place.device,
        start=share.start,
        keep=share.keep,
        checkpoint_seconds=place.checkpoint_seconds,
        activations=place.activations,
        on_step=lambda step, loss: on_step(run, step, loss),
        watch=watch,
    )
    loss = loss_of(run.data, batches.end)
    return train(run, model, batches.batch, loss, judge(batches, run), out, stage, penalty)


def open_batches(data: Data, cache: Path, progress: Progress | None = None) -> Batches | Mixed:
    """The sequences of one corpus or of a mixture, tokenized before or now. Raises UserError as `prepare` does."""
    if isinstance(data.corpus, Mixture):
        return open_mixture(data, cache, progress)
    return Batches(prepare(data, cache, progress), data)


def judge(batches: Batches | Mixed, run: Run) -> Validate:
    """What measures a model on held-out text: of a mixture, on that many tokens of each corpus apart."""

    def windows(source: Batches) -> Windows:
        ids = source.validation(run.validation.tokens)
        return Windows(ids, source.target_bytes(ids), source.end if run.data.mask_documents else None)

    if isinstance(batches, Batches):
        one = windows(batches)
        return lambda model: measure(model, one)
    each, shares = {name: windows(source) for name, source in batches.sources.items()}, batches.last_shares
    return lambda model: measure_each(model, each, shares)


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
    theirs = next((path for path in (folder / TOKENIZER, folder / ORIGIN / TOKENIZER) if path.is_file()), None)
    if theirs is not None and theirs.read_bytes() != (out / TOKENIZER).read_bytes():
        raise UserError(
            f"Start.folder is {folder}, whose weights know another tokenizer than the run's: give Data "
            f'tokenizer=TokenizerFile(path="{theirs}", vocab_size={run.model.vocab_size})'
        )
    return load(folder).train()


def keep_tokenizer(file: Path, out: Path) -> None:
    """Put the tokenizer of the run in `out` beside it: whoever exports the run needs nothing but its folder."""
    if not (out / TOKENIZER).exists():
        write_text(out / TOKENIZER, file.read_text(encoding="utf-8"))


def carry_out_chain(chain: Chain, root: Path, place: Place, on_step: OnStep, watch: Watch = Watch()) -> None:
    """Train every run of `chain` into its own folder under `root`, each from where it leaves the one before.

    A run that diverges is recorded in its folder as `diverged.json` and ends the chain: longer ones share its fault.
    Raises Stopped when `watch` asks for it.
    """
    start: Path | None = None
    for run in chain.runs:
        out = root / name_of(run)
        leave = stable_steps(run.train) if run is not chain.runs[-1] else 0
        share = Share(start=start, keep=frozenset({leave} if leave else ()))
        if chain.rungs:
            share = Share(start=rung_below(chain, root, run), keep=frozenset(chain.rungs))
        try:
            carry_out(run, out, place, on_step, share, watch)
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
    """The result of the finished run in `out`. Raises UserError when it is not what was written."""
    return read_result(out / RESULT)


def next_token_loss(model: nn.Module, x_BT: Tensor) -> Tensor:
    """Mean cross-entropy, nat/token, of every token of `x_BT` [B, T + 1] after the first."""
    return model.loss(x_BT[:, :-1], x_BT[:, 1:])


def loss_of(data: Data, end: int) -> LossFn:
    """The loss of a run on `data`, whose documents end in the token `end`: plain, or one that minds documents."""
    if data.packing == "stream" and not data.mask_documents:
        return next_token_loss

    def loss(model: nn.Module, x_BT: Tensor) -> Tensor:
        """`next_token_loss` without filling, which is an end-of-text token after another."""
        ids_BT, targets_BT = x_BT[:, :-1], x_BT[:, 1:]
        wanted_BT = targets_BT.masked_fill((ids_BT == end) & (targets_BT == end), NONE)
        return model.loss(ids_BT, wanted_BT, documents_in(ids_BT, end) if data.mask_documents else None)

    return loss


def settle(place: Place) -> None:
    """Set threads, and on a GPU insist on deterministic kernels."""
    torch.set_num_threads(place.threads)
    if place.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
