"""A server held against its own OpenAPI document by schemathesis: requests that it allows, and that it does not.

    python -m venv other && other/bin/pip install schemathesis
    python bench/server_openapi.py --schemathesis other/bin/schemathesis --seconds 600

No answer may have a status of 5xx, or one that the document does not name; every answer must be of the shape it gives;
what its schemas do not allow must be refused, and so must a request without the key. What they allow may still be
refused: no schema says what a grammar is, or that a prompt fits the context. The server serves a tiny untrained model
of its own, or DIR; schemathesis stands apart from what nachim needs. The status is schemathesis's own.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench._chatty import checkpoint

KEY = "a-key"
CONTEXT = 64
"""Of the tiny model: an answer without a limit is to be short."""
SAMPLES = 8
"""At once: a request for 128 of them is refused, and need not be waited for."""


def main() -> None:
    """Read the options, serve, let schemathesis ask; its own output and status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", type=Path, help="the model; a tiny one is made where none is given")
    parser.add_argument("--schemathesis", default="schemathesis", help="its command")
    parser.add_argument("--examples", type=int, default=100, help="of each kind of request to each path")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful", help="of schemathesis")
    parser.add_argument("--seconds", type=int, help="of asking at least; else once through all")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = asked.dir or checkpoint(Path(made) / "tiny", context=CONTEXT)
        command = [str(Path(sys.executable).with_name("nachim")), "serve", str(folder), "--port", "0", "--name", "tiny"]
        command += ["--samples", str(SAMPLES)]
        environment = {**os.environ, "NACHIM_API_KEY": KEY}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            said = re.search(r"http://\S+:\d+", process.stdout.readline() if process.stdout else "")
            if said is None:
                sys.exit("the server did not start")
            run = [asked.schemathesis, "run", f"{said[0]}/openapi.json", "--header", f"Authorization: Bearer {KEY}"]
            run += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure"]
            run += ["--seed", str(asked.seed), "--max-examples", str(asked.examples), "--request-timeout", "300"]
            run += ["--phases", asked.phases]
            run += ["--max-response-time", "300", "--suppress-health-check", "too_slow"]
            run += [] if asked.seconds is None else ["--max-time", str(asked.seconds)]
            status = subprocess.run(run, check=False, cwd=made).returncode
            process.terminate()
            sys.exit(status or process.wait(60))
        finally:
            process.kill()


if __name__ == "__main__":
    main()
