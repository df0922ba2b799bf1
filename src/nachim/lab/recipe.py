"""How every run of a ladder is trained: what must change with compute follows a law, the rest stays the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from nachim.law.transfer import Transfer
from nachim.spec import WSD, AdamW, Cosine, Data, Decoder, MultiStep, Muon, Part, Run, Train, Validation


@dataclass(frozen=True, kw_only=True)
class Recipe(Part):
    """A family of runs. Batch and peak learning rate are DeepSeek's laws (arXiv 2401.02954) times the two factors.

    The batch is rounded to a power of two of sequences, so that a ladder does not change it at every budget.
    """

    data: Data
    precision: Literal["fp32", "bf16"]
    lr_factor: float = 1.0
    batch_factor: float = 1.0
    warmup_steps: int = 64
    optimizer: Literal["muon", "adamw"] = "muon"
    schedule: Literal["wsd", "cosine", "multistep"] = "wsd"
    validation_tokens: int = 131_072
    seed: int = 0

    def check(self) -> None:
        self.require_positive("lr_factor", "batch_factor", "warmup_steps", "validation_tokens")

    @property
    def transfer(self) -> Transfer:
        """The batch and learning-rate laws with this recipe's corrections."""
        return Transfer(lr_factor=self.lr_factor, batch_factor=self.batch_factor)

    def batch_tokens(self, flops: float) -> int:
        """Batch at compute `flops`, in tokens."""
        sequences = float(self.transfer.batch_tokens(flops)) / self.data.seq_len
        return self.data.seq_len * 2 ** max(0, round(math.log2(sequences)))

    def run(self, model: Decoder, flops: float, tokens: float, *, seed: int | None = None, times: int = 1) -> Run:
        """A run of `model` on about `tokens` tokens (whole steps), its batch and rate those of compute `flops`.

        The seed draws the weights and the order of the data; it is the recipe's unless given.
        """
        seed = self.seed if seed is None else seed
        batch = self.batch_tokens(flops)
        steps = max(2, round(tokens / batch))
        warmup = min(self.warmup_steps, steps // 4) * batch
        courses = {
            "wsd": WSD(warmup_tokens=warmup),
            "cosine": Cosine(warmup_tokens=warmup),
            "multistep": MultiStep(warmup_tokens=warmup),
        }
        lr = float(f"{float(self.transfer.lr(flops)):.4g}")
        train = Train(
            tokens=steps * batch,
            batch_tokens=batch,
            optimizer={"muon": Muon, "adamw": AdamW}[self.optimizer](lr=lr),
            schedule=courses[self.schedule],
            precision=self.precision,
            seed=seed,
        )
        data = replace(self.data, seed=seed)
        return Run(
            model=model, data=data, train=train, validation=Validation(tokens=self.validation_tokens, times=times)
        )
