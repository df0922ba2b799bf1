"""What could make a training step on a CPU faster, tried on the decoder of 5 M parameters: `ideas/train_speed.md`.

python ideas/train_speed.py products     # FLOP/s of a step's matrix multiplications, by precision
python ideas/train_speed.py forms        # the step as it is, with all logits at once, with compiled blocks
python ideas/train_speed.py forms --heap # the same, the C library told to keep freed memory
python ideas/train_speed.py functions # steps of ladders with functions of one pass, and with torch's operations
python ideas/train_speed.py bits         # hashes of the weights after 3 steps, by threads and form
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal
from unittest import mock

import torch
import tyro

from nachim.budget.layout import Job
from nachim.budget.shape import shape
from nachim.lab.speed import run_of, stepping
from nachim.lab.work import next_token_loss
from nachim.model import build, fused, loss
from nachim.model.decoder import initialise
from nachim.spec import BPE, WSD, AdamW, Data, Run, Train, plain
from nachim.train import rates
from nachim.train.guard import Guard
from nachim.train.step import Stepper

BATCH, LENGTH, VOCAB = 8, 512, 8192
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
Form = Literal["as it is", "all logits", "compiled blocks"]
What = Literal["products", "forms", "functions", "bits"]


def stepper_of(form: Form) -> Stepper:
    """A stepper of the decoder; fp32, AdamW."""
    model = plain(d_model=256, n_layers=4, d_head=64, vocab_size=VOCAB)
    tokens = BATCH * LENGTH
    train = Train(tokens=1000 * tokens, batch_tokens=tokens, optimizer=AdamW(lr=1e-3), schedule=WSD())
    module = build(model, model.d_model)
    initialise(module, 0)
    if form == "compiled blocks":
        for block in module.blocks:
            block.compile(dynamic=False)
    data = Data(tokenizer=BPE(vocab_size=VOCAB), seq_len=LENGTH)
    return Stepper(Run(model=model, data=data, train=train), module, next_token_loss)


def taking(stepper: Stepper, form: Form) -> Callable[[], object]:
    """One step of the form."""
    x_BT = torch.randint(VOCAB, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    guard = Guard(1e-3)

    def step() -> None:
        with mock.patch.object(loss, "WHOLE", 2**40) if form == "all logits" else nullcontext():
            stepper.take(0, x_BT, guard)

    return step


def used(work: Callable[[], object]) -> tuple[float, float, int]:
    """User and system CPU-seconds of one call, and its page faults."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt


def products() -> None:
    """Rates of the products of a step's forward pass, and of squares."""
    shapes = ((1024, 1024, 1024), *((BATCH * LENGTH, inner, columns) for inner, columns in ((256, 768), (256, 1360))))
    with mock.patch.dict(rates.DTYPES, fp16=torch.float16):
        found = rates.matmul_rates(shapes, ("fp32", "bf16", "fp16"), "cpu", 0.5)
    for (sizes, precision), rate in found.items():
        print(f"{precision} {sizes}: {rate / 1e9:.0f} GFLOP/s")


def forms(rounds: int, heap: bool) -> None:
    """Every form in turn."""
    if heap:
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    names: tuple[Form, ...] = ("as it is", "all logits", "compiled blocks")
    steps = {name: taking(stepper_of(name), name) for name in names}
    for name, step in steps.items():
        print(f"{name}: first step {sum(used(step)[:2]):.1f} CPU-s", flush=True)
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in steps}
    gc.collect()
    gc.freeze()  # as the loop does
    times: list[float] = []
    gc.callbacks.append(lambda phase, told: times.append(time.process_time()))
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(used(step))
    collecting = sum(end - begin for begin, end in zip(times[::2], times[1::2], strict=True))
    steps_taken = sum(user + system for rows in found.values() for user, system, _ in rows)
    print(f"garbage collection: {collecting / steps_taken:.3%} of the steps, {len(times) // 2} times")
    for name, rows in found.items():
        user, system, faults = (statistics.median(column) for column in zip(*rows, strict=True))
        rate = BATCH * LENGTH / statistics.median(row[0] + row[1] for row in rows)
        print(f"{name}: {rate:,.0f} tokens/core-s; user {user:.2f} s, system {system:.2f} s, {faults:,.0f} page faults")


def functions(rounds: int) -> None:
    """Steps of the family's shapes in turn, with functions of one pass and without."""
    for width, batch in ((32, 256), (32, 1024), (48, 512), (64, 1024), (96, 2048), (256, 4096)):
        model = shape(width, 512)
        run = run_of(Job(model=model, seq_len=128, batch_tokens=batch, optimizer="muon", precision="fp32"))
        ours, torchs, ratios = stepping(run, "cpu"), stepping(run, "cpu"), []
        for _ in range(3 * rounds):
            spent = []
            for step, library in ((ours, fused.library), (torchs, lambda: None)):
                with mock.patch.object(fused, "library", library):
                    spent.append(sum(sum(used(step)[:2]) for _ in range(5)) / 5)
            ratios.append((spent[1] / spent[0], *spent))
        ratio, one, other = (statistics.median(column) for column in zip(*ratios, strict=True))
        name = f"{model.n_layers} x {width}, {batch} tokens"
        print(f"{name}: {1e3 * one:.1f} ms, torch's {1e3 * other:.1f} ms of a core: {ratio:.2f}", flush=True)


def bits() -> None:
    """Whether weights depend on the threads."""
    for form in ("as it is", "compiled blocks"):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            stepper = stepper_of(form)
            step = taking(stepper, form)
            for _ in range(3):
                step()
            digest = hashlib.sha256()
            for weight in stepper.masters.weights:
                digest.update(weight.detach().numpy().tobytes())
            print(f"{form}, {threads} threads: {digest.hexdigest()[:16]}", flush=True)


def main(what: tyro.conf.Positional[What], rounds: int = 5, heap: bool = False) -> None:
    """Try it."""
    torch.set_num_threads(1)
    tried = {"products": products, "forms": lambda: forms(rounds, heap), "bits": bits}
    (tried | {"functions": lambda: functions(rounds)})[what]()


if __name__ == "__main__":
    tyro.cli(main)
