"""The verb `nachim fit`: a table of finished runs in, a scaling law with intervals out."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from nachim.app.corpora import show_corpora, summarise_corpora
from nachim.app.flags import flag_lines, summarise_flags
from nachim.app.optima import estimate_lines, estimate_warnings, optima_lines, summarise_estimates, summarise_optima
from nachim.law import Observations, Study, read, study
from nachim.law.flag import find, without
from nachim.law.interval import LARGEST_FACTOR
from nachim.law.laws import ALL, LAWS
from nachim.spec.error import UserError

LEAST_DRIFT = 0.01
"""Percent of loss below which a correction is not worth a line."""
MEANING = {
    "E": "loss that no scale removes (the entropy of text)",
    "A": "size of the model-scale term",
    "B": "size of the data term",
    "alpha": "how fast a larger model lowers the loss",
    "beta": "how fast more tokens lower the loss",
    "k": "coupling of model and data; 1 is Chinchilla's law",
}


def fit(
    obs: Annotated[Path, tyro.conf.Positional],
    holdout: Path | None = None,
    law: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(("auto", *ALL)) + "}")] = "auto",
    scale: Literal["params", "flops_per_token"] | None = None,
    flops: float | None = None,
    within: float = 0.25,
    by: Literal["group"] | None = None,
    bootstrap: int | None = None,
    drop_flagged: bool = False,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Fit a scaling law to finished runs: how loss falls with model scale and with tokens.

    OBS is a CSV or parquet table, one row a run, with the columns `tokens`, `loss` and `params` or
    `flops_per_token` (optional: `flops`, `lr`, `batch_tokens`, `seed`, `group`, `weight`).

    The cheap runs forecast the dearer ones first. Laws count by how little they miss there, and runs by how near they
    are to the next budget; the forecast is a mean, its intervals stretched until they would have covered the rollouts.
    Coefficients are the leading law's, fitted to all runs. A change of regime is reported, and laws that tie.

    Example: nachim fit ladder.csv --holdout big.csv --json

    Args:
        obs: Table of finished runs to fit.
        holdout: Table of other runs, not fitted, on which error and interval coverage are measured.
        law: chinchilla is E + A·x^-alpha + B·D^-beta; coupled is E + (A·x^-alpha + B·D^-beta)^k;
            auto weighs them by their forecasts. The others stand in docs/laws.md, with the columns they read.
        scale: What x is; by default flops_per_token (M) where that column is present, else params (N).
        flops: Compute at which to show the optimum: not one model but all that are as good within a tolerance.
        within: That tolerance, in percent of the best loss.
        by: `--by group` takes the column `group` as each run's corpus, fits the corpora jointly, tests whether their
            exponents differ, and shows how the optimum at --flops shifts (default: 10 times the dearest run).
        bootstrap: Number of refits that the intervals are drawn from; by default 200, fewer for very large tables.
        drop_flagged: Leave out the flagged rows (duplicated, diverged, under-tuned, outliers). By default they are
            shown and fitted: Huber's loss bounds their pull, and a law that is wrong flags good runs too.
        seed: Seed of the bootstrap.
        json: Print one JSON object instead of tables.
    """
    _check(by, holdout, bootstrap)
    runs = read(obs)
    unseen = read(holdout) if holdout else None
    if unseen is not None:
        unseen.x(scale or runs.scales[0])
    flags = find(runs, scale)
    runs = without(runs, flags) if drop_flagged else runs
    if by:
        summary = summarise_corpora(runs, law, scale, seed, flops)
    else:
        reading = study(runs, law=law, scale=scale, seed=seed, draws=bootstrap)
        summary = summarise(reading, runs, unseen) | summarise_flags(runs, flags, drop_flagged, unseen, flops)
        summary["optima"] = None if flops is None else summarise_optima(reading, flops, within)
    if json:
        print(jsonlib.dumps(summary))
    else:
        show_corpora(summary, obs) if by else _show(summary)
    return 0


def _check(by: str | None, holdout: Path | None, bootstrap: int | None) -> None:
    if bootstrap is not None and bootstrap < 20:
        raise UserError(f"--bootstrap is {bootstrap}: a 90 % interval needs at least 20 refits, a steady one 200")
    if by and (holdout or bootstrap):
        name = "--holdout" if holdout else "--bootstrap"
        raise UserError(f"{name} does not go with --by {by}: fit one corpus at a time for it")


def summarise(reading: Study, runs: Observations, unseen: Observations | None) -> dict[str, Any]:
    """Everything `nachim fit` reports, as plain JSON values; errors and widths in percent."""
    best = reading.fit
    estimators = summarise_estimates(runs, reading) if reading.exponents else []
    return {
        "law": best.law.name,
        "formula": best.law.formula,
        "scale": best.scale,
        "coefficients": reading.coefficients,
        "interval90": {name: list(ends) for name, ends in reading.interval90.items()},
        "objective": best.objective,
        "exponents": reading.exponents or None,
        "exponents_interval90": {name: list(ends) for name, ends in reading.exponents_interval90.items()} or None,
        "train": {"n": best.n, "mape": best.mape},
        "holdout": None if unseen is None else asdict(reading.held_out(unseen)),
        "rollout_error": dict(reading.errors),
        "shares": {name: float(share.sum()) for name, share in reading.lead.items()},
        "noise": 100 * reading.noise,
        "rollout_coverage90": reading.coverage,
        "conformal_factor": reading.factor,
        "drift": 100 * float(np.expm1(reading.drift.shift)),
        "undecided": reading.undecided,
        "spread": _spread(reading),
        "isoflop": _second_opinion(estimators),
        "regime": reading.regime
        and {"flops": reading.regime.flops, "percent": reading.regime.percent, "reason": str(reading.regime)},
        "starts": {"tried": best.starts, "at_best": best.starts_at_best},
        "condition": best.condition,
        "certificate": best.certificate.report(),
        "seconds": best.seconds,
        "warnings": _warnings(reading) + (estimate_warnings(estimators) if estimators else []),
    }


def _spread(reading: Study) -> dict[str, Any] | None:
    """What gives a forecast from this law its interval: see `nachim.law.published.Spread`; None for special laws."""
    if reading.fit.law.name not in LAWS:
        return None
    best, units = reading.fit, reading.fit.sample.units
    theta = best.law.coefficients(reading.refits[best.law.name], units)
    log_a = np.log(theta["A"]) - theta["alpha"] * np.log(units.x)
    log_b = np.log(theta["B"]) - theta["beta"] * np.log(units.tokens)
    powers = [theta[name] for name in ("alpha", "beta", "k") if name in theta]
    return {"x": units.x, "tokens": units.tokens, "covariance": np.cov([theta["E"], log_a, log_b, *powers]).tolist()}


def _second_opinion(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The parabolas' answer, with the other estimators beside it; none for a law that splits no compute."""
    if not found:
        return {"exponent": None, "reason": "the law does not split compute between scale and tokens", "estimators": []}
    first = found[0]
    if first["exponent"] is None:
        return {"exponent": None, "reason": first["reason"], "estimators": found}
    return {
        "exponent": first["exponent"],
        "interval90": first["interval90"],
        "budgets": first["budgets"] + first["at_edge"],
        "at_edge": first["at_edge"],
        "estimators": found,
    }


def _warnings(reading: Study) -> list[str]:
    best, found = reading.fit, []
    if reading.regime:
        found.append(f"change of regime: {reading.regime}; do not forecast across it")
    if reading.undecided:
        found.append(reading.undecided)
    if reading.factor >= LARGEST_FACTOR:
        found.append(f"the rollouts asked for intervals more than {LARGEST_FACTOR:g} times as wide: expect misses")
    return found + best.certificate.doubts()


def _show(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title=f"{summary['law']} law: loss = {summary['formula']}, x = {summary['scale']}",
        title_justify="left",
    )
    for head, side in (("", "left"), ("value", "right"), ("90 % interval", "right"), ("what it is", "left")):
        table.add_column(head, justify=side)  # type: ignore[arg-type]
    for name, value in summary["coefficients"].items():
        low, high = summary["interval90"][name]
        meaning = MEANING[name] if summary["law"] in LAWS else ""
        table.add_row(name, f"{value:.4g}", f"{low:.4g} to {high:.4g}", meaning)
    for name, value in (summary["exponents"] or {}).items():
        low, high = summary["exponents_interval90"][name]
        grows = "scale" if name == "model" else "tokens"
        table.add_row(
            f"{name} exponent", f"{value:.3f}", f"{low:.3f} to {high:.3f}", f"optimal {grows} ∝ C^{value:.3f}"
        )
    console.print(table)
    for line in _lines(summary):
        console.print(line, highlight=False, markup=False)


def _lines(summary: dict[str, Any]) -> list[str]:
    train, held = summary["train"], summary["holdout"]
    lines = [
        f"fitted: {train['n']} runs, mean error {train['mape']:.2f} %, {summary['seconds']:.2f} s",
        summary["certificate"]["line"],
    ]
    for name, error in summary["rollout_error"].items():
        lines.append(f"rollouts (cheap runs forecast dearer ones): {name} misses by {error:.2f} % on average")
    if summary["rollout_coverage90"] is not None:
        lines.append(
            f"  of those forecasts, {summary['rollout_coverage90']:.0f} % lie inside their 90 % intervals, which the "
            f"rollouts stretched {summary['conformal_factor']:.2f} times"
        )
    if abs(summary["drift"]) >= LEAST_DRIFT:
        lines.append(f"  dearer runs lay {summary['drift']:+.2f} % off them, steadily: forecasts are corrected by that")
    if held:
        lines.append(
            f"held out: {held['n']} runs, mean error {held['mape']:.2f} %, {held['coverage90']:.0f} % "
            f"inside their 90 % interval, of median width {held['median_width']:.2f} %"
        )
    lines += estimate_lines(summary["isoflop"]["estimators"])
    if summary.get("optima"):
        lines += optima_lines(summary["optima"])
    return lines + [f"warning: {text}" for text in summary["warnings"]] + flag_lines(summary)
