"""Texts as vectors: the mean of a checkpoint's last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nachim.data.novelty import Vectors, unit
from nachim.infer.folder import opened
from nachim.spec import UserError


class MeanState:
    """Vectors of length 1: the mean over a text's tokens of what the last block gives, after the final norm.

    `centre` texts have their mean taken off first: without that all vectors of a language model point much the same
    way (arXiv 1909.00512). Texts are read up to the context.
    """

    def __init__(self, folder: Path, centre: Sequence[str]) -> None:
        loaded = opened(folder)
        if loaded.tokenizer is None:
            raise UserError(f"{folder} has no tokenizer.json: texts need one")
        self.model, self.tokenizer, self.context = loaded.model.eval(), loaded.tokenizer, loaded.context
        raw = self._states(centre)
        self.mean = raw.mean(axis=0) if len(raw) > 1 else np.zeros(raw.shape[1])
        self.name = f"mean state of {folder.resolve().name}, {raw.shape[1]} wide"

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """[texts, width]."""
        return unit(self._states(texts) - self.mean)

    def _states(self, texts: Sequence[str]) -> Vectors:
        found = []
        with torch.inference_mode():
            for text in texts:
                ids = self.tokenizer.encode(text).ids[: self.context] or [0]
                x_1TD = self.model.normed(self.model.stream(torch.tensor([ids])))
                found.append(x_1TD[0].double().mean(0).numpy())
        return np.stack(found)
