"""Blocks passed through in training: what they leave for the backward pass is kept, made again, or moved away.

Nothing changes but memory and time: what is made again comes from the same numbers by the same kernels, so that
gradients are equal to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nachim.budget.activations import kept
from nachim.budget.layout import Job, Layout
from nachim.budget.recompute import grades, groups, passages
from nachim.model.frame import Frame
from nachim.spec.activations import Activations, Recompute

if TYPE_CHECKING:
    from nachim.model.decoder import DecoderModule

aten = torch.ops.aten
COSTLY = {
    packet
    for name in (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "_grouped_mm",
        "_scaled_mm",
        "linalg_solve_triangular",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if (packet := getattr(aten, name, None)) is not None
}
"""What selective recomputation keeps the outputs of."""


@dataclass(frozen=True)
class Passage:
    """How the blocks of a decoder are passed through when gradients are wanted: `grades` first to last, those of
    modules for further tokens after the decoder's own."""

    grades: tuple[Recompute, ...]
    every: int = 1
    offload: bool = False

    def through(self, blocks: Sequence[nn.Module], x_BTD: Tensor, frame: Frame, first: int = 0) -> Tensor:
        """The stream [B, T, D] after `blocks`, of which the first has the grade number `first`."""
        with Offload(blocks) if self.offload else contextlib.nullcontext():
            for grade, part in groups(self.grades[first : first + len(blocks)], self.every):
                x_BTD = passed(list(blocks[part]), x_BTD, frame, grade)
        return x_BTD


def arrange(model: DecoderModule, activations: Activations, rows: int, seq_len: int, precision: str) -> str:
    """Have `model` pass through its blocks as `activations` say, `rows` sequences of `seq_len` at a time in `precision`
    ("fp32" or shorter); what that is, in a sentence. Raises UserError when they ask for what is impossible."""
    short: Literal["fp32", "bf16"] = "fp32" if precision == "fp32" else "bf16"
    job = Job(model=model.spec, seq_len=seq_len, batch_tokens=rows * seq_len, precision=short)
    layout, kind = Layout(micro_batch=rows), model.head.weight.device.type
    blocks = model.spec.trained_blocks
    chosen = grades(job, layout, activations, kind, blocks)
    model.passage = Passage(chosen, activations.every_blocks, activations.offload)
    held = sum(
        kept(blocks[part.start], job, layout, kind, chosen[part.start]).stored
        for part in passages(model.spec, chosen, activations.every_blocks)
    )
    return (
        f"of {len(blocks)} blocks {chosen.count('full')} are made again in full and {chosen.count('selective')} "
        f"selectively: of a micro-batch they keep {held / 1e6:,.2f} MB{' in host memory' * activations.offload}"
    )


def passed(blocks: list[nn.Module], x_BTD: Tensor, frame: Frame, grade: Recompute) -> Tensor:
    """The stream after `blocks`, of which `grade` is made again in the backward pass."""

    def run(x_BTD: Tensor) -> Tensor:
        for block in blocks:
            x_BTD = block(x_BTD, frame)
        return x_BTD

    if grade == "none":
        return run(x_BTD)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        if grade == "full":
            return contextlib.nullcontext(), untraced(blocks)
        keeping, kept = create_selective_checkpoint_contexts(_policy)
        return keeping, both(untraced(blocks), kept)

    return checkpoint(run, x_BTD, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _policy(context: object, operation: Any, *args: object, **named: object) -> CheckpointPolicy:
    """Keep what multiplications and attention give. A function with its own backward pass, whose forward pass has no
    gradients, is made again whole: what it needs it keeps itself."""
    costly = getattr(operation, "overloadpacket", None) in COSTLY and torch.is_grad_enabled()
    return CheckpointPolicy.MUST_SAVE if costly else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def both(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    """All of `contexts`, as one."""
    with ExitStack() as stack:
        for one in contexts:
            stack.enter_context(one)
        yield


@contextlib.contextmanager
def untraced(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """What a pass leaves in modules beside its result, loads and losses of routers, is as if it had not been."""
    traced = [module for block in blocks for module in block.modules() if hasattr(module, "auxiliary")]
    held = [(module, module.auxiliary, getattr(module, "load", None)) for module in traced]
    for module, _, load in held:
        if load is not None:
            module.load = load.clone()
    try:
        yield
    finally:
        for module, auxiliary, load in held:
            module.auxiliary = auxiliary
            if load is not None:
                module.load = load


class Offload(saved_tensors_hooks):
    """What is saved for the backward pass stands in host memory until then; weights stay where they are.

    A storage goes once, whatever saves parts of it, and they come back as they lay in it: kernels may add in another
    order where strides differ. torch's own `save_on_cpu` keeps neither strides nor weights.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        own = {weight.untyped_storage().data_ptr() for block in blocks for weight in block.parameters()}
        gone: dict[tuple[StorageWeakRef, int], Tensor] = {}

        def pack(tensor: Tensor) -> Tensor | _Away:
            storage = tensor.untyped_storage()
            if storage.data_ptr() in own:
                return tensor
            key = StorageWeakRef(storage), tensor._version
            if key not in gone:
                gone[key] = to_host(torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage))
            place = tensor.storage_offset(), tensor.shape, tensor.stride()
            return _Away(gone[key], place, tensor.dtype, tensor.device)

        super().__init__(pack, lambda packed: packed.back() if isinstance(packed, _Away) else packed)


@dataclass(frozen=True)
class _Away:
    """A tensor in the storage `host`; `place` is its offset, shape and strides."""

    host: Tensor
    place: tuple[int, torch.Size, tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device

    def back(self) -> Tensor:
        """The tensor on its device again."""
        storage = self.host.to(self.device, non_blocking=True).untyped_storage()
        return torch.empty(0, dtype=self.dtype, device=self.device).set_(storage, *self.place)


def to_host(bytes_: Tensor) -> Tensor:
    """A copy in host memory, begun without waiting for it; what is there is itself."""
    if bytes_.device.type == "cpu":
        return bytes_
    return torch.empty(bytes_.shape, dtype=bytes_.dtype, pin_memory=True).copy_(bytes_, non_blocking=True)
