"""The machine a run stands on, as it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class Machine(Part):
    """A measured machine. Peaks are the best matmul rate found, FLOP/s, on one thread and on all `cores`."""

    name: str
    device: Literal["cpu", "cuda"]
    cores: int
    fp32_one_thread: float
    fp32_all: float
    bf16_one_thread: float
    bf16_all: float

    def check(self) -> None:
        self.require_positive("cores", "fp32_one_thread", "fp32_all", "bf16_one_thread", "bf16_all")

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """The faster precision here: bf16 where the machine has units for it (AMX, tensor cores), else fp32."""
        return "bf16" if self.bf16_one_thread > self.fp32_one_thread else "fp32"

    def peak(self, precision: str, threads: int) -> float:
        """Measured matmul FLOP/s for `precision` on one thread, or on all for more."""
        return float(getattr(self, f"{precision}_{'one_thread' if threads == 1 else 'all'}"))
