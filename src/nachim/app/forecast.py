"""The verb `nachim forecast`: a ladder in, a sealed forecast out."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import tyro

from nachim.app.ask import open_study
from nachim.app.view import TerminalView


def forecast(
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    flops: float | None = None,
    json: bool = False,
) -> int:
    """Seal a forecast: the best real shape for the target, and the bpb it will reach, before it is trained.

    DIR is the folder of a finished `nachim ladder`. The target is what the study's minutes pay for, at least 10 times
    the ladder's top, unless --flops names another. The seal (spec, point, interval, time, SHA-256) is
    DIR/forecast.json; a second call shows it and changes nothing. A forecast across a change of regime is refused,
    with the reason.

    Example: nachim forecast runs/stdlib-10min-trunks-s0
    """
    with TerminalView() as view:
        study = open_study(directory, view)
        sealed = study.forecast(study.plan(), flops)
    if json:
        print(jsonlib.dumps(sealed))
    else:
        print(
            f"sealed {sealed['sealed_at']}: {sealed['bpb']:.4f} bpb, 90 % interval {sealed['low']:.4f} to "
            f"{sealed['high']:.4f}, at {sealed['flops']:.3g} FLOP\nsha256 {sealed['sha256']}\n"
            f"next   nachim train {directory}"
        )
    return 0
