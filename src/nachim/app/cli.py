"""The command line: one verb a file, typed functions, and one sentence for every mistake."""

from __future__ import annotations

import sys

import tyro

from nachim.app.fit import fit
from nachim.app.forecast import forecast
from nachim.app.ladder import ladder
from nachim.app.quickstart import quickstart
from nachim.app.report import report
from nachim.app.train import train
from nachim.spec import UserError

VERBS = {
    "quickstart": quickstart,
    "ladder": ladder,
    "fit": fit,
    "forecast": forecast,
    "train": train,
    "report": report,
}


def main() -> None:
    """Run the verb named on the command line; exit with 2 on bad input, 130 when interrupted."""
    try:
        status = tyro.extras.subcommand_cli_from_dict(VERBS, prog="nachim", description=ABOUT)
    except UserError as error:
        print(f"nachim: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("nachim: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)


ABOUT = (
    "A compute budget in, a sealed forecast and a verified language model out. Start with `nachim quickstart`: it "
    "climbs a ladder of small real training runs, fits a scaling law, seals a forecast, trains the model it is about, "
    "and says whether it was right."
)
