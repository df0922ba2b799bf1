"""Seconds a token, from a few measured models to any model between and beyond them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nachim.spec import Decoder, Part


@dataclass(frozen=True, kw_only=True)
class Throughput(Part):
    """Training seconds per token measured on this machine at `flops` (FLOP/token, body and head), in rising order."""

    threads: int
    flops: tuple[float, ...]
    seconds: tuple[float, ...]

    def check(self) -> None:
        self.require_positive("threads")
        if len(self.flops) != len(self.seconds) or list(self.flops) != sorted(set(self.flops)) or not self.flops:
            self.refuse("flops", "must be rising, and as many as the seconds")

    def seconds_per_token(self, model: Decoder, seq_len: int) -> float:
        """Straight lines in log-log between the measured models; beyond them the FLOP/s of the nearest."""
        wanted = model.flops_per_token(seq_len) + model.head_flops_per_token
        nearest = min(max(wanted, self.flops[0]), self.flops[-1])
        inside = np.exp(np.interp(np.log(nearest), np.log(self.flops), np.log(self.seconds)))
        return float(inside) * (wanted / nearest if wanted > nearest else 1.0)
