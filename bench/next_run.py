"""Seconds to choose among many candidate runs, and to plan until none helps: python bench/next_run.py [--rounds 5]

The study (fits, rollouts, bootstraps) is timed apart: a choice needs it once, and `nachim fit` makes it anyway.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from nachim.law import LAWS, Candidates, Observations, Study, Target, next_runs, study

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""Published constants of Chinchilla's law (arXiv 2203.15556 section 3.3): the law the bench's runs follow."""


def grid(count: int, low: float, high: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scales and tokens of `count` runs of `low` to `high` FLOP, 2 to 200 tokens a parameter."""
    ratio, flops = 10 ** rng.uniform(0.3, 2.3, count), 10 ** rng.uniform(np.log10(low), np.log10(high), count)
    params = np.sqrt(flops / 6 / ratio)
    return params, ratio * params


def reading(count: int) -> Study:
    """The study of `count` runs with 0.3 % noise."""
    rng = np.random.default_rng(0)
    params, tokens = grid(count, 1e17, 1e20, rng)
    loss = LAWS["chinchilla"].predict(TRUTH, params, tokens) * np.exp(0.003 * rng.standard_normal(count))
    return study(Observations(tokens=tokens, params=params, loss=loss))


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rounds", type=int, default=5)
    rounds = ask.parse_args().rounds
    print(f"{'runs':>6} {'candidates':>11} {'study, s':>9} {'next_runs, s (median, least)':>30} {'planned':>8}")
    for count, many in ((40, 500), (245, 500), (1000, 500), (245, 2000)):
        began = time.perf_counter()
        found = reading(count)
        took = time.perf_counter() - began
        params, tokens = grid(many, 1e18, 1e21, np.random.default_rng(1))
        offer = Candidates(params, tokens, 6 * params * tokens)
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            advice = next_runs(found, offer, Target(flops=1e23), budget=1e21)
            times.append(time.perf_counter() - began)
        both = f"{statistics.median(times):.3f}  {min(times):.3f}"
        print(f"{count:>6} {many:>11} {took:>9.2f} {both:>30} {len(advice.picks):>8}")


if __name__ == "__main__":
    main()
