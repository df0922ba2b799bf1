"""Tokens that were guessed and checked, against the law of the model: chi-square, and the rate of acceptance.

    python bench/guesses.py [--draws 40000] [--json]

Six vocabularies of 8 tokens with laws p (the model's) and q (the guesser's) drawn at random, each under other sampling
options. Every draw goes through the functions that the engine calls. Printed: the p-value of the counts against p
(after Bonferroni it should be above 1e-4 times one over the number of cases), and how many standard errors the rate of
acceptance is from sum min(p, q) (arXiv 2211.17192, theorem 3.5).
"""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import chisquare

from nachim.infer.request import Sampling
from nachim.infer.sample import draw, law, uniform
from nachim.infer.speculate import accepted

TOKENS = 8
CASES = (
    {},
    {"temperature": 0.6},
    {"temperature": 1.4},
    {"top_p": 0.8},
    {"temperature": 0.8, "top_k": 4},
    {"min_p": 0.1, "top_p": 0.95},
)


def measured(number: int, options: dict[str, float], draws: int) -> dict[str, object]:
    """One case."""
    generator = torch.Generator().manual_seed(number)
    sampling = Sampling(seed=number, **options)
    p_logits_V, q_logits_V = (1.5 * torch.randn(TOKENS, generator=generator) for _ in range(2))
    p_V, q_V = law(p_logits_V, sampling), law(q_logits_V, sampling)
    counts, held = np.zeros(TOKENS), 0
    sequence = SimpleNamespace(sample=0, tokens=range(0))
    sample = SimpleNamespace(sequence=sequence, served=SimpleNamespace(request=SimpleNamespace(sampling=sampling)))
    for place in range(draws):
        sequence.tokens = range(place)
        guess = draw(q_V, uniform(sampling, 0, place, "draft"))
        token = accepted(sample, p_logits_V, guess, q_V)
        counts[token] += 1
        held += token == guess
    met = p_V.numpy() > 0
    rate = torch.minimum(p_V, q_V).sum().item()
    return {
        "options": options,
        "p_value": float(chisquare(counts[met], draws * p_V.numpy()[met]).pvalue),
        "outside": int(counts[~met].sum()),
        "accepted": held / draws,
        "expected": rate,
        "errors_off": (held / draws - rate) / max(1e-12, (rate * (1 - rate) / draws) ** 0.5),
    }


def main() -> None:
    """Draw, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=40_000, help="of each case")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = [measured(number, case, options.draws) for number, case in enumerate(CASES)]
    if options.json:
        print(json.dumps({"draws": options.draws * len(CASES), "cases": told}))
        return
    table = Table("options", "p", "outside the law", "accepted", "expected", "standard errors off")
    for row in told:
        names = ", ".join(f"{name} {value}" for name, value in row["options"].items()) or "temperature 1"
        numbers = (f"{row['p_value']:.3f}", f"{row['outside']}", f"{row['accepted']:.4f}", f"{row['expected']:.4f}")
        table.add_row(names, *numbers, f"{row['errors_off']:+.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
