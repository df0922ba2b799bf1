"""A parametrisation's factors as part of the weights: the forward pass of others has no place for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from nachim.model.hf.source import Source
from nachim.spec import Attention, Decoder, RMSNorm, Standard

Change = Callable[[Tensor], Tensor]
Tensors = Source | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Folded(Mapping[str, Tensor]):
    """The tensors of `source`, those named in `changes` changed as they are read."""

    source: Tensors
    changes: dict[str, Change]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.source[name]
        return self.changes[name](tensor) if name in self.changes else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor."""
        return self.source.nbytes(name)


def folded(decoder: Decoder, source: Tensors) -> tuple[Decoder, Tensors | Folded]:
    """The decoder in the standard parametrisation and its tensors, so changed that it computes the same.

    Factors of 1 change nothing. A decoder stays as it is where a factor has no weight to go into: scores of attention
    other than `Attention`, and logits that no norm stands before.
    """
    rules = decoder.parametrisation
    score = {rules.score(block.mixer.d_head) for block in decoder.blocks if isinstance(block.mixer, Attention)}
    output, plain = rules.output(decoder.d_model), all(isinstance(block.mixer, Attention) for block in decoder.blocks)
    if not plain or (output != 1 and not decoder.residual.last):
        return decoder, source
    changes: dict[str, Change] = {}
    if (share := rules.residual(decoder.n_layers)) != 1:
        changes |= {name: _scaled(decoder, name, share) for name in source if _ends_branch(decoder, name)}
    if output != 1:
        changes |= {name: _scaled(decoder, name, output) for name in source if name in ("norm.weight", "norm.bias")}
    if score - {1.0}:
        changes |= _queries(decoder, source)
    return replace(decoder, parametrisation=Standard()), Folded(source, changes) if changes else source


def _ends_branch(decoder: Decoder, name: str) -> bool:
    """Whether a tensor is the last that a branch passes: its output norm, or the matrix before the stream."""
    if decoder.residual.after:
        return "output_norm." in name
    return name.endswith((".out.weight", ".out.bias", ".down.weight", ".down.bias"))


def _scaled(decoder: Decoder, name: str, factor: float) -> Change:
    """Multiplied by a factor; a gain that is stored as its distance from 1 is the factor's multiple then."""
    offset = isinstance(decoder.norm, RMSNorm) and decoder.norm.offset and "norm." in name
    return (lambda gain: (gain + 1) * factor - 1) if offset else lambda weight: weight * factor


def _queries(decoder: Decoder, source: Tensors) -> dict[str, Change]:
    """The factor on scores as a factor on queries, or on the gain of their norm."""
    changes: dict[str, Change] = {}
    for number, block in enumerate(decoder.blocks):
        part: Attention = block.mixer
        factor, place = decoder.parametrisation.score(part.d_head), f"blocks.{number}.attention"
        if part.qk_norm:
            shift = int(part.qk_norm_offset)
            changes[f"{place}.q_norm.weight"] = lambda gain, f=factor, s=shift: (gain + s) * f - s
            continue
        rows = part.n_heads * part.d_head

        def turned(weight: Tensor, factor: float = factor, rows: int = rows) -> Tensor:
            weight = weight.clone()
            weight[:rows] *= factor
            return weight

        fused = (f"{place}.qkv.weight", f"{place}.qkv.bias")
        changes |= {name: turned for name in fused if name in source}
    return changes
