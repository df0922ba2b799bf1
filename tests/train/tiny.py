"""A run of a second: a decoder of two narrow layers on sequences that are a pure function of their index.

As a script, ``python tiny.py OUT STEPS KILL_AT`` trains it and kills itself, as the system would, at a step.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nachim.evaluate.bpb import Windows, measure
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import BPE, AdamW, Attention, Cosine, Data, Decoder, Run, Schedule, SwiGLU, Train, Validation
from nachim.train import checkpoint
from nachim.train.loop import Stage, train

VOCABULARY, LENGTH, BATCH = 257, 8, 32
NEVER, ALWAYS = 1e9, -1.0
"""Seconds between checkpoints: only at the end, and after every step."""


class Kill(Exception):
    """Ends a run from within, as a signal would from without."""


def tiny_run(
    steps: int = 8, schedule: Schedule | None = None, lr: float = 0.01, times: int = 1, d_model: int = 16, **train: Any
) -> Run:
    """`steps` steps of four sequences; `train` are further fields of Train."""
    model = Decoder(
        vocab_size=VOCABULARY,
        d_model=d_model,
        n_layers=2,
        attention=Attention(n_heads=2, n_kv_heads=1, d_head=8, qk_norm=True, previous_key=True),
        ffn=SwiGLU(d_ff=24),
    )
    fields = {
        "tokens": steps * BATCH,
        "batch_tokens": BATCH,
        "optimizer": AdamW(lr=lr),
        "schedule": schedule or Cosine(warmup_tokens=2 * BATCH),
    }
    return Run(
        model=model,
        data=Data(tokenizer=BPE(vocab_size=VOCABULARY), seq_len=LENGTH),
        train=Train(**fields | train),
        validation=Validation(tokens=64, times=times),
    )


def batches(first: int, count: int) -> np.ndarray:
    """Sequences that count upwards from a start of their own: something to learn."""
    start = np.stack([np.random.default_rng(i).integers(0, VOCABULARY, 1) for i in range(first, first + count)])
    return (start + np.arange(LENGTH + 1)) % VOCABULARY


def loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Mean next-token loss."""
    return model.loss(ids_BT[:, :-1], ids_BT[:, 1:])


def validate(model: nn.Module) -> dict[str, float]:
    """Loss on eight fixed sequences longer than training's."""
    ids = (np.arange(8)[:, None] * 31 + np.arange(LENGTH + 5)) % VOCABULARY
    return measure(model, Windows(ids, target_bytes=200))


def fresh(run: Run) -> nn.Module:
    """The run's model with its weights drawn."""
    model = build(run.model, run.model.d_model)
    initialise(model, run.train.seed)
    return model


def go(run: Run, out: Path, **stage: Any) -> dict[str, Any]:
    """Train `run` in `out`, the stage as told."""
    return train(run, fresh(run), batches, loss, validate, out, Stage(**stage))


def kill_at(step: int) -> Any:
    """An `on_step` that ends the run after `step` steps."""

    def stop(done: int, _: float) -> None:
        if done == step:
            raise Kill

    return stop


def weights(out: Path) -> dict[str, Tensor]:
    """The fp32 weights of the newest checkpoint of `out`."""
    return load_file(checkpoint.latest(out / "checkpoint") / "weights.safetensors")


def rows(out: Path) -> list[dict[str, Any]]:
    """The metrics of `out` without the wall time."""
    table = pq.read_table(out / "metrics.parquet").drop_columns("seconds")
    return table.to_pylist()


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal to the last bit."""
    return sorted(one.keys() ^ other.keys()) + [
        name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])
    ]


def folders(out: Path) -> list[str]:
    """Names of everything under the checkpoint folder of `out`."""
    return sorted(os.listdir(out / "checkpoint"))


if __name__ == "__main__":
    place, length, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def shoot(done: int, _: float) -> None:
        """The system's kill: nothing is caught, closed or flushed."""
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    go(tiny_run(length), place, checkpoint_seconds=ALWAYS, on_step=shoot)
