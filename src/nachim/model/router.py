"""Routers: which experts a token goes to, how much each of their answers counts, and what keeps loads even."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.spec import MoE


class RouterModule(nn.Module):
    """Chooses `active` experts (axis A) for every token; its arithmetic is fp32, whatever the weights are.

    A pass that trains counts the tokens of each expert, over all micro-batches of a step, and leaves what its part
    adds to the loss in `auxiliary`; a pass without gradients leaves no trace.
    """

    def __init__(self, part: MoE, d_model: int) -> None:
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.empty(part.experts, d_model))
        nn.init.normal_(self.weight, std=d_model**-0.5)
        self.bias = nn.Parameter(torch.zeros(part.experts)) if part.bias else None
        bias_X = None if part.bias_step is None else torch.zeros(part.experts)
        self.register_buffer("selection_bias", bias_X)
        self.register_buffer("load", torch.zeros(part.experts, dtype=torch.int64), persistent=False)
        self.auxiliary: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Gates (fp32) and numbers of the experts of each token, both [B, T, A]."""
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        logits_BTX = F.linear(x_BTD.to(wide), self.weight.to(wide), None if self.bias is None else self.bias.to(wide))
        softmax = self.part.scores == "softmax"
        scores_BTX = logits_BTX.softmax(-1) if softmax else logits_BTX.sigmoid()
        chosen_BTA = self.choose(scores_BTX.detach())
        gates_BTA = scores_BTX.gather(-1, chosen_BTA)
        if self.part.renormalised:
            gates_BTA = gates_BTA / gates_BTA.sum(-1, keepdim=True).clamp_min(1e-20)
        self.auxiliary = None
        if self.training and torch.is_grad_enabled():
            self.load += torch.bincount(chosen_BTA.flatten(), minlength=self.part.experts)
            self.auxiliary = self._auxiliary(logits_BTX, scores_BTX, chosen_BTA)
        return gates_BTA * self.part.scale, chosen_BTA

    def choose(self, scores_BTX: Tensor) -> Tensor:
        """The numbers [B, T, A] of each token's experts: the best by score and bias, within its best groups."""
        part = self.part
        if self.selection_bias is not None:
            scores_BTX = scores_BTX + self.selection_bias
        if part.top_groups < part.groups:
            grouped = scores_BTX.unflatten(-1, (part.groups, -1))
            worth = grouped.amax(-1) if part.group_score == "max" else grouped.topk(2, -1).values.sum(-1)
            best = worth.topk(part.top_groups, -1).indices
            left_out = torch.ones_like(worth, dtype=torch.bool).scatter(-1, best, False)
            scores_BTX = grouped.masked_fill(left_out[..., None], float("-inf")).flatten(-2)
        return scores_BTX.topk(part.active, -1).indices

    def _auxiliary(self, logits_BTX: Tensor, scores_BTX: Tensor, chosen_BTA: Tensor) -> Tensor | None:
        part, found = self.part, []
        if part.balance_loss:
            if part.balance_over == "batch":
                scores_BTX, chosen_BTA = scores_BTX.flatten(0, 1)[None], chosen_BTA.flatten(0, 1)[None]
            found.append(part.balance_loss * balance(scores_BTX, chosen_BTA))
        if part.z_loss:
            found.append(part.z_loss * logits_BTX.logsumexp(-1).square().mean())
        return sum(found) if found else None

    @torch.no_grad()
    def after_step(self) -> Tensor:
        """Move the biases by the loads of the step that was taken, and forget them; the largest load over the mean."""
        load_X, total = self.load, self.load.sum()
        if self.selection_bias is not None:
            off_X = total - self.part.experts * load_X
            far_X = off_X.sign() if self.part.bias_by == "sign" else off_X / total.clamp_min(1)
            self.selection_bias += self.part.bias_step * far_X
        imbalance = load_X.max() * self.part.experts / total.clamp_min(1)
        self.load = torch.zeros_like(load_X)
        return imbalance

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RouterModule:
        """As any module's, but the biases stay fp32: in bf16 their small steps would be lost."""
        held = self.selection_bias
        super()._apply(fn, recurse)
        if held is not None and not held.is_meta:
            self.selection_bias = held.to(self.selection_bias.device)
        return self


def balance(scores_BTX: Tensor, chosen_BTA: Tensor) -> Tensor:
    """X * sum over experts of (share of the choices) * (mean normalised score), averaged over B: 1 for even loads.

    arXiv 2101.03961, eq. 4 to 6, for one choice a token; for several and for sigmoids arXiv 2412.19437, eq. 17 to 20.
    """
    experts = scores_BTX.shape[-1]
    share_BX = F.one_hot(chosen_BTA.flatten(1), experts).to(scores_BTX.dtype).mean(1)
    mean_BX = (scores_BTX / scores_BTX.sum(-1, keepdim=True)).mean(1)
    return experts * (share_BX * mean_BX).sum(-1).mean()
