"""Elastic weight consolidation: weights that an old text needed are held where they were (arXiv 1612.00796)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nachim.spec import EWC, UserError
from nachim.spec.disk import full_disk_is_an_error, write_text
from nachim.train.manifest import sha256

TENSORS, FACTS = "fisher.safetensors", "fisher.json"
INFORMATION, ANCHOR = "fisher.", "weights."


def fisher(
    model: nn.Module, sequences: Iterable[np.ndarray], seed: int = 0, done: Callable[[int], None] = lambda count: None
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of each weight by name, in fp32: of a token, over `sequences`.

    F_i = E[(d log p(y | x) / d theta_i)^2], the y drawn from the model's own distribution at each position of a
    sequence x [T + 1] (its last token is not read). Draws are independent, so cross terms of a sequence's T gradients
    vanish on average: the square of their sum over T is an unbiased estimate, whose relative error for one weight is
    about sqrt(2 / sequences). With the text's own next tokens they would not vanish, and F would not be the curvature.
    """
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in named.items()}
    device = next(iter(named.values())).device
    draws, tokens = torch.Generator(device).manual_seed(seed), 0
    for count, ids in enumerate(sequences, 1):
        logits_TV = model(torch.from_numpy(ids[None, :-1]).to(device))[0].float()
        drawn_T = torch.multinomial(logits_TV.detach().softmax(-1), 1, generator=draws)[:, 0]
        surprise = F.cross_entropy(logits_TV, drawn_T, reduction="sum")
        gradients = torch.autograd.grad(surprise, list(named.values()), allow_unused=True)
        for total, gradient in zip(found.values(), gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient.float(), gradient.float())
        tokens += len(drawn_T)
        done(count)
    return {name: total / tokens for name, total in found.items()}


def save(folder: Path, information: Mapping[str, Tensor], weights: Mapping[str, Tensor], facts: dict[str, Any]) -> str:
    """Write Fisher information, the weights it was taken at, and where both came from; the file's fingerprint.

    Raises UserError where the disk refuses.
    """
    tensors = {INFORMATION + name: one.cpu().contiguous() for name, one in information.items()}
    tensors |= {ANCHOR + name: weights[name].detach().float().cpu().contiguous() for name in information}
    path = folder / TENSORS
    try:
        with full_disk_is_an_error(path):
            save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}; is the disk full?") from error
    found = sha256(path)
    write_text(folder / FACTS, json.dumps({"fingerprint": found, **facts}, indent=2) + "\n")
    return found


@dataclass(frozen=True)
class Penalty:
    """strength / 2 * sum F (theta - theta*)^2, eq. 3, over fp32 weights by name."""

    strength: float
    information: Mapping[str, Tensor]
    anchors: Mapping[str, Tensor]

    def pull(self, weights: Mapping[str, Tensor], seen: Callable[[Tensor], Tensor] = lambda weight: weight) -> float:
        """Add strength * F (theta - theta*) to the gradient of each weight; the penalty, nat/token.

        theta is what `seen` makes of a weight: where its other gradients were taken.
        """
        names = list(weights)
        with torch.no_grad():
            away = torch._foreach_sub([seen(weights[name]) for name in names], [self.anchors[name] for name in names])
            force = torch._foreach_mul(away, [self.information[name] for name in names])
            torch._foreach_mul_(force, self.strength)
            for name, one in zip(names, force, strict=True):
                held = weights[name]
                held.grad = one.clone() if held.grad is None else held.grad.add_(one)
            return sum(torch.stack(torch._foreach_norm(torch._foreach_mul(force, away), 1)).tolist()) / 2


def open_penalty(part: EWC, model: nn.Module, device: str) -> Penalty:
    """The penalty of `part` for `model`, on `device`.

    Raises UserError where its folder is not what `nachim fisher` wrote, is not the one that `part` insists on, or is of
    another model.
    """
    path = Path(part.folder) / TENSORS
    if not path.is_file():
        raise UserError(f"EWC.folder is {part.folder}, which has no {TENSORS}: `nachim fisher` writes it")
    found = sha256(path)
    if part.fingerprint not in ("", found):
        raise UserError(f"EWC.fingerprint is {part.fingerprint}, and {path} has {found}")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    wanted = {prefix + name: shape for prefix in (INFORMATION, ANCHOR) for name, shape in shapes.items()}
    wrong = sorted(name for name in wanted.keys() | tensors.keys() if _shape(tensors, name) != wanted.get(name))
    if wrong:
        raise UserError(f"{path} is of another model than the run's: {wrong[0]} does not fit ({len(wrong)} do not)")
    information, anchors = (
        {name: tensors[prefix + name].to(device) for name in shapes} for prefix in (INFORMATION, ANCHOR)
    )
    return Penalty(part.strength, information, anchors)


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
