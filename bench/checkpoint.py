"""What a checkpoint costs a run: the copy it waits for, and the CPU that the writing takes from it.

    python bench/checkpoint.py [--rounds 7] [--d-model 256]

The run is a decoder of 4 layers, 256 wide, with 8,192 words, and AdamW. Kinds take turns: a copy, alone; its writing
by the thread, waited for; and `torch.save` of both state dicts, with neither checksums nor a sync. Medians of wall time
and CPU-seconds, each as a share of the time of a run that saves once a minute. The stall is the copy; on a machine
without a spare core the CPU-seconds of the writing are lost as well.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro

from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import BPE, WSD, AdamW, Data, Run, Train, plain
from nachim.train import checkpoint
from nachim.train.checkpoint import Progress
from nachim.train.guard import Guard
from nachim.train.step import Stepper
from nachim.train.writer import Writer

MINUTE = 60.0


def stepper_of(d_model: int) -> Stepper:
    """A stepper whose optimizer has its state: one step was taken."""
    model = plain(d_model=d_model, n_layers=4, d_head=64, vocab_size=8192)
    data = Data(tokenizer=BPE(vocab_size=8192), seq_len=64)
    recipe = Train(tokens=6400, batch_tokens=64, optimizer=AdamW(lr=1e-3), schedule=WSD())
    module = build(model, model.d_model)
    initialise(module, 0)
    made = Stepper(Run(model=model, data=data, train=recipe), module, next_token_loss)
    made.take(0, torch.zeros(1, 65, dtype=torch.long), Guard(1e-3))
    return made


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call, all threads counted."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(rounds: int = 7, d_model: int = 256) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    stepper, root, writer = stepper_of(d_model), Path(tempfile.mkdtemp(prefix="checkpoint-")), Writer()
    found: dict[str, list[tuple[float, float]]] = {"copy": [], "writing": [], "torch.save": []}
    for step in range(rounds + 1):
        taken: list[checkpoint.Snapshot] = []
        copy = timed(lambda: taken.append(checkpoint.snapshot(stepper, Progress(step))))  # noqa: B023
        writing = timed(lambda: (writer.submit(lambda: checkpoint.write(root, taken[0])), writer.wait()))  # noqa: B023
        state = {"model": stepper.masters.state(), "optimizer": stepper.optimizer.state_dict()}
        plainly = timed(lambda: torch.save(state, root / "plain.pt"))  # noqa: B023
        if step:  # the first warms up
            for name, pair in zip(found, (copy, writing, plainly), strict=True):
                found[name].append(pair)
        checkpoint.prune(root, frozenset())
    size = sum(tensor.nbytes for tensor in stepper.masters.state().values())
    shutil.rmtree(root)
    print(f"{size / 4e6:.1f} M parameters, {3 * size / 1e6:.0f} MB of weights and moments; medians of {rounds}")
    for name, pairs in found.items():
        wall, cpu = (statistics.median(each) for each in zip(*pairs, strict=True))
        share = f"{wall / MINUTE:.3%} and {cpu / MINUTE:.3%} of a minute"
        print(f"{name:10} {1e3 * wall:8.1f} ms wall {1e3 * cpu:8.1f} ms CPU   {share}")


if __name__ == "__main__":
    tyro.cli(main)
