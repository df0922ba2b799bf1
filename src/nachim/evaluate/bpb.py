"""Validation loss, and bits per byte of raw text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROWS = 16


@dataclass(frozen=True)
class Windows:
    """Fixed validation sequences: `ids` int64 [N, T + 1], and the bytes of raw text their N * T targets stand for.

    With `end`, the end-of-text token, no token sees another document than its own.
    """

    ids: np.ndarray
    target_bytes: int
    end: int | None = None


def measure(model: nn.Module, windows: Windows) -> dict[str, float]:
    """`loss` in nat/token and `bpb`, bits per byte of raw text: loss * targets / (ln 2 * bytes).

    End-of-text targets count in the loss and stand for no bytes: saying where a document ends is part of the code.
    """
    device = next(model.parameters()).device
    nats, targets = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(windows.ids), ROWS):
            x_BT = torch.from_numpy(windows.ids[start : start + ROWS]).to(device)
            apart = () if windows.end is None else (documents_in(x_BT[:, :-1], windows.end),)
            logits = model(x_BT[:, :-1], *apart).flatten(0, 1).float()
            nats += F.cross_entropy(logits, x_BT[:, 1:].flatten(), reduction="sum").item()
            targets += x_BT[:, 1:].numel()
    return {"loss": nats / targets, "bpb": nats / math.log(2) / windows.target_bytes}


def documents_in(ids_BT: torch.Tensor, end: int) -> torch.Tensor:
    """The document of each token [B, T]; an end-of-text token is of the next one, whose first token it predicts."""
    return (ids_BT == end).cumsum(1)


def measure_each(model: nn.Module, windows: Mapping[str, Windows], shares: Mapping[str, float]) -> dict[str, float]:
    """`measure` of each text apart, as `loss/NAME` and `bpb/NAME`; `loss` and `bpb` are of text mixed in `shares`.

    `shares` are those of tokens, and add up to 1.
    """
    each = {name: measure(model, one) for name, one in windows.items()}
    loss = sum(shares[name] * found["loss"] for name, found in each.items())
    length = sum(shares[name] * one.target_bytes / one.ids[:, 1:].size for name, one in windows.items())
    apart = {f"{what}/{name}": value for name, found in each.items() for what, value in found.items()}
    return {"loss": loss, "bpb": loss / math.log(2) / length, **apart}
