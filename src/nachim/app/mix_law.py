"""What a mixture law says, as plain values and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Column, Table

from nachim.law.forms import Array
from nachim.law.mixture import Best, MixtureFit, plain


def summarise(law: MixtureFit, target: Array, best: Best, scale: Mapping[str, float]) -> dict[str, Any]:
    """Everything said of a mixture law, as plain JSON values; errors in percent of loss."""
    runs = law.runs
    forecast = runs.losses * np.exp(-law.held_out.T)
    off = 100 * np.abs(runs.losses / forecast - 1)
    whole = 100 * np.abs((runs.losses @ target) / (forecast @ target) - 1)
    longest = np.all(
        [runs.scales[name] > 0.99 * law.largest[name] for name in law.scales] or [runs.seed == runs.seed], 0
    )
    means = {
        one: float((runs.losses @ target)[longest & (runs.mixture == one)].mean()) for one in runs.mixture[longest]
    }
    first = min(means, key=lambda one: means[one])
    trained = runs.shares[runs.mixture == first][0]
    worth = law.worth(trained, best.point, target, scale)
    return {
        "runs": len(runs),
        "mixtures": int(runs.mixture.max()) + 1,
        "corpora": list(runs.corpora),
        "target": dict(zip(runs.texts, target.tolist(), strict=True)),
        "scale": dict(scale),
        "coefficients": {
            text: {name: dict(zip(("value", "low", "high"), found, strict=True)) for name, found in each.items()}
            for text, each in law.coefficients().items()
        },
        "weights": best.shares,
        "interval90": {name: list(ends) for name, ends in best.interval90.items()},
        "loss": dict(zip(("value", "low", "high"), best.forecast.loss, strict=True)),
        "texts": {
            name: dict(zip(("value", "low", "high"), one, strict=True)) for name, one in best.forecast.texts.items()
        },
        "best_trained": {"weights": dict(zip(runs.corpora, trained.tolist(), strict=True)), "loss": means[first]},
        "worth": plain(worth),
        "held_out_error": {
            "weighted": _mean(whole),
            **{name: _mean(column) for name, column in zip(runs.texts, off.T, strict=True)},
        },
        "unexplained": {
            name: float(100 * np.sqrt((row**2).mean())) for name, row in zip(runs.texts, law.residuals, strict=True)
        },
        "held": list(best.held),
        "doubts": law.doubts(best),
    }


def _mean(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def show_law(told: dict[str, Any]) -> list[RenderableType]:
    """The law in tables and sentences."""
    weights = Table("corpus", right("best share"), right("90 %"), title="weights of least loss", title_justify="left")
    for name, share in told["weights"].items():
        low, high = told["interval90"][name]
        weights.add_row(name, f"{share:.3f}", f"{low:.3f}–{high:.3f}")
    heads = ("expected", "90 % of one run", "held-out error", "unexplained")
    texts = Table("held-out text", *(right(head) for head in heads))
    rows = {**told["texts"], "weighted": told["loss"]}
    for name, one in rows.items():
        error, left = told["held_out_error"][name], told["unexplained"].get(name)
        cells = (f"{one['value']:.4f}", f"{one['low']:.4f}–{one['high']:.4f}", _percent(error), _percent(left))
        texts.add_row(name, *cells)
    first = told["best_trained"]
    shares = ", ".join(f"{name} {share:.3f}" for name, share in first["weights"].items())
    lines = [f"the best mixture trained ({shares}) came to {first['loss']:.4f}"]
    lines += [f"{name} is at the most that it may be" for name in told["held"]]
    return [weights, texts, *lines, *(f"beware: {doubt}" for doubt in told["doubts"])]


def show_verdict(told: dict[str, Any]) -> list[RenderableType]:
    """The forecast of longer runs beside what they measured."""
    heads = ("tokens", "forecast", "90 %", "measured", "error", "inside")
    table = Table("weights", *(right(head) for head in heads), title="sealed, then trained", title_justify="left")
    for sealed, row in zip(told["sealed"]["runs"], told["verdict"]["runs"], strict=True):
        middle, low, high = sealed["loss"]
        cells = (f"{row['tokens']:,.0f}", f"{middle:.4f}", f"{low:.4f}–{high:.4f}", f"{row['measured']:.4f}")
        table.add_row(row["name"], *cells, f"{row['error_percent']:+.2f} %", "yes" if row["inside"] else "no")
    return [table, verdict_line(told["sealed"], told["verdict"])]


def verdict_line(sealed: dict[str, Any], verdict: dict[str, Any]) -> str:
    """What choosing the weights was forecast to be worth, and was."""
    said = (
        "The chosen weights did better than the run's own" if verdict["better"] else "The run's own weights did better"
    )
    if sealed["worth"] is None or verdict["worth"] is None:
        return said + "."
    forecast, found = ({name: times(value) for name, value in one["worth"].items()} for one in (sealed, verdict))
    return (
        f"{said}: worth {found['multiplier']} times the tokens, forecast {forecast['multiplier']} "
        f"({forecast['low']} to {forecast['high']})."
    )


def times(value: float | None) -> str:
    """A multiplier of tokens; None is one that no number of tokens would reach."""
    return "any number of" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def right(head: str) -> Column:
    """A column of numbers."""
    return Column(head, justify="right")
