"""The verb `nachim track`: a run's folder in, its rows in a tracker out."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Literal

import tyro


def track(
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    to: Literal["tensorboard", "trackio", "wandb"],
    anew: bool = False,
    json: bool = False,
) -> int:
    """Hand a run's metrics and statistics to a tracker: of a run that is over, or is still training.

    Rows that the tracker was told already are not told again, so that the verb may be called as often as one likes;
    `nachim train --track` does the same while it trains. A tracker is an extra: pip install 'nachim[wandb]'.

    Example: nachim track runs/first --to tensorboard

    Args:
        directory: The run's folder.
        to: The tracker.
        anew: Tell all rows again: in a new run of the tracker, where it cannot take rows back.
        json: Print one JSON object instead of a sentence.
    """
    from nachim.lab.track import replay

    rows, where = replay(directory, to, anew)
    if json:
        print(jsonlib.dumps({"rows": rows, "to": to, "where": where}))
    elif rows:
        print(f"{rows:,} rows to {to}: {where}")
    else:
        print(f"{to} knows every row of {directory} already; --anew tells them all again")
    return 0
