"""How every run of a ladder is trained: what must change with compute follows a law, the rest stays the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from nachim.law.transfer import Transfer
from nachim.spec import (
    WSD,
    AdamW,
    Cosine,
    Data,
    Decoder,
    Growth,
    MultiStep,
    Muon,
    Parametrisation,
    Part,
    Run,
    Standard,
    Train,
    Validation,
)
from nachim.spec.part import later

GROWTH = 0.75
"""Power of tokens with which an anchored recipe's batch grows; measured in `ideas/growing_batch.md`."""


@dataclass(frozen=True, kw_only=True)
class Anchor(Part):
    """The rung whose rate and batch every run takes: its compute, and its tokens, from which on the batch grows."""

    flops: float
    tokens: int

    def check(self) -> None:
        self.require_positive("flops", "tokens")


@dataclass(frozen=True, kw_only=True)
class Recipe(Part):
    """A family of runs. Batch and peak learning rate are DeepSeek's laws (arXiv 2401.02954) times the two factors.

    With an `anchor` they are those of its compute in every run, and from its tokens on the batch grows with the tokens
    seen: a run is then the beginning of any longer one, and small runs and their target follow one course. Without it
    they are those of the run's own compute. The batch is rounded to a power of two of sequences. Every model takes the
    `parametrisation`, which makes one rate do for all shapes, and has so many `layers` where that is said: what depth
    is worth beside width no law of M knows (`ideas/shapes.md`).
    """

    data: Data
    precision: Literal["fp32", "bf16"]
    lr_factor: float = 1.0
    batch_factor: float = 1.0
    anchor: Anchor | None = None
    parametrisation: Parametrisation = later(Standard())
    layers: int | None = later(None)
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
        """Batch at compute `flops`, in tokens; with an anchor, the batch before it grows."""
        sequences = float(self.transfer.batch_tokens(self._at(flops))) / self.data.seq_len
        return self.data.seq_len * 2 ** max(0, round(math.log2(sequences)))

    def lr(self, flops: float) -> float:
        """Peak learning rate at compute `flops`."""
        return float(f"{float(self.transfer.lr(self._at(flops))):.4g}")

    def _growth(self) -> Growth | None:
        if self.anchor is None:
            return None
        return Growth(begin_tokens=self.anchor.tokens, power=GROWTH, unit_tokens=self.data.seq_len)

    def _at(self, flops: float) -> float:
        return self.anchor.flops if self.anchor else flops

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
        train = Train(
            tokens=steps * batch,
            batch_tokens=batch,
            optimizer={"muon": Muon, "adamw": AdamW}[self.optimizer](lr=self.lr(flops)),
            schedule=courses[self.schedule],
            growth=self._growth(),
            precision=self.precision,
            seed=seed,
        )
        data = replace(self.data, seed=seed)
        validation = Validation(tokens=self.validation_tokens, times=times)
        return Run(
            model=replace(model, parametrisation=self.parametrisation), data=data, train=train, validation=validation
        )
