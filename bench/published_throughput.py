"""Published training throughputs, predicted from the hardware table and their layouts alone.

    python -m bench.published_throughput [--write docs/throughput.md] [--calibrate]

Runs marked "calibration" fixed the three calibrated numbers of `nachim.budget.time`: `--calibrate` repeats the search
on its coarse grid, by the mean error of these runs. All others are held out, and nothing else was fitted to any run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.published_runs import CAPPED, Row, rows
from nachim.budget import time
from nachim.budget.collective import WIRE

GRID = {
    "MATMUL": (0.65, 0.7, 0.75, 0.8, 0.85),
    "TENSOR_HIDDEN": (0.5, 0.7, 0.8, 0.9),
    "DATA_HIDDEN": (0.25, 0.5, 0.75, 0.9),
}


def calibrate(found: Sequence[Row]) -> list[tuple[float, dict[str, float]]]:
    """Mean absolute log error of the calibration runs on the grid, smallest first; the module is left as it was."""
    chosen, before = [row for row in found if row.calibration], {name: getattr(time, name) for name in GRID}
    results = []
    for values in itertools.product(*GRID.values()):
        tried = dict(zip(GRID, values, strict=True))
        vars(time).update(tried)
        mean = statistics.mean(abs(math.log(row.predicted() / row.published)) for row in chosen)
        results.append((mean, tried))
    vars(time).update(before)
    return sorted(results, key=lambda result: result[0])


def layout_text(row: Row) -> str:
    """The layout in a few letters."""
    layout = row.layout
    parts = [f"{name} {getattr(layout, name)}" for name in ("dp", "tp", "pp", "cp") if getattr(layout, name) > 1]
    parts += [f"ZeRO-{layout.zero}"] if layout.zero else []
    parts += [f"{layout.schedule} x{layout.virtual}" if layout.virtual > 1 else layout.schedule] * (layout.pp > 1)
    parts += [f"micro-batch {layout.micro_batch}"]
    recompute = "half" if row.half else layout.recompute
    return ", ".join(parts + ([f"{recompute} recomputation"] if recompute != "none" else []))


def error(row: Row) -> float:
    """Relative error of the prediction."""
    return row.predicted() / row.published - 1


def summary(found: Sequence[Row]) -> str:
    """Median and quartile of the absolute errors."""
    errors = sorted(abs(error(row)) for row in found)
    within = sum(e <= 0.15 for e in errors)
    return f"median {statistics.median(errors):.1%}, worst {errors[-1]:.1%}, {within} of {len(errors)} within 15 %"


def markdown(found: Sequence[Row]) -> str:
    """The table as it stands in docs/throughput.md."""
    lines = [
        "| source | run | devices | layout | precision | published | predicted | error |",
        "|---|---|---|---|---|--:|--:|--:|",
    ]
    for row in found:
        mark = " (calibration)" if row.calibration else ""
        lines.append(
            f"| {row.source} | {row.label}{'' if row.fused else ', eager'}{mark} | {row.cluster.count} x "
            f"{row.cluster.device.name} | {layout_text(row)} | {row.job.precision} | {row.published:,.0f} | "
            f"{row.predicted():,.0f} | {error(row):+.0%} |".replace(", eager, eager", ", eager")
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--calibrate", action="store_true", help="search the calibrated numbers again, and print the best"
    )
    parser.add_argument("--write", type=Path, help="write the page there instead of printing it")
    arguments = parser.parse_args()
    found = rows()
    if arguments.calibrate:
        for mean, tried in calibrate(found)[:5]:
            print(f"{mean:.3f}", tried)
        return
    held_out = [row for row in found if not row.calibration]
    sources = sorted({row.source for row in found}, key=[row.source for row in found].index)
    by_source = "\n".join(
        f"- {source}: {summary([row for row in held_out if row.source == source])}"
        for source in sources
        if any(row.source == source for row in held_out)
    )
    page = PAGE.format(
        table=markdown(found),
        all=summary(found),
        held_out=summary(held_out),
        by_source=by_source,
        matmul=time.MATMUL,
        attention=time.ATTENTION,
        bandwidth=time.BANDWIDTH,
        fused=time.TRAFFIC[True],
        eager=time.TRAFFIC[False],
        tensor=time.TENSOR_HIDDEN,
        data=time.DATA_HIDDEN,
        capped=CAPPED,
        calibration=len(found) - len(held_out),
        wire=WIRE,
        held=len(held_out),
        count=len(found),
    )
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(page)
    else:
        print(page)


PAGE = """# Published throughputs, predicted

The planner says how long a training step takes (`nachim.budget.time`) from the model's declared costs, the layout, and
the hardware table (`nachim.budget.device`). Here it says so for published runs. Tokens/s are of one device.
Made by `python -m bench.published_throughput --write docs/throughput.md`.

**Held out ({held} runs): {held_out}.** All {count} runs: {all}.

## Numbers behind it

| number | value | from |
|---|--:|---|
| share of the device's lasting matrix rate that matrices reach (`MATMUL`) | {matmul} | calibrated |
| share of tensor-parallel traffic hidden, with sequence parallelism (`TENSOR_HIDDEN`) | {tensor} | calibrated |
| share of the traffic of ZeRO-2 and 3 that hides (`DATA_HIDDEN`) | {data} | calibrated |
| the same share for attention (`ATTENTION`) | {attention} | arXiv 2307.08691, 2407.08608 |
| share of the memory's bandwidth (`BANDWIDTH`) | {bandwidth} | measured copies on H100: 3.02 of 3.35 TB/s |
| share of a link's bandwidth (`WIRE`) | {wire} | nccl-tests on A100 and H100 |
| transfers of a kept value, compiled and eager (`TRAFFIC`) | {fused} and {eager} | counted over a Llama block |

The three calibrated numbers are the best of a coarse grid on {calibration} runs, marked in the table
(`--calibrate` repeats it). The optimum is flat: the next best points have a mean error 0.1 to 0.4 points higher.
The runs were chosen before any was predicted, and none was dropped. Those of OLMo-core are on eight devices as its
scripts say; for the 13B no number is published, so it is not among the calibration runs. (It was for a while: with it
`DATA_HIDDEN` comes out as 0.25, and the median error of the held-out runs as 9.9 %.)

How far "held out" goes: a first replay, with guesses (0.75 for `MATMUL`, 0.5 and 1.0 for the two hidden shares) and no
calibration, had a median error of 12.7 %, and it showed every run. After it, three things were decided: to calibrate
on eight runs in place of four, to let the traffic of ZeRO-2 and 3 hide only in part, and to take the A100's lasting
rate as its best burst. Until then it stood 9 % lower, as for boards held at their power limit; published runs that
hold 247 TFLOP/s (79 % of the peak, more than that rate) contradict that.

## What the errors say

- Small models on H100 (OLMo 1B, GPT 1.8B) are predicted about 20 % too fast, runs of PyTorch on A100 about 13 % too
  slow: one share of the matrix rate serves both.
- GPT 22B of arXiv 2205.05198 is the worst row. That software (2022) hid no tensor-parallel traffic, which is largest
  there, where {tensor:.0%} of it is taken as hidden.
- torchtitan's H100 have slower memory and are held at 500 of 700 W. Their rate is taken as {capped:.2f} of the table's:
  the cube root of the power that is left above 150 W, an assumption and not a fit.
- The runs of fms-fsdp, on networks of 0.4 and 0.8 Tb/s a node, are predicted too slow: gradients are charged in fp32
  here, and charging bf16 would explain up to a third of it.

By source, held-out runs:

{by_source}

## All runs

{table}
"""

if __name__ == "__main__":
    main()
