"""How tensors here and in another checkpoint turn into each other: one list of rules, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nachim.spec import Decoder
from nachim.spec.model import Block

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Transform:
    """An invertible map of tensors: `read` from theirs to ours, `write` back. Both work on the meta device as well."""

    read: Callable[[Tensors], Tensors]
    write: Callable[[Tensors], Tensors]

    def then(self, last: Transform) -> Transform:
        """This one and, reading, `last` after it."""
        return Transform(lambda x: last.read(self.read(x)), lambda x: self.write(last.write(x)))


KEEP = Transform(lambda x: x, lambda x: x)
"""Tensors as they are."""


def each(read: Callable[[Tensor], Tensor], write: Callable[[Tensor], Tensor]) -> Transform:
    """A map of every tensor on its own."""
    return Transform(lambda x: tuple(map(read, x)), lambda x: tuple(map(write, x)))


TURN = each(lambda x: x.mT.contiguous(), lambda x: x.mT.contiguous())
"""[in, out], as GPT-2 stores a matrix, to [out, in]."""


def cat(*rows: int, axis: int = 0) -> Transform:
    """Several tensors joined along an axis into one; `rows` are their sizes there, up to a common factor."""

    def apart(joined: Tensors) -> Tensors:
        (tensor,) = joined
        unit = tensor.shape[axis] // sum(rows)
        return tensor.split([unit * size for size in rows], axis)

    return Transform(lambda parts: (torch.cat(parts, axis),), apart)


STACK = Transform(lambda parts: (torch.stack(parts),), lambda stack: stack[0].unbind())
"""Several tensors of one shape as one with a further first axis: the experts of a layer."""


def groups(size: int, inner: Transform, outer: int = 1) -> Transform:
    """`inner` for every `size` tensors of theirs in turn, which are `outer` of ours."""

    def over(length: int, change: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
        return lambda x: tuple(y for i in range(0, len(x), length) for y in change(x[i : i + length]))

    return Transform(over(size, inner.read), over(outer, inner.write))


def first(count: int, inner: Transform) -> Transform:
    """`inner` for the first `count` tensors; the others stay as they are."""

    def over(change: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
        return lambda x: (*change(x[:count]), *x[count:])

    return Transform(over(inner.read), over(inner.write))


def shaped(theirs: Sequence[int], ours: Sequence[int]) -> Transform:
    """Reshaped; sizes of the first axis may be -1."""
    return each(lambda x: x.reshape(*ours), lambda x: x.reshape(*theirs))


def permuted(sizes: Sequence[int], order: Sequence[int]) -> Transform:
    """The first axis seen as axes of `sizes` (one may be -1), which stand in `order` here."""
    back = [order.index(axis) for axis in range(len(order))]

    def move(x: Tensor, sizes: Sequence[int], order: Sequence[int]) -> Tensor:
        rest = range(len(order), len(order) + x.ndim - 1)
        return x.reshape(*sizes, *x.shape[1:]).permute(*order, *rest).reshape(x.shape)

    here = [sizes[axis] for axis in order]
    return each(lambda x: move(x, sizes, order), lambda x: move(x, here, back))


def half_split(d_rotary: int) -> Transform:
    """Rows of interleaved rotary pairs (0, 1), (2, 3), ... to the two halves used here: whole heads of `d_rotary`."""
    return permuted((-1, d_rotary // 2, 2), (0, 2, 1))


def interleaved(rows: Sequence[int], d_head: int) -> Transform:
    """Rows that stand as repeated groups, `rows` heads of each sort at a time, to all heads of each sort in turn.

    (1, 1, 1) is one query, key and value a head (GPT-NeoX, BLOOM); (8, 1, 1) eight queries for a key and a value
    (Falcon). Ours is the queries of all groups, then the keys, then the values.
    """
    group = sum(rows)

    def read(x: Tensor) -> Tensor:
        grouped = x.reshape(-1, group, d_head, *x.shape[1:])
        return torch.cat([part.reshape(-1, *x.shape[1:]) for part in grouped.split(list(rows), 1)])

    def write(x: Tensor) -> Tensor:
        unit = x.shape[0] // group
        parts = x.split([unit * size for size in rows])
        shape = [(-1, size, d_head, *x.shape[1:]) for size in rows]
        return torch.cat([part.reshape(s) for part, s in zip(parts, shape, strict=True)], 1).reshape(x.shape)

    return each(read, write)


@dataclass(frozen=True)
class Rule:
    """The tensors `ours` (names in our decoder) hold what `theirs` (names in their checkpoint) hold; a `copy` of what
    another rule's hold already."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform = KEEP
    copy: bool = False

    def under(self, ours: str, theirs: str) -> Rule:
        """The rule with prefixes before all names."""
        return replace(
            self, ours=tuple(ours + name for name in self.ours), theirs=tuple(theirs + name for name in self.theirs)
        )


def rule(ours: str | Sequence[str], theirs: str | Sequence[str], transform: Transform = KEEP) -> Rule:
    """A Rule; one name need not stand in a tuple."""
    return Rule(_names(ours), _names(theirs), transform)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def module(ours: str, theirs: str | Sequence[str], transform: Transform = KEEP, bias: bool = False) -> Iterator[Rule]:
    """Rules for the weight and, with `bias`, the bias of a module whose rows correspond: a Linear, a norm."""
    for field in ("weight", "bias") if bias else ("weight",):
        yield rule(f"{ours}.{field}", [f"{name}.{field}" for name in _names(theirs)], transform)


def layers(decoder: Decoder, theirs: str, rules: Callable[[Block], Iterable[Rule]]) -> Iterator[Rule]:
    """The rules of every block; `theirs` is their prefix of a layer, with {} for its number."""
    made = {id(block): tuple(rules(block)) for block in decoder.blocks}
    for number, block in enumerate(decoder.blocks):
        for one in made[id(block)]:
            yield one.under(f"blocks.{number}.", theirs.format(number))
