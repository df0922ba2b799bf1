"""From logits to a token: the law a request asks for, and a draw from it that nothing else disturbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nachim.infer.request import Sampling

Stream = Literal["token", "draft", "accept", "residual"]
STREAMS: tuple[Stream, ...] = ("token", "draft", "accept", "residual")


def uniform(sampling: Sampling, sample: int, position: int, stream: Stream = "token") -> float:
    """The uniform number in [0, 1) that decides one thing of one token: Philox of seed, sample and position alone."""
    counter = [0, position, sample, STREAMS.index(stream)]
    return float(np.random.Generator(np.random.Philox(counter=counter, key=[sampling.seed or 0, 0])).random())


def adjusted(
    logits_V: Tensor, tokens: Sequence[int], n_prompt: int, sampling: Sampling, allowed_V: Tensor | None = None
) -> Tensor:
    """Logits [V] with biases and penalties, and -inf where a token is not allowed.

    `tokens` are the prompt's `n_prompt` and those generated. The repetition penalty divides positive logits of all of
    them, and multiplies negative ones (arXiv 1909.05858, sec. 4.1); presence and frequency penalties are taken off
    logits of generated ones, once and once for each time (OpenAI).
    """
    if allowed_V is not None:
        logits_V = torch.where(allowed_V.to(logits_V.device), logits_V, float("-inf"))
    if sampling.plain:
        return logits_V
    generated = tokens[n_prompt:]
    logits_V = logits_V.clone() if allowed_V is None else logits_V
    if sampling.logit_bias:
        index = torch.tensor(list(sampling.logit_bias), device=logits_V.device)
        logits_V[index] += torch.tensor(
            list(sampling.logit_bias.values()), dtype=logits_V.dtype, device=logits_V.device
        )
    if sampling.repetition_penalty != 1:
        index = torch.tensor(sorted(set(tokens)), device=logits_V.device)
        met, penalty = logits_V[index], sampling.repetition_penalty
        logits_V[index] = torch.where(met < 0, met * penalty, met / penalty)
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        index, times = torch.unique(torch.tensor(generated, device=logits_V.device), return_counts=True)
        logits_V[index] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits_V


def law(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [V], fp64, of adjusted logits: temperature, then top-k, top-p (arXiv 1904.09751) and min-p
    (arXiv 2407.01082), each on what the one before left. At temperature 0 the likeliest token has all."""
    if sampling.greedy:
        return torch.zeros_like(logits_V, dtype=torch.float64).index_fill(0, logits_V.argmax(), 1.0)
    logits_V = logits_V.double() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits_V):
        least = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, index = logits_V.sort(stable=True)
        below = ordered.softmax(0).cumsum(0) <= 1 - sampling.top_p
        below[-1] = False
        logits_V = logits_V.masked_fill(torch.zeros_like(below).scatter(0, index, below), float("-inf"))
    p_V = logits_V.softmax(0)
    if sampling.min_p > 0:
        p_V = p_V.masked_fill(p_V < sampling.min_p * p_V.max(), 0.0)
        p_V = p_V / p_V.sum()
    return p_V


def draw(p_V: Tensor, u: float) -> int:
    """The token at which the cumulative probability first exceeds `u`; `p_V` need not sum to 1."""
    sums = p_V.cumsum(0).cpu().numpy()
    token = int(np.searchsorted(sums, u * sums[-1], side="right"))
    return min(token, int(np.searchsorted(sums, sums[-1], side="left")))  # u * total may round up to the total


def residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """What to draw from where a draft was refused: max(0, p - q), not normalised (arXiv 2211.17192, sec. 2.3)."""
    return (p_V - q_V).clamp_min(0)


def likeliest(logprobs_V: Tensor, count: int) -> dict[int, float]:
    """The `count` likeliest tokens and their log-probabilities, best first, lowest number first among equals."""
    values, tokens = logprobs_V.sort(descending=True, stable=True)
    return dict(zip(tokens[:count].tolist(), values[:count].tolist(), strict=True))


def likeliest_of(logits_RV: Tensor) -> list[tuple[int, float]]:
    """The likeliest token of each row and its logit, NaN where there is one; the lowest number among equals."""
    if not len(logits_RV):
        return []
    tokens_R = logits_RV.argmax(-1)
    return list(zip(tokens_R.tolist(), logits_RV.gather(1, tokens_R[:, None])[:, 0].tolist(), strict=True))
