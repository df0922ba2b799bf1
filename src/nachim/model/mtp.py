"""Multi-token prediction: the modules that look further ahead than the next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.depths import block_of
from nachim.model.loss import NONE
from nachim.spec import Decoder


class MTPModule(nn.Module):
    """One module of multi-token prediction: a stream and tokens further ahead in, a stream out (arXiv 2412.19437, eq.
    21 and 22). `norm` stands before the head that it shares with the decoder."""

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        self.stream_norm = build(spec.norm, spec.d_model)
        self.token_norm = build(spec.norm, spec.d_model)
        self.join = nn.Linear(2 * spec.d_model, spec.d_model, bias=False)
        self.block = block_of(spec, spec.blocks[-1])
        if spec.residual.last:
            self.norm = build(spec.norm, spec.d_model)

    def joined(self, x_BTD: Tensor, token_BTD: Tensor) -> Tensor:
        """Stream and embedded tokens, each [B, T, D], to what the `block` reads, [B, T, D]."""
        return self.join(torch.cat((self.stream_norm(x_BTD), self.token_norm(token_BTD)), -1))


def further(targets_BT: Tensor, documents_BT: Tensor | None, depth: int) -> tuple[Tensor, Tensor]:
    """What module `depth` is given at each token, and what it is to predict: the tokens `depth` and one more ahead.

    `targets_BT` are the tokens one ahead. A target is `NONE` where the sequence ends before it, or another document
    begins on the way to it; the last of `targets_BT` counts as being of the document of the token before it.
    """
    T = targets_BT.shape[1]
    ahead_T = torch.arange(T, device=targets_BT.device) + depth
    wanted_BT = targets_BT[:, ahead_T.clamp(max=T - 1)]
    known_BT = (ahead_T < T).expand_as(wanted_BT)
    if documents_BT is not None:
        changes_BT = torch.zeros_like(documents_BT)
        changes_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        run_BT = changes_BT.cumsum(1)
        known_BT = known_BT & (run_BT == run_BT[:, (ahead_T + 1).clamp(max=T - 1)])
    return targets_BT[:, (ahead_T - 1).clamp(max=T - 1)].clamp(min=0), wanted_BT.masked_fill(~known_BT, NONE)
