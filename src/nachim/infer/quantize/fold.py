"""Which matrices of a block read the same channels, and where factors of these channels can go before them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.infer.quantize.calibrate import Seen, Sight
from nachim.model.attention import AttentionModule
from nachim.model.block import BlockModule
from nachim.model.infini import InfiniAttentionModule
from nachim.model.mla import MLAModule
from nachim.model.mlp import GatedModule, MLPModule, relu2
from nachim.model.moe import MoEModule
from nachim.model.norm import OffsetRMSNorm
from nachim.spec import Parallel

Divide = Callable[[Tensor], None]
"""Takes factors [I] and divides by them, in place, whatever gives these channels."""


@dataclass(eq=False)
class Joint:
    """Matrices [O, I] that read the same channels, with what they saw; `others` do too, and are not rounded.

    `heads` (key-value heads, query heads of each) says which channels come from one before and must share a factor.
    """

    readers: list[tuple[Tensor, Seen]]
    divide: Divide
    others: list[Tensor]
    heads: tuple[int, int] | None = None

    def apply(self, scale_I: Tensor) -> None:
        """Multiply the readers' columns by `scale_I` and divide what they read, and saw, by it."""
        for weight_OI in [*(weight for weight, _ in self.readers), *self.others]:
            weight_OI.mul_(scale_I)
        for _, seen in self.readers:
            seen.moments_II /= torch.outer(scale_I, scale_I)
            seen.magnitude_I /= scale_I
        self.divide(scale_I)


def joints(block: BlockModule, sight: Sight) -> Iterator[Joint]:
    """The joints of a block whose factors what stands before can take in; only matrices in `sight` are rounded.

    Behind a norm: its gain, where all that reads it is known. Behind attention: the rows of its values. Behind a gated
    feed-forward: the rows that its gate multiplies. Behind ReLU: the rows before. Behind MLA's narrow norms: these.
    """
    for norm, names in _normed(block).items():
        if names is not None:
            yield from _joint(block, names, sight, _gain(getattr(block, norm)))
    for name in ("attention", "ffn"):
        if hasattr(block, name):
            yield from _within(getattr(block, name), _below(sight, name))


def _normed(block: BlockModule) -> dict[str, list[str] | None]:
    """What reads each norm that stands before a sublayer, by name; None where that is not known."""
    if not block.scheme.before:
        return {}
    reads = {}
    for name in ("attention", "ffn"):
        if hasattr(block, name):
            inlets = _inlets(getattr(block, name))
            reads[f"{name}_norm"] = None if inlets is None else [f"{name}.{inlet}" for inlet in inlets]
    if isinstance(block.scheme, Parallel) and block.scheme.shared and "ffn_norm" in reads:
        one, other = reads["attention_norm"], reads.pop("ffn_norm")
        reads["attention_norm"] = None if one is None or other is None else one + other
    return reads


def _joint(
    module: nn.Module, names: list[str], sight: Sight, divide: Divide, heads: tuple[int, int] | None = None
) -> Iterator[Joint]:
    """One joint of the matrices `names` of `module`; none where none of them is to be rounded."""
    readers, others = [], []
    for name in names:
        weight = module.get_submodule(name).weight.data
        if name in sight:
            each = weight if weight.ndim == 3 else weight[None]
            readers += zip(each, sight[name], strict=True)
        else:
            others.append(weight)
    if readers:
        yield Joint(readers, divide, others, heads)


def _below(sight: Sight, name: str) -> Sight:
    """What matrices of the submodule `name` saw, by their names in it."""
    return {one.removeprefix(f"{name}."): seen for one, seen in sight.items() if one.startswith(f"{name}.")}


def _gain(norm: nn.Module) -> Divide:
    """Divides what a norm gives."""

    def divide(scale_I: Tensor) -> None:
        if isinstance(norm, OffsetRMSNorm):
            norm.weight.data.add_(1).div_(scale_I).sub_(1)
        else:
            norm.weight.data.div_(scale_I)
        if getattr(norm, "bias", None) is not None:
            norm.bias.data.div_(scale_I)

    return divide


def _rows(module: nn.Module, begin: int, end: int, expert: int | None = None) -> Divide:
    """Divides the outputs `begin` to `end` of a matrix, or of one of a stack."""

    def divide(scale_O: Tensor) -> None:
        for each in (module.weight, module.bias):
            if each is not None:
                rows = each.data if expert is None else each.data[expert]
                rows[begin:end].div_(scale_O[:, None] if rows.ndim == 2 else scale_O)

    return divide


@functools.singledispatch
def _inlets(module: nn.Module) -> list[str] | None:
    """The matrices that read what a sublayer reads, all of them; None where that is not known."""
    return None


@_inlets.register(AttentionModule)
@_inlets.register(InfiniAttentionModule)
def _(module: nn.Module) -> list[str]:
    return ["qkv"]


@_inlets.register
def _(module: MLAModule) -> list[str]:
    return ["q" if module.part.q_rank is None else "q_down", "kv_down"]


@_inlets.register
def _(module: GatedModule) -> list[str]:
    return ["gate_up"]


@_inlets.register
def _(module: MLPModule) -> list[str]:
    return ["up"]


@_inlets.register
def _(module: MoEModule) -> list[str]:
    shared = ["shared.gate_up"] if module.part.shared else []
    return ["router", "experts.gate_up", *shared, *(["shared_gate"] if module.part.shared_gate else [])]


@functools.singledispatch
def _within(module: nn.Module, sight: Sight) -> Iterator[Joint]:
    """The joints whose factors go into a matrix, or a norm, of the sublayer itself."""
    return iter(())


@_within.register
def _(module: AttentionModule, sight: Sight) -> Iterator[Joint]:
    part = module.part
    begin, width = (part.n_heads + part.n_kv_heads) * part.d_head, part.n_kv_heads * part.d_head
    heads = part.n_kv_heads, part.n_heads // part.n_kv_heads
    rows = _rows(module.qkv, begin, begin + width)

    def divide(scale_I: Tensor) -> None:
        rows(scale_I.unflatten(0, (*heads, -1))[:, 0].flatten())

    yield from _joint(module, ["out"], sight, divide, heads)


@_within.register
def _(module: MLAModule, sight: Sight) -> Iterator[Joint]:
    if module.part.q_rank is not None:
        yield from _joint(module, ["q_up"], sight, _gain(module.q_norm))
    yield from _joint(module, ["kv_up"], sight, _gain(module.kv_norm))


@_within.register
def _(module: GatedModule, sight: Sight) -> Iterator[Joint]:
    width = module.down.in_features
    yield from _joint(module, ["down"], sight, _rows(module.gate_up, width, 2 * width))


@_within.register
def _(module: MLPModule, sight: Sight) -> Iterator[Joint]:
    rows = _rows(module.up, 0, module.down.in_features)
    if module.activation is F.relu:
        yield from _joint(module, ["down"], sight, rows)
    elif module.activation is relu2:
        yield from _joint(module, ["down"], sight, lambda scale_I: rows(scale_I.sqrt()))


@_within.register
def _(module: MoEModule, sight: Sight) -> Iterator[Joint]:
    gate_up, down = module.experts.gate_up, module.experts.down
    width = down.weight.shape[-1]
    if module.part.limit is None:
        for expert, seen in enumerate(sight.get("experts.down", [])):
            divide = _rows(gate_up, width, 2 * width, expert)
            yield Joint([(down.weight.data[expert], seen)], divide, [])
    if module.part.shared:
        yield from _within(module.shared, _below(sight, "shared"))
