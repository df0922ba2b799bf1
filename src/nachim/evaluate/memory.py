"""Whether a model has read a text: what its probabilities of the text's tokens say."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from nachim.model import DecoderModule
from nachim.spec import UserError

FEWEST = 2
"""Tokens of a text that can be judged."""


@dataclass(frozen=True)
class Familiarity:
    """How familiar a text is; every score is higher for texts that were read.

    `loss` is the mean log-probability of a token, nat; `zlib` the text's log-probability over the bits that zlib takes
    for it (arXiv 2012.07805, section 5.2); `min_k` the mean of the lowest log-probabilities (arXiv 2310.16789, eq. 1);
    `min_k_plus` the same of log-probabilities less their mean under the model's own distribution, over their standard
    deviation there (arXiv 2404.02936, eq. 3).
    """

    loss: float
    zlib: float
    min_k: float
    min_k_plus: float


def familiarity(
    model: DecoderModule, ids: Sequence[int], text: bytes, share: float, context: int | None
) -> Familiarity:
    """The scores of `text`, whose tokens are `ids`; min-k takes the lowest `share` of tokens, at least one.

    A text longer than `context` tokens is read in pieces. The first token of each is not scored, for nothing stands
    before it. Raises UserError for a text of a single token.
    """
    if len(ids) < FEWEST:
        raise UserError(f"a text of {len(ids)} tokens has none with another before it")
    logprobs, relative = token_scores(model, ids, context)
    return Familiarity(
        loss=float(logprobs.mean()),
        zlib=float(logprobs.sum() / (8 * len(zlib.compress(text)))),
        min_k=lowest(logprobs, share),
        min_k_plus=lowest(relative, share),
    )


def token_scores(
    model: DecoderModule, ids: Sequence[int], context: int | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each token but those that begin a piece: its log-probability (nat), and that less the mean log-probability
    under the model's distribution there, over its standard deviation."""
    device, longest = next(model.parameters()).device, context or len(ids)
    pieces = [ids[start : start + longest + 1] for start in range(0, len(ids) - 1, longest)]
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for piece in pieces:
            x_BT = torch.tensor([piece], device=device)
            all_TV = model(x_BT[:, :-1])[0].double().log_softmax(-1)
            own_T = all_TV.gather(-1, x_BT[0, 1:, None])[:, 0]
            p_TV = all_TV.exp()
            mean_T = (p_TV * all_TV).sum(-1)
            spread_T = (p_TV * (all_TV - mean_T[:, None]).square()).sum(-1).sqrt()
            found.append(torch.stack([own_T, (own_T - mean_T) / spread_T.clamp_min(1e-12)]))
    logprobs, relative = torch.cat(found, dim=1).cpu().numpy()
    return logprobs, relative


def lowest(values: npt.NDArray[np.float64], share: float) -> float:
    """The mean of the lowest `share` of values, at least one of them."""
    count = max(1, int(share * len(values)))
    return float(np.partition(values, count - 1)[:count].mean())


def area(scores: Sequence[float], read: Sequence[bool], seed: int = 0, draws: int = 1000) -> tuple[float, float, float]:
    """The probability that a text that was read scores above one that was not (ties count half), with its 95 % interval
    by resampling both kinds of text. Raises UserError where a kind is missing."""
    values, was = np.asarray(scores, dtype=float), np.asarray(read, dtype=bool)
    ours, others = values[was], values[~was]
    if not len(ours) or not len(others):
        raise UserError("telling read from unread needs texts of both kinds")
    chance = np.random.default_rng(seed)
    drawn = [_area(chance.choice(ours, len(ours)), chance.choice(others, len(others))) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return _area(ours, others), float(low), float(high)


def _area(ours: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """Mann and Whitney's U over its maximum."""
    ranks = rankdata(np.concatenate([ours, others]))[: len(ours)]
    return float((ranks.sum() - len(ours) * (len(ours) + 1) / 2) / (len(ours) * len(others)))
