"""What is trained, and how it is laid out over devices: the two values that memory and time are functions of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nachim.spec import Decoder, Part
from nachim.spec.activations import Recompute as Recompute

Optimizer = Literal["adamw", "muon", "adamw8bit", "schedule-free"]
PipelineSchedule = Literal["gpipe", "1f1b", "interleaved", "zero-bubble"]


@dataclass(frozen=True, kw_only=True)
class Job(Part):
    """One training job: a model, the length of its sequences, its batch, and what its numbers are kept in.

    Below fp32 an fp32 copy of the weights is kept beside them. `fp32_gradients` sums gradients in fp32 too, as this
    repository's loop does, and Megatron-LM by default with bf16; without it they have the precision of the weights,
    which is the convention of the 16 bytes a parameter of arXiv 1910.02054, sec. 3.1.
    """

    model: Decoder
    seq_len: int
    batch_tokens: int
    optimizer: Optimizer = "adamw"
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    fp32_gradients: bool = True

    def check(self) -> None:
        self.require_positive("seq_len", "batch_tokens")

    @property
    def batch(self) -> int:
        """Sequences of a step."""
        return max(1, round(self.batch_tokens / self.seq_len))


@dataclass(frozen=True, kw_only=True)
class Layout(Part):
    """How a job is spread over `dp` x `tp` x `pp` x `cp` devices.

    `dp` replicas, cut by ZeRO stage `zero` (arXiv 1910.02054; 3 is FSDP), each over `tp` x `pp` x `cp` devices by
    tensor, pipeline and context parallelism; `ep` of the `dp` x `cp` devices deal out the experts. `micro_batch`
    sequences pass at a time. `virtual` chunks of layers stand on a stage of an interleaved pipeline.
    `sequence_parallel` cuts what tensor parallelism leaves whole (arXiv 2205.05198). `offload` keeps the optimizer's
    state, and saved activations of whole blocks, in host memory.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    zero: Literal[0, 1, 2, 3] = 0
    micro_batch: int = 1
    schedule: PipelineSchedule = "1f1b"
    virtual: int = 1
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    offload: bool = False

    def check(self) -> None:
        self.require_positive("dp", "tp", "pp", "cp", "ep", "micro_batch", "virtual")
        if (self.dp * self.cp) % self.ep:
            self.refuse("ep", f"is {self.ep}; it must divide dp x cp = {self.dp * self.cp}")
        if (self.virtual > 1) != (self.schedule == "interleaved"):
            self.refuse(
                "virtual", f"is {self.virtual}; more than one chunk a stage is what the schedule 'interleaved' has"
            )

    @property
    def devices(self) -> int:
        """Devices in use."""
        return self.dp * self.tp * self.pp * self.cp

    def micro_batches(self, job: Job) -> int:
        """Micro-batches that a replica works through in a step (at least one)."""
        return max(1, round(job.batch / (self.dp * self.micro_batch)))
