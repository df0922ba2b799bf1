"""The verb `nachim fisher`: which weights of a trained model its text needs, to be held while it learns another."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from nachim.app.ask import CACHE
from nachim.app.view import TerminalView
from nachim.spec import Part, Run, UserError
from nachim.spec.disk import new_folder


def fisher(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    sequences: int = 1000,
    on: Annotated[Path | None, tyro.conf.arg(metavar="RECIPE")] = None,
    json: bool = False,
) -> int:
    """Estimate the diagonal Fisher information of a run's newest weights on the text it was trained on.

    Put what this prints as `ewc` into a recipe that starts from the run and reads other text: what the old text needs
    is held, the rest may move (arXiv 1612.00796). docs/continual.md says what strengths gave, and that some old text
    mixed into the new, where there is any, holds more for less. DIR holds the weights too, and needs RUN no more.

    Example: nachim fisher runs/first --out runs/first-fisher

    Args:
        run: The folder of a run, trained here or imported.
        out: The folder to write; it must be new or empty.
        sequences: Training sequences to look at; one weight's relative error is about sqrt(2 / sequences).
        on: A recipe whose data to take in place of the run's own: an imported model does not know its own.
        json: Print one JSON object instead of a sentence.
    """
    with TerminalView() as view:
        view.stage("estimating Fisher information")
        found = informed(run, out, sequences, on, lambda done: view.share("sequences", done))
    if json:
        print(jsonlib.dumps(found))
    else:
        print(f"{out}: {found['weights']:,} weights, over {found['sequences']:,} sequences in {found['seconds']:.1f} s")
        print(f'hold them with: ewc=EWC(folder="{out}", strength=1.0, fingerprint="{found["fingerprint"]}")')
    return 0


def informed(
    run: Path, out: Path, sequences: int, on: Path | None = None, tick: Callable[[float], None] = lambda done: None
) -> dict[str, Any]:
    """Write the folder; what was written and where it came from, as plain JSON values."""
    from nachim.lab.work import open_batches
    from nachim.model.load import load
    from nachim.model.weights import fingerprint
    from nachim.train import ewc

    if sequences < 1:
        raise UserError(f"--sequences is {sequences}; it must be at least 1")
    data = recipe_of(run, on).data
    with new_folder(out) as folder:
        batches, model = open_batches(data, CACHE), load(run)
        began = time.perf_counter()
        rows = (batches.batch(index, 1)[0] for index in range(sequences))
        information = ewc.fisher(model, rows, seed=data.seed, done=lambda count: tick(count / sequences))
        facts = {
            "run": str(run),
            "run_weights": fingerprint(run),
            "data": data.to_json(),
            "labels": "drawn from the model",
            "sequences": sequences,
            "tokens": sequences * data.seq_len,
            "weights": sum(one.numel() for one in information.values()),
            "trace": sum(float(one.sum()) for one in information.values()),
        }
        found = ewc.save(folder, information, dict(model.named_parameters()), facts)
    return {"out": str(out), "fingerprint": found, **facts, "seconds": time.perf_counter() - began}


def recipe_of(run: Path, on: Path | None) -> Run:
    """The run whose text is meant: that of the recipe `on`, else `run` itself. Raises UserError where it has none."""
    from nachim.app.train import run_of

    if on is not None:
        return run_of(on)
    part = Part.load(run / "run.json")
    if not isinstance(part, Run):
        raise UserError(f"{run} was imported and does not know its text: name a recipe that reads such text with --on")
    return part
