"""The sealed forecast: what the target run will measure, written and hashed before the run starts."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nachim.budget.shape import family
from nachim.law import Study, check_regime
from nachim.spec import Data, Decoder, Run, UserError
from nachim.spec.disk import write_text

LEVEL = 0.9
WIDER = 2.0
"""How many times the M of a ladder's largest shape a target's M is at most, and its longest run the target's tokens: a
law's errors make what lies farther look best."""


@dataclass(frozen=True)
class Forecast:
    """Predicted validation `bpb` of `run`, with its 90 % prediction interval."""

    run: Run
    bpb: float
    low: float
    high: float
    law: str


def reachable(data: Data, runs: Sequence[Run], flops: float, unique_tokens: int) -> list[tuple[float, Decoder]]:
    """The family's decoders, each with its M, that a law of `runs` may speak of and that take `flops` in an epoch: of
    their depth, where they have one.

    Raises UserError when none does: tokens seen again are worth less, and the law has seen none.
    """
    scale = [float(run.flops_per_token) for run in runs]
    low, high = min(scale), WIDER * max(scale)
    most = most_tokens(runs, unique_tokens)
    depths = {run.model.n_layers for run in runs}
    depth = depths.pop() if len(depths) == 1 else None
    found = [
        (m, model)
        for m, model in family(data.tokenizer.vocab_size, data.seq_len, depth)
        if flops / m <= most and low <= m <= high
    ]
    if not found:
        raise UserError(
            f"no shape spends {flops:.3g} FLOP within {most:,.0f} tokens (one epoch, and twice the ladder's longest "
            f"run) and the ladder's M of {low:.3g} to {high:.3g}: forecast a smaller target, or bring more text"
        )
    return found


def most_tokens(runs: Sequence[Run], unique_tokens: int) -> float:
    """The tokens that a target of the ladder `runs` takes at most: an epoch, and `WIDER` times the longest run's."""
    return min(unique_tokens, WIDER * max(run.train.tokens for run in runs))


def choose_shape(reading: Study, data: Data, runs: Sequence[Run], flops: float, unique_tokens: int) -> Decoder:
    """Of the decoders that `runs` make reachable at `flops`, the one with the lowest predicted bpb."""
    fits = reachable(data, runs, flops, unique_tokens)
    m = np.array([pair[0] for pair in fits])
    point, _, _ = reading.predict(m, flops / m)
    return fits[int(np.argmin(point))][1]


def forecast(reading: Study, run: Run) -> Forecast:
    """What `run` will measure. Raises UserError across a change of regime, with the reason."""
    check_regime(reading.regime, run.flops)
    point, low, high = reading.predict(run.flops_per_token, run.train.tokens, LEVEL)
    return Forecast(run, float(point), float(low), float(high), reading.fit.law.name)


def seal(prediction: Forecast, reading: Study, observations: Path, out: Path, target: Path) -> dict[str, Any]:
    """Write the sealed forecast to `out` and return it. Raises UserError when the run it is about has begun.

    `sha256` covers every other field; `observations_sha256` the table of which the law was fitted to so many `runs`.
    """
    if target.exists():
        raise UserError(f"{target} has begun: a forecast is sealed before its run, so choose another folder")
    sealed = {
        "run": prediction.run.to_json(),
        "run_fingerprint": prediction.run.fingerprint,
        "flops": prediction.run.flops,
        "bpb": prediction.bpb,
        "low": prediction.low,
        "high": prediction.high,
        "level": LEVEL,
        "law": prediction.law,
        "runs": int((reading.fit.sample.weight > 0).sum()),
        "coefficients": reading.coefficients,
        "noise": reading.noise,
        "observations_sha256": hashlib.sha256(observations.read_bytes()).hexdigest(),
        "sealed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    sealed["sha256"] = digest(sealed)
    write_text(out, json.dumps(sealed, indent=2) + "\n")
    return sealed


def open_seal(path: Path) -> dict[str, Any]:
    """The sealed forecast at `path`. Raises UserError when it was changed after it was sealed."""
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        intact = sealed["sha256"] == digest({key: value for key, value in sealed.items() if key != "sha256"})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} holds no sealed forecast: {error}") from error
    if not intact:
        raise UserError(f"{path} was changed after it was sealed: its SHA-256 does not match; forecast again elsewhere")
    return sealed


def digest(fields: dict[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of `fields`."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
