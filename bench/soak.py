"""Faults thrown at a short run until it ends, over and over: is it ever lost, is each one told, are the bits the same?

    python bench/soak.py [--faults 200] [--seed 0] [--json]

A sitting is a process of its own. It is killed (SIGKILL) at a random moment or while it saves; then, perhaps, a file
is cut short, removed, or has one bit changed. Or it is asked to stop (SIGTERM), or its disk is full or read-only. The
next sitting must go on, say what happened, and end with the very bytes of a run that nobody disturbed. `lost` counts
runs that did not; `told` the faults with a sentence; `began_again` those where every checkpoint was damaged and the
sentence's advice, to remove them, was followed. A full and a read-only disk are a tmpfs, where it may be mounted; else
a limit on the size of files, and a folder without the right to write.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; a forked process must not inherit threads

import contextlib
import gc
import json as jsonlib
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import BPE, AdamW, Attention, Cosine, Data, Decoder, Run, SwiGLU, Train, UserError
from nachim.train.heartbeat import pulse
from nachim.train.loop import Stage, Watch, train
from nachim.train.stopping import Stopped, stop_on_signal

VOCABULARY, LENGTH, ROWS = 257, 8, 4
SAVE_SECONDS = 0.02
LONGEST = 0.12
"""CPU-seconds after its first sign of life within which a sitting is struck."""
FREE_BYTES = 20_000
IN_CHECKPOINT = ("weights.safetensors", "state/.metadata", "state/__0_0.distcp", "metrics.parquet", "manifest.json")
BESIDE = ("run.json", "metrics.parquet")
KINDS = ("kill", "kill in a save", "stop", "full disk", "read-only disk", "cut", "cut", "flip", "flip", "flip beside")
KINDS = (*KINDS, "remove", "remove beside")
TOLD = {
    "kill": "without a word",
    "kill in a save": "without a word",
    "stop": "stopped at step",
    "full disk": "disk",
    "read-only disk": "writable folder",
}
"""Words of the sentence that each kind of fault must bring about; for a damaged file, its name."""


def run_of(steps: int) -> Run:
    """A run of a second or so."""
    attention = Attention(n_heads=2, n_kv_heads=1, d_head=4)
    model = Decoder(vocab_size=VOCABULARY, d_model=8, n_layers=1, attention=attention, ffn=SwiGLU(d_ff=16))
    batch = ROWS * LENGTH
    recipe = Train(tokens=steps * batch, batch_tokens=batch, optimizer=AdamW(lr=0.01), schedule=Cosine())
    return Run(model=model, data=Data(tokenizer=BPE(vocab_size=VOCABULARY), seq_len=LENGTH), train=recipe)


def batches(first: int, count: int) -> np.ndarray:
    """Sequences that are a pure function of their index."""
    return (np.arange(first, first + count)[:, None] * 7 + np.arange(LENGTH + 1)) % VOCABULARY


def sit(run: Run, out: Path, said: Path, largest: int | None = None) -> int:
    """Train `run` in `out` in a process of its own, which writes no file beyond `largest` bytes; its number.

    Exit status 0: finished, or stopped as asked. 2: an error in one sentence, in `said`. 1: anything else, in `said`.
    """
    child = os.fork()
    if child:
        return child
    status = 0
    try:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        model = build(run.model, run.model.d_model)
        initialise(model, 0)
        with stop_on_signal() as stopping:
            stage = Stage(checkpoint_seconds=SAVE_SECONDS, watch=Watch(stopping=stopping))
            train(run, model, batches, next_token_loss, lambda model: {"loss": 0.0}, out, stage)
    except Stopped as stopped:
        said.write_text(str(stopped))
    except UserError as error:
        said.write_text(str(error))
        status = 2
    except BaseException:
        said.write_text(traceback.format_exc())
        status = 1
    os._exit(status)


@dataclass
class Disk:
    """Where runs lie: a tmpfs of its own if it may be mounted, else a plain folder."""

    folder: Path
    mounted: bool = False

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Disk]:
        """A disk for the block."""
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
        mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
        try:
            yield cls(folder, mounted)
        finally:
            if mounted:
                subprocess.run(["umount", str(folder)], check=True)
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def full(self) -> Iterator[int | None]:
        """No room within the block, or the largest size of a file."""
        if not self.mounted:
            yield FREE_BYTES
            return
        room = shutil.disk_usage(self.folder).free - FREE_BYTES
        (self.folder / "ballast").write_bytes(bytes(max(0, room)))
        try:
            yield None
        finally:
            (self.folder / "ballast").unlink()

    @contextlib.contextmanager
    def read_only(self, out: Path) -> Iterator[None]:
        """Nothing may be written within the block."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        else:
            out.chmod(0o500)
        try:
            yield
        finally:
            if self.mounted:
                subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)
            else:
                out.chmod(0o700)

    def allows(self, kind: str) -> bool:
        """Whether a fault of `kind` can be made here: root may write everywhere."""
        return kind != "read-only disk" or self.mounted or os.getuid() != 0


@dataclass
class Tally:
    """What came of the faults."""

    made: Counter[str] = field(default_factory=Counter)
    told: int = 0
    untold: list[str] = field(default_factory=list)
    runs: int = 0
    lost: int = 0
    identical: int = 0
    began_again: int = 0
    why: list[str] = field(default_factory=list)


class Soak:
    """One run after another, each disturbed until it ends."""

    def __init__(self, steps: int, faults: int, disk: Disk, rng: random.Random, whole: bytes) -> None:
        self.run, self.disk, self.rng, self.whole = run_of(steps), disk, rng, whole
        self.tally = Tally()
        kinds = [kind for kind in KINDS if disk.allows(kind)]
        self.kinds: list[str] = []
        while len(self.kinds) < faults:
            self.kinds += rng.sample(kinds, len(kinds))
        del self.kinds[faults:]
        self.said = disk.folder.parent / f"{disk.folder.name}.said"
        self.owed: list[tuple[str, str, int]] = []
        self.seen = self.child = 0
        self.out = disk.folder

    def one_run(self) -> None:
        """A run from its beginning to its end."""
        self.out = self.disk.folder / f"run-{self.tally.runs}"
        self.tally.runs += 1
        while not (self.out / "result.json").exists():
            status = self.sitting(self.kinds.pop() if self.kinds else "")
            sentence = self.said.read_text()
            self.tick_off([*self.journal(), sentence])
            if not self.heeded(status, sentence):
                self.tally.lost += 1
                self.tally.why.append(sentence)
                break
        else:
            found = newest(self.out)
            self.tally.identical += found is not None and (found / IN_CHECKPOINT[0]).read_bytes() == self.whole
        self.tally.untold += [f"{kind}: {word}" for kind, word, _ in self.owed]
        self.owed.clear()
        shutil.rmtree(self.out)

    def sitting(self, kind: str) -> int:
        """One process, struck by a fault of `kind`; its exit status, negative for the signal that ended it."""
        self.said.write_text("")
        self.began: float | None = None
        self.seen = len(self.journal())
        if kind == "full disk":
            with self.disk.full() as largest:
                status = self.ended(sit(self.run, self.out, self.said, largest))
        elif kind == "read-only disk":
            self.out.mkdir(exist_ok=True)
            with self.disk.read_only(self.out):
                status = self.ended(sit(self.run, self.out, self.said))
        else:
            status = self.ended(sit(self.run, self.out, self.said), kind)
        if kind and not self.strike(kind, status):
            self.kinds.insert(0, kind)
        return status

    def ended(self, child: int, kind: str = "") -> int:
        """Wait for a sitting, and strike it by a signal where `kind` asks for one."""
        self.child = child
        moment, sent = self.rng.uniform(0.0, LONGEST), not kind
        try:
            while True:
                found, status = os.waitpid(child, 0 if sent else os.WNOHANG)
                if found:
                    return os.waitstatus_to_exitcode(status)
                if not sent and self.due(kind, moment):
                    os.kill(child, signal.SIGTERM if kind == "stop" else signal.SIGKILL)
                    sent = True
                time.sleep(0.002)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise

    def due(self, kind: str, moment: float) -> bool:
        """Whether to strike now: in the sitting's first save, or so many CPU-seconds after its first sign of life."""
        if kind == "kill in a save":
            return any(self.out.glob(f"checkpoint/.step-*.{self.child}.tmp/*"))
        if self.began is None:
            beat = pulse(self.out)
            self.began = spent(self.child) if beat is not None and beat.pid == self.child else None
        return self.began is not None and spent(self.child) - self.began > moment

    def strike(self, kind: str, status: int) -> bool:
        """Damage a file where `kind` is about one, and note what must be told. False where there was nothing to strike.

        That is so where the run was over before, or had not begun.
        """
        over, beat = (self.out / "result.json").exists(), pulse(self.out)
        begun = beat is not None and beat.pid == self.child
        if over or (kind not in ("full disk", "read-only disk") and not begun) or (kind == "stop" and status):
            return False
        word, since = TOLD.get(kind, ""), self.seen
        if not word:
            folder = newest(self.out)
            if folder is None:
                return False
            beside = kind.endswith("beside")
            path = self.out / self.rng.choice(BESIDE) if beside else folder / self.rng.choice(IN_CHECKPOINT)
            if not path.exists():
                return False
            damage(path, kind, self.rng)
            word, since = str(path) if beside else folder.name, len(self.journal())
        self.tally.made[kind] += 1
        self.owed.append((kind, word, since))
        return True

    def tick_off(self, told: list[str]) -> None:
        """Count the faults of which one of the sentences `told` since they were made says the word."""
        left = [one for one in self.owed if not any(one[1] in sentence for sentence in told[one[2] :])]
        self.tally.told += len(self.owed) - len(left)
        self.owed = left

    def heeded(self, status: int, sentence: str) -> bool:
        """Do what the sentence of an error advises; False where it advises nothing, or there is none."""
        if status <= 0 or (status == 2 and any(TOLD[kind] in sentence for kind in ("full disk", "read-only disk"))):
            return True
        if status == 2 and "remove" in sentence:
            shutil.rmtree(self.out / "checkpoint")
            self.tally.began_again += 1
            return True
        return False

    def journal(self) -> list[str]:
        """Sentences in the run's journal."""
        path = self.out / "journal.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [jsonlib.loads(line)["said"] for line in lines]


def spent(process: int) -> float:
    """CPU-seconds of a process's main thread."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return 0.0


def newest(out: Path) -> Path | None:
    """The newest checkpoint in `out`."""
    return max(out.glob("checkpoint/step-*"), default=None)


def damage(path: Path, kind: str, rng: random.Random) -> None:
    """Cut a file short, remove it, or change one of its bits."""
    if kind.startswith("remove"):
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if kind == "cut":
        del content[at:]
    else:
        content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def undisturbed(run: Run, disk: Disk) -> bytes:
    """The file of weights at the end of a run that nothing befell."""
    out, said = disk.folder / "whole", disk.folder / "whole.said"
    _, status = os.waitpid(sit(run, out, said), 0)
    found = newest(out)
    if status or found is None:
        raise SystemExit(f"the undisturbed run failed: {said.read_text()}")
    content = (found / IN_CHECKPOINT[0]).read_bytes()
    shutil.rmtree(out)
    return content


def soak(faults: int, seed: int, steps: int) -> dict[str, Any]:
    """Throw `faults` faults at runs of `steps` steps; what came of them."""
    began = time.monotonic()
    with Disk.made() as disk:
        trial = Soak(steps, faults, disk, random.Random(seed), undisturbed(run_of(steps), disk))
        while trial.kinds:
            trial.one_run()
        trial.said.unlink()
        tally = trial.tally
        return {
            "faults": sum(tally.made.values()),
            "by_kind": dict(sorted(tally.made.items())),
            "told": tally.told,
            "untold": tally.untold,
            "runs": tally.runs,
            "lost": tally.lost,
            "why_lost": tally.why,
            "identical": tally.identical,
            "began_again": tally.began_again,
            "tmpfs": disk.mounted,
            "seconds": round(time.monotonic() - began, 1),
        }


def main(faults: int = 200, seed: int = 0, steps: int = 150, json: bool = False) -> None:
    """Faults thrown at short runs; exits with 1 when a run was lost, ended with other bits, or a fault was not told."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a sitting's own collection then leaves alone what all share
    found = soak(faults, seed, steps)
    if json:
        print(jsonlib.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:12} {value}")
    raise SystemExit(bool(found["lost"] or found["untold"] or found["identical"] < found["runs"]))


if __name__ == "__main__":
    tyro.cli(main)
