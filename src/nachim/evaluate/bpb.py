"""Validation loss, and bits per byte of raw text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROWS = 16


@dataclass(frozen=True)
class Windows:
    """Fixed validation sequences: `ids` int64 [N, T + 1], and the bytes of raw text their N * T targets stand for."""

    ids: np.ndarray
    target_bytes: int


def measure(model: nn.Module, windows: Windows) -> dict[str, float]:
    """`loss` in nat/token and `bpb`, bits per byte of raw text: loss * targets / (ln 2 * bytes).

    End-of-text targets count in the loss and stand for no bytes: saying where a document ends is part of the code.
    """
    device = next(model.parameters()).device
    nats, targets = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(windows.ids), ROWS):
            x_BT = torch.from_numpy(windows.ids[start : start + ROWS]).to(device)
            logits = model(x_BT[:, :-1]).flatten(0, 1).float()
            nats += F.cross_entropy(logits, x_BT[:, 1:].flatten(), reduction="sum").item()
            targets += x_BT[:, 1:].numel()
    return {"loss": nats / targets, "bpb": nats / math.log(2) / windows.target_bytes}
