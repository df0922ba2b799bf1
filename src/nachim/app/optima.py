"""What `nachim fit` shows of optima: near-optimal sets at a budget, and the estimators of the exponent side by side."""

from __future__ import annotations

from typing import Any

from nachim.law import Observations, Study
from nachim.law.isoflop import Estimate, estimates
from nachim.law.optima import optima

MISFIT = 2.0
"""A law that misses its runs by more than this many times their scatter within a budget is wrong near the optimum."""
NAMES = {
    "parabola": "IsoFLOP parabolas",
    "akima": "IsoFLOP Akima splines",
    "surface": "the fitted surface",
}


def summarise_optima(reading: Study, flops: float, percent: float) -> dict[str, Any]:
    """The near-optimal set within `percent` of the best loss at compute `flops`, as plain JSON values."""
    found = optima(reading, flops, percent / 100)
    return {
        "flops": found.flops,
        "within_percent": percent,
        "scale": reading.fit.scale,
        "x": found.x,
        "tokens": found.tokens,
        "loss": found.loss,
        "x_range": list(found.x_range),
        "tokens_range": list(found.tokens_range),
        "x_outer": list(found.x_outer),
        "tokens_outer": list(found.tokens_outer),
        "x_inner": found.x_inner and list(found.x_inner),
        "tokens_inner": found.tokens_inner and list(found.tokens_inner),
        "by_law": {name: list(ends) for name, ends in found.by_law.items()},
        "exponent": found.exponent,
        "exponent_interval90": list(found.exponent_interval90),
    }


def optima_lines(found: dict[str, Any]) -> list[str]:
    """The set in sentences."""
    scale = found["scale"]
    lines = [
        f"best at {found['flops']:.3g} FLOPs: {scale} {found['x']:.3g} on {found['tokens']:.3g} tokens, "
        f"loss {found['loss']:.4f}",
        f"as good within {found['within_percent']:g} %: {scale} {_ends(found['x_range'])}, "
        f"tokens {_ends(found['tokens_range'])}",
    ]
    if found["x_inner"]:
        lines.append(
            f"  the set holds at least (in 90 % of refits and laws): {scale} {_ends(found['x_inner'])}, "
            f"tokens {_ends(found['tokens_inner'])}"
        )
    else:
        lines.append("  the set holds nothing for sure: the runs do not fix the optimum so well")
    lines.append(
        f"  the set reaches at most (in 90 % of refits and laws): {scale} {_ends(found['x_outer'])}, "
        f"tokens {_ends(found['tokens_outer'])}"
    )
    return lines


def summarise_estimates(runs: Observations, reading: Study) -> list[dict[str, Any]]:
    """The exponent of the optimal scale by each estimator, as plain JSON values; biases are those of exact runs."""
    return [_estimate(one) for one in estimates(runs, reading)]


def _estimate(one: Estimate) -> dict[str, Any]:
    bias = one.bias
    return {
        "method": one.method,
        "exponent": one.exponent,
        "interval90": one.interval90 and list(one.interval90),
        "budgets": one.budgets,
        "noise_percent": 100 * one.noise,
        "at_edge": one.at_edge,
        "reason": one.reason,
        "bias": bias and {"exponent": bias.exponent, "x_percent": 100 * bias.x, "flops": bias.flops},
        "warning": f"{NAMES[one.method]} are biased here: {bias}" if bias and bias.matters else None,
    }


def estimate_warnings(found: list[dict[str, Any]]) -> list[str]:
    """Where an estimator is known to be biased, and where the law is no judge of that."""
    told = [one["warning"] for one in found if one["warning"]]
    by = {one["method"]: one for one in found}
    law, runs = by["surface"]["noise_percent"], by["parabola"]["noise_percent"]
    if by["parabola"]["exponent"] is not None and law > MISFIT * runs:
        told.append(
            f"near the best of each budget the law misses runs by {law:.1f} %, parabolas by {runs:.1f} %: "
            f"trust the IsoFLOP exponents before the surface's, or leave out runs far from the best of their budget"
        )
    return told


def estimate_lines(found: list[dict[str, Any]]) -> list[str]:
    """One line an estimator."""
    lines = []
    for one in found:
        name = NAMES[one["method"]]
        if one["exponent"] is None:
            lines.append(f"exponent by {name}: none ({one['reason']})")
            continue
        low, high = one["interval90"]
        off = "" if one["bias"] is None else f", of which {one['bias']['exponent']:+.3f} is the method's own bias"
        lines.append(
            f"exponent by {name}: optimal scale ∝ C^{one['exponent']:.3f} ({low:.3f} to {high:.3f}; "
            f"{one['budgets']} budgets{off})"
        )
    return lines


def _ends(pair: list[float]) -> str:
    return f"{pair[0]:.3g} to {pair[1]:.3g}"
