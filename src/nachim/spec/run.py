"""A whole run: the value that is trained, hashed, stored and compared."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.data import Data
from nachim.spec.model import Decoder
from nachim.spec.part import Part, later
from nachim.spec.train import Train


@dataclass(frozen=True, kw_only=True)
class Validation(Part):
    """Validation loss over `tokens` tokens spread over the held-out split, `times` times at even steps of the run."""

    tokens: int = 131_072
    times: int = 1

    def check(self) -> None:
        self.require_positive("tokens", "times")


@dataclass(frozen=True, kw_only=True)
class Start(Part):
    """The newest weights of the run in `folder`, which another run begins with in place of drawn ones.

    `fingerprint` is that of the file of weights; a run that carries it refuses any other. The optimizer begins anew.
    """

    folder: str
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class EWC(Part):
    """Elastic weight consolidation: strength / 2 * sum F (theta - theta*)^2 beside the loss (arXiv 1612.00796, eq. 3).

    `folder` holds the weights theta* and their Fisher information F, as `nachim fisher` wrote them. F is that of a
    token: were all off its diagonal zero, the penalty of strength 1 would be the old text's rise in nat/token. It is
    less, by tens (ideas/forgetting.md). `fingerprint` is that of the file; a run that carries it refuses any other.
    """

    folder: str
    strength: float
    fingerprint: str = ""

    def check(self) -> None:
        self.require_positive("strength")


@dataclass(frozen=True, kw_only=True)
class Run(Part):
    """Everything that decides the weights, and how they are judged. Weights are drawn, or those of a `start`, which
    `ewc` may hold near where others were good."""

    model: Decoder
    data: Data
    train: Train
    validation: Validation = Validation()
    start: Start | None = later(None)
    ewc: EWC | None = later(None)

    def check(self) -> None:
        if self.ewc is not None and self.start is None:
            self.refuse("ewc", "holds weights near others, but the run draws its own: give it a start")
        if self.model.vocab_size != self.data.tokenizer.vocab_size:
            self.refuse("model", f"has vocab_size={self.model.vocab_size}, data {self.data.tokenizer.vocab_size}")
        for name in ("batch_tokens", "micro_batch_tokens"):
            tokens = getattr(self.train, name)
            if tokens is not None and tokens % self.data.seq_len:
                self.refuse("train", f"has {name}={tokens}, which is not whole sequences of {self.data.seq_len}")
        unit = self.train.growth.unit_tokens if self.train.growth else None
        if unit is not None and unit % self.data.seq_len:
            self.refuse("train", f"grows by {unit} tokens, which is not whole sequences of {self.data.seq_len}")

    @property
    def flops_per_token(self) -> int:
        """M of the model at this run's context, FLOP/token."""
        return self.model.flops_per_token(self.data.seq_len)

    @property
    def flops(self) -> int:
        """C = M * D: training FLOP, the head apart."""
        return self.flops_per_token * self.train.tokens

    @property
    def head_flops(self) -> int:
        """Training FLOP of the output head."""
        return self.model.head_flops_per_token * self.train.tokens
