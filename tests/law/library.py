"""For the laws beside Chinchilla's and the coupled one: published constants, formulas written out, runs that obey them.

The constants are the papers' own where they print a set of them; the rest are of the size that runs show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nachim.law import Law, Observations
from nachim.law.laws import SPECIAL

LAWS: dict[str, Law] = {law.name: law for law in SPECIAL}
exp, log10 = np.exp, np.log10

TRUTH: dict[str, dict[str, float]] = {
    "kaplan": {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},  # arXiv 2001.08361 eqs. 1.1, 1.2
    "overtraining": {"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121},
    # arXiv 2506.10972, as its authors' code and github PlanarG/active-sl give them
    "farseer": {
        "s": -0.062465473,
        "q": 0.13,
        "S": 0.1284880679442551,
        "B": 230.73437075885855,
        "b": -0.1729,
        "Q": -1.544209554,
        "A": -1.665630816,
        "a": 0.0458999999999619,
        "E": 3.133347198805445,
    },
    # arXiv 2305.16264 appendices A and B, eqs. 16 to 20
    "constrained": {
        "E": exp(0.6254804),
        "A": exp(6.255414),
        "B": exp(7.3049974),
        "alpha": 0.3526596,
        "beta": 0.3526596,
        "rd_star": 15.387756,
        "rn_star": 5.309743,
    },
    # arXiv 2202.01169 table 3, S-BASE
    "routing": {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478},
    # arXiv 2402.07871 table 1
    "granularity": {"c": 0.47, "g": 2.1, "a": 18.1, "b": 30.8, "alpha": 0.115, "gamma": 0.58, "beta": 0.147},
    # arXiv 2501.12370 table 3
    "sparsity": {
        "e": 0.94,
        "a": 16612.50,
        "b": 5455.67,
        "c": 0.4598,
        "d": 17.26,
        "alpha": 0.5962,
        "beta": 0.3954,
        "lambda": -0.1666,
        "delta": 0.1603,
        "gamma": 0.1595,
    },
    # arXiv 2411.04330 appendix K: A, alpha and the gammas
    "precision": {
        "E": 2.76,
        "A": 4299.0,
        "B": 18000.0,
        "alpha": 0.4965,
        "beta": 0.59,
        "gamma_weights": 2.6745,
        "gamma_activations": 2.2102,
        "gamma_cache": 0.9578,
    },
    "vocabulary": {"E": 0.5, "A1": 50.0, "A2": 20.0, "B": 200.0, "alpha1": 0.3, "alpha2": 0.25, "beta": 0.28},
    "power-scale": {"E": 1.69, "A": 406.4, "alpha": 0.34},
    "power-tokens": {"E": 1.69, "B": 410.7, "beta": 0.28},
    "power-flops": {"E": 1.69, "A": 1000.0, "gamma": 0.155},
}
TRUTH["precision-weights"] = {
    n: v for n, v in TRUTH["precision"].items() if n not in ("gamma_activations", "gamma_cache")
}


def _kaplan(t: Mapping[str, float], N: float, D: float) -> float:
    return ((t["N_c"] / N) ** (t["alpha_N"] / t["alpha_D"]) + t["D_c"] / D) ** t["alpha_D"]


def _overtraining(t: Mapping[str, float], N: float, D: float) -> float:
    C, M = 6 * N * D, D / N
    return t["E"] + (t["a"] * M ** t["eta"] + t["b"] * M ** -t["eta"]) * C ** -t["eta"]


def _farseer(t: Mapping[str, float], N: float, D: float) -> float:
    falls = exp(t["A"] * N ** t["a"] + t["E"])
    return exp(t["s"] * N ** t["q"] + t["S"]) + exp(t["B"] * N ** t["b"] + t["Q"]) / D**falls


def _constrained(t: Mapping[str, float], N: float, D: float, U: float) -> float:
    u_d = min(U, D)
    r_d = D / u_d - 1
    G = (t["alpha"] * t["A"] / (t["beta"] * t["B"])) ** (1 / (t["alpha"] + t["beta"]))
    a, b = t["beta"] / (t["alpha"] + t["beta"]), t["alpha"] / (t["alpha"] + t["beta"])
    budget = 6 * (u_d * G) ** (1 / b)  # D_opt(C) = (C/6)^b / G
    u_n = min(G * (budget / 6) ** a, N)
    r_n = N / u_n - 1
    n = u_n + u_n * t["rn_star"] * (1 - exp(-r_n / t["rn_star"]))
    d = u_d + u_d * t["rd_star"] * (1 - exp(-r_d / t["rd_star"]))
    return t["E"] + t["A"] / n ** t["alpha"] + t["B"] / d ** t["beta"]


def _routing(t: Mapping[str, float], N: float, E: float) -> float:
    hat = 1 / (1 / (E - 1 + (1 / t["E_start"] - 1 / t["E_max"]) ** -1) + 1 / t["E_max"])
    return 10 ** (t["a"] * log10(N) + t["b"] * log10(hat) + t["c"] * log10(N) * log10(hat) + t["d"])


def _granularity(t: Mapping[str, float], N: float, D: float, G: float) -> float:
    return t["c"] + (t["g"] / G ** t["gamma"] + t["a"]) / N ** t["alpha"] + t["b"] / D ** t["beta"]


def _sparsity(t: Mapping[str, float], N: float, D: float, share: float) -> float:
    S = 1 - share
    whole = t["a"] / N ** t["alpha"] + t["b"] / D ** t["beta"] + t["c"] / (1 - S) ** t["lambda"]
    return whole + t["d"] / ((1 - S) ** t["delta"] * N ** t["gamma"]) + t["e"]


def _precision(t: Mapping[str, float], N: float, D: float, *bits: float) -> float:
    gammas = (t["gamma_weights"], t.get("gamma_activations", 1.0), t.get("gamma_cache", 1.0))
    for each, gamma in zip(bits, gammas, strict=False):
        N *= 1 - exp(-each / gamma)
    return t["A"] / N ** t["alpha"] + t["B"] / D ** t["beta"] + t["E"]


def _vocabulary(t: Mapping[str, float], N: float, V: float, D: float) -> float:
    return t["E"] + t["A1"] / N ** t["alpha1"] + t["A2"] / V ** t["alpha2"] + t["B"] / D ** t["beta"]


WRITTEN: dict[str, Callable[..., float]] = {
    "kaplan": _kaplan,
    "overtraining": _overtraining,
    "farseer": _farseer,
    "constrained": _constrained,
    "routing": _routing,
    "granularity": _granularity,
    "sparsity": _sparsity,
    "precision": _precision,
    "precision-weights": _precision,
    "vocabulary": _vocabulary,
    "power-scale": lambda t, N: t["E"] + t["A"] / N ** t["alpha"],
    "power-tokens": lambda t, D: t["E"] + t["B"] / D ** t["beta"],
    "power-flops": lambda t, C: t["E"] + t["A"] / C ** t["gamma"],
}


def columns(name: str, n: int = 100) -> dict[str, np.ndarray]:
    """Inputs of a law, scattered: 1e7 to 5e9 parameters, 1e9 to 5e11 tokens, and whatever else it reads."""
    rng = np.random.default_rng(0)
    x, tokens = 10 ** rng.uniform(7, 10.3 if name == "constrained" else 9.7, n), 10 ** rng.uniform(9, 11.7, n)
    bits = np.array([2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0])
    every = {
        "x": x,
        "tokens": tokens,
        "flops": 6 * x * tokens,
        "unique_tokens": tokens / np.maximum(1, 10 ** rng.uniform(-0.5, 2, n)),
        "experts": 2.0 ** rng.integers(0, 10, n),
        "granularity": 2.0 ** rng.integers(0, 5, n),
        "active_share": 2.0 ** -rng.integers(0, 6, n),
        "vocab_params": x**0.7 * 10 ** rng.uniform(1.5, 2.7, n),
    } | {f"{part}_bits": rng.choice(bits, n) for part in ("weight", "activation", "cache")}
    return {each: every[each] for each in LAWS[name].inputs}


def runs(name: str, noise: float = 0.0) -> Observations:
    """Runs that obey a law with its TRUTH, up to log-normal `noise`."""
    given = columns(name)
    loss = LAWS[name].predict(TRUTH[name], **given) * exp(noise * np.random.default_rng(1).standard_normal(100))
    ones = np.ones(100)
    extra = {each: column for each, column in given.items() if each not in ("x", "tokens", "flops")}
    flops = given.get("flops", np.empty(0))
    own = {"params": given.get("x", ones), "tokens": given.get("tokens", ones), "flops": flops}
    return Observations(loss=loss, extra=extra, **own)
