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


@dataclass(frozen=True, kw_only=True)
class Device(Part):
    """One accelerator, or one CPU box, and how it reaches others. Rates are bytes/s or FLOP/s, of one device.

    Peaks are dense (without sparsity); None where the device has no units for the type. `sustained` is the share of
    the peak that large matrix multiplications reach. `link_*` reach the other devices of a node of `node_devices`, one
    direction; `network_*` reach other nodes. `watts` is the draw under load of the device and its share of the node;
    it and the price are None where nobody knows them, as on a machine that was measured: no energy or money follows.
    """

    name: str
    kind: Literal["cpu", "cuda", "rocm"]
    fp32_flops: float
    bf16_flops: float
    fp8_flops: float | None = None
    int8_flops: float | None = None
    sustained: float
    memory_bytes: float
    memory_bandwidth: float
    node_devices: int = 1
    link_bandwidth: float | None = None
    link_latency: float = 0.0
    network_bandwidth: float | None = None
    network_latency: float = 0.0
    watts: float | None = None
    dollars_per_hour: float | None = None
    sources: tuple[str, ...] = ()

    def check(self) -> None:
        names = ("fp32_flops", "bf16_flops", "sustained", "memory_bytes", "memory_bandwidth", "node_devices")
        optional = ("fp8_flops", "int8_flops", "link_bandwidth", "network_bandwidth", "watts")
        self.require_positive(*names, *(name for name in optional if getattr(self, name) is not None))
        if self.sustained > 1:
            self.refuse("sustained", f"is {self.sustained}; it is a share of the peak, at most 1")
        if self.dollars_per_hour is not None and self.dollars_per_hour < 0:
            self.refuse("dollars_per_hour", f"is {self.dollars_per_hour}; it must not be negative")

    def peak(self, precision: Literal["fp32", "bf16", "fp8", "int8"]) -> float:
        """Peak FLOP/s of `precision`. Raises UserError when the device has no units for it."""
        found = getattr(self, f"{precision}_flops")
        if found is None:
            self.refuse(f"{precision}_flops", f"is not there: {self.name} has no units for {precision}")
        return float(found)


@dataclass(frozen=True, kw_only=True)
class Cluster(Part):
    """`count` equal devices: nodes of `device.node_devices`, the last perhaps not full."""

    device: Device
    count: int = 1

    def check(self) -> None:
        self.require_positive("count")
