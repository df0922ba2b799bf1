"""A run's rows for trackers: a run is a directory, so whoever follows its files has all of it, during it or after.

The tracker lives in a process of its own, which reads what the run has written: nothing it does can touch the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from nachim.spec import Run, UserError
from nachim.spec.disk import locked, read_json, write_text
from nachim.train import metrics
from nachim.train.manifest import METRICS
from nachim.train.samples import STATISTICS, read

To = Literal["tensorboard", "trackio", "wandb"]
MARKS, FOLDER, LOG, PROJECT = "track.json", "track", "track.log", "nachim"
EVERY_SECONDS = 1.0
PATIENCE_SECONDS, HASTE_SECONDS = 30.0, 4.0
"""How long a finished run waits for its tracker to take the last rows, and one that was stopped."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """How far a tracker was told: `step`, whose loss was `loss`, in its run of that `number`."""

    step: int = 0
    loss: float | None = None
    number: int = 1


class Tracker(Protocol):
    """What takes rows. A step is told once, and steps rise."""

    where: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of `step`."""

    def close(self) -> None:
        """Write what was taken."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, out: Path, run: Run, mark: Mark) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = out / FOLDER / "tensorboard"
        self.where = f"tensorboard --logdir {folder}"
        self.event, self.summary, self.writer = Event, Summary, EventFileWriter(str(folder))
        begin = SessionLog(status=SessionLog.START)  # what other files hold from here on counts no more
        self.writer.add_event(Event(wall_time=time.time(), step=mark.step + 1, session_log=begin))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar each."""
        scalars = [self.summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.add_event(self.event(wall_time=time.time(), step=step, summary=self.summary(value=scalars)))

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


class Trackio:
    """A run of trackio's project `nachim`, on this machine unless its own environment variables say otherwise."""

    def __init__(self, out: Path, run: Run, mark: Mark) -> None:
        with _on_stderr():
            import trackio

            name = _name(out, mark)
            self.run = trackio.init(project=PROJECT, name=name, config=run.to_json(), resume="allow", embed=False)
        self.where = f"trackio show --project {PROJECT}, run {name}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait for its queue."""
        with _on_stderr():
            self.run.finish()


class Wandb:
    """A run of wandb's project `nachim`: online where somebody is logged in, else files that `wandb sync` uploads."""

    def __init__(self, out: Path, run: Run, mark: Mark) -> None:
        with _on_stderr():
            import wandb

            mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
            folder = out / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            self.teardown = wandb.teardown
            self.run = wandb.init(
                project=PROJECT,
                name=_name(out, mark),
                id=f"{run.fingerprint[:12]}-{mark.number}",
                dir=str(folder),
                mode=mode,
                config=run.to_json(),
                resume="allow" if mode == "online" else None,
            )
        self.where = str(self.run.url or f"wandb sync {folder / 'wandb'}/offline-run-*")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait for its files, or its server."""
        with _on_stderr():
            self.run.finish()
            self.teardown()  # what writes the file is a process of its own


TRACKERS: dict[str, Callable[[Path, Run, Mark], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


def check_installed(to: str) -> None:
    """Raise UserError where the tracker `to` cannot be had."""
    if to not in TRACKERS:
        raise UserError(f"there is no tracker {to}: there are {', '.join(TRACKERS)}")
    if importlib.util.find_spec(to) is None:
        raise UserError(f"{to} is not installed: `pip install 'nachim[{to}]'`, or track later with `nachim track`")


class Feed:
    """Hands one run's rows to one tracker, each once, over any number of processes: how far is kept in `track.json`."""

    def __init__(self, out: Path, to: str) -> None:
        check_installed(to)
        if not (out / "run.json").exists():
            raise UserError(f"{out} holds no run: it has no run.json")
        self.out, self.to, self.run = out, to, Run.load(out / "run.json")
        found = _marks(out).get(to)
        self.mark = Mark(**found) if found else Mark()
        self.tracker: Tracker | None = None

    def more(self) -> int:
        """Hand on what the run has written since; how many rows. A run that was rolled back is told anew."""
        table = metrics.read(self.out / METRICS, sys.maxsize).to_pylist()
        losses = {row["step"]: row["loss"] for row in table}
        if self.mark.step in losses and repr(losses[self.mark.step]) != repr(self.mark.loss):
            self.anew()
        rows = [row for row in table if row["step"] > self.mark.step]
        if not rows:
            return 0
        if self.tracker is None:
            self.tracker = TRACKERS[self.to](self.out, self.run, self.mark)
        inside = self._statistics(rows[0]["step"])
        for row in rows:
            step = row.pop("step")
            self.tracker.log(step, _finite(row) | inside[step])
        self._keep(Mark(step, rows[-1]["loss"], self.mark.number))
        return len(rows)

    def anew(self) -> None:
        """Begin from the first row: in a run of its own, where a tracker cannot take rows back."""
        self.close()
        told = self.mark.step > 0
        self._keep(Mark(number=self.mark.number + told))

    def close(self) -> None:
        """Let the tracker write what it has."""
        if self.tracker is not None:
            self.tracker.close()
            self.tracker = None

    def _statistics(self, first: int) -> dict[int, dict[str, float]]:
        found: dict[int, dict[str, float]] = defaultdict(dict)
        with contextlib.suppress(UserError):  # metrics are worth telling without them
            for row in read(self.out / STATISTICS).to_pylist():
                if row["step"] >= first:
                    found[row["step"]] |= _finite({f"{row['quantity']}/{row['name']}": row["value"]})
        return found

    def _keep(self, mark: Mark) -> None:
        self.mark = mark
        write_text(
            self.out / MARKS, json.dumps(_marks(self.out) | {self.to: dataclasses.asdict(mark)}, indent=1) + "\n"
        )


def replay(out: Path, to: str, anew: bool = False) -> tuple[int, str]:
    """Hand the rows that `to` was not told yet, or all of them `anew`, to it: how many, and where they are to be seen.

    Raises UserError when the tracker is not installed or refuses, or `out` holds no run.
    """
    feed = Feed(out, to)
    with locked(out / "track.lock"):
        try:
            if anew:
                feed.anew()
            rows = feed.more()
            where = feed.tracker.where if feed.tracker else ""
            feed.close()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{to} did not take the rows of {out}: {str(error) or repr(error)}") from error
    return rows, where


@contextlib.contextmanager
def tracking(out: Path, to: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """Have the run in `out` followed by the tracker `to` (None: by none) for the block. A failure is said once."""
    if to is None:
        yield
        return
    check_installed(to)
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    process = context.Process(target=follow, args=(out, to, over, os.getpid()), daemon=True, name=f"track-{to}")
    process.start()
    listener = threading.Thread(target=_listen, args=(process, out, to, say), daemon=True)
    listener.start()
    finished = False
    try:
        yield
        finished = True
    finally:
        over.set()
        listener.join(PATIENCE_SECONDS if finished else HASTE_SECONDS)
        if process.is_alive():
            process.kill()
            say(f"{to} did not take the last rows in time: `nachim track {out} --to {to} --anew` hands them on")


def _listen(process: Any, out: Path, to: str, say: Callable[[str], None]) -> None:
    process.join()
    if process.exitcode > 0:
        lines = (out / LOG).read_text(encoding="utf-8", errors="replace").split("\n") if (out / LOG).exists() else []
        why = next((line for line in reversed(lines) if line.strip()), f"exit status {process.exitcode}")
        say(
            f"{to} failed and follows no more, the run goes on: {why.strip()}; try `nachim track {out} --to {to}` later"
        )


def follow(out: Path, to: str, over: Any, parent: int) -> None:
    """Hand on the rows of the run in `out` until it is `over`, or the process `parent` is no more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the run's process says when it is over
    out.mkdir(parents=True, exist_ok=True)
    log = os.open(out / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with locked(out / "track.lock"):
        feed, seen = None, 0.0
        while True:
            last = over.wait(EVERY_SECONDS) or os.getppid() != parent
            path = out / METRICS
            changed = path.stat().st_mtime if path.exists() else 0.0
            if changed != seen:
                feed = feed or Feed(out, to)
                feed.more()
                seen = changed
            if last:
                break
        if feed:
            feed.close()


def _marks(out: Path) -> dict[str, Any]:
    path = out / MARKS
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _name(out: Path, mark: Mark) -> str:
    name = out.resolve().name
    return name if mark.number == 1 else f"{name}-{mark.number}"


def _finite(row: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in row.items() if value is not None and math.isfinite(value)}


@contextlib.contextmanager
def _on_stderr() -> Iterator[None]:
    """What a tracker prints is no result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
