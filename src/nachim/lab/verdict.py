"""Forecast held against result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nachim.spec import UserError
from nachim.spec.disk import write_text


def judge(sealed: dict[str, Any], result: dict[str, Any], out: Path) -> dict[str, Any]:
    """The verdict, also written to `out`: measured bpb, signed error in percent of the forecast, inside or outside.

    Raises UserError when `result` is of another run than the forecast's.
    """
    if sealed["run_fingerprint"] != result["fingerprint"]:
        raise UserError("the result is not of the run the forecast was sealed for: judge each run by its own forecast")
    measured = result["validation"]["bpb"]
    verdict = {
        "measured": measured,
        "error_percent": 100 * (measured / sealed["bpb"] - 1),
        "inside": sealed["low"] <= measured <= sealed["high"],
        "sha256": sealed["sha256"],
    }
    write_text(out, json.dumps(verdict, indent=2) + "\n")
    return verdict
