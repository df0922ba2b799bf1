"""The command line: one verb a file, typed functions, and one sentence for every mistake."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import tyro

import nachim
from nachim.spec import UserError
from nachim.train.stopping import Stopped

VERBS = {
    "quickstart": "nachim.app.quickstart:quickstart",
    "plan": "nachim.app.plan:plan",
    "cost": "nachim.app.cost:cost",
    "measure": "nachim.app.measure:measure",
    "ladder": "nachim.app.ladder:ladder",
    "fit": "nachim.app.fit:fit",
    "next": "nachim.app.next:next_",
    "backtest": "nachim.app.backtest:backtest_",
    "transfer": "nachim.app.transfer:transfer",
    "forecast": "nachim.app.forecast:forecast",
    "compare": "nachim.app.compare:compare",
    "tasks": "nachim.app.tasks:tasks",
    "train": "nachim.app.train:train",
    "diff": "nachim.app.diff:diff",
    "track": "nachim.app.track:track",
    "serve": "nachim.app.serve:serve",
    "chat": "nachim.app.chat:chat",
    "import": "nachim.app.import_:import_",
    "export": "nachim.app.export:export",
    "convert": "nachim.app.convert:convert",
    "quantize": "nachim.app.quantize:quantize",
    "fisher": "nachim.app.fisher:fisher",
    "data": "nachim.app.data:data",
    "collapse": "nachim.app.collapse:collapse",
    "mix": "nachim.app.mix:mix",
    "report": "nachim.app.report:report",
    "generate": "nachim.app.generate:generate",
}
"""Where each verb's function stands. Only that of the verb asked for is imported: a plan must not wait for plotly."""


def main() -> None:
    """Run the verb named on the command line; exit with 2 on bad input, 130 when interrupted with nothing saved."""
    asked = sys.argv[1:]
    warnings.showwarning = _told
    try:
        if asked and asked[0] in VERBS:
            status = tyro.cli(function_of(asked[0]), prog=f"nachim {asked[0]}", args=asked[1:])
        else:
            verbs = {verb: function_of(verb) for verb in VERBS}
            status = tyro.extras.subcommand_cli_from_dict(verbs, prog="nachim", description=ABOUT)
    except UserError as error:
        print(f"nachim: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"nachim: {stopped}", file=sys.stderr)
        if "--json" in asked:
            print(json.dumps({"stopped_at": stopped.step}))
        sys.exit(0)
    except KeyboardInterrupt:
        print("nachim: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)


def _told(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
    """A warning as a sentence; where it comes from only where the code that gave it is not ours."""
    ours = Path(filename).is_relative_to(Path(nachim.__file__).parent)
    print(f"nachim: {message}" if ours else f"{filename}:{lineno}: {category.__name__}: {message}", file=sys.stderr)


def function_of(verb: str) -> Callable[..., int]:
    """The function behind a verb of `VERBS`."""
    module, _, name = VERBS[verb].partition(":")
    function: Callable[..., int] = getattr(importlib.import_module(module), name)
    return function


ABOUT = (
    "A compute budget in, a sealed forecast and a verified language model out. Start with `nachim quickstart`: it "
    "climbs a ladder of small real training runs, fits a scaling law, seals a forecast, trains the model it is about, "
    "and says whether it was right. `nachim plan` says what a budget should train."
)
