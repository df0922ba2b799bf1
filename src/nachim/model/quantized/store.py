"""The folder of a quantised model: what was coded how (quantized.json), and codes, scales and what was kept.

run.json, tokenizer and config stand beside them as in any run. There is no folder `checkpoint`: training does not go on
from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nachim.model.hf.source import Source, check, own, save
from nachim.model.quantized.codes import DIVISOR, coded_of, shapes_of, tensors_of
from nachim.model.quantized.grid import Coded
from nachim.spec import Quantized, UserError
from nachim.spec.quantize import Scheme

TOLD, WEIGHTS = "quantized.json", "quantized.safetensors"


def is_quantized(folder: Path) -> bool:
    """Whether a folder holds a quantised model."""
    return (folder / TOLD).is_file()


def write(
    folder: Path,
    scheme: Scheme,
    method: str,
    source: str,
    coded: Mapping[str, Sequence[Coded]],
    kept: Mapping[str, Tensor],
) -> Quantized:
    """Write matrices in few bits, by the names of their weights, and the tensors that are `kept`; what is said of them.

    `source` is the SHA-256 of the weights that they were made of.
    """
    tensors = {name: own(tensor) for name, tensor in kept.items()}
    for name, each in coded.items():
        parts = [tensors_of(one) for one in each]
        tensors |= {f"{name}.{part}": own(_stacked([found[part] for found in parts])) for part in parts[0]}
    save(tensors, folder / WEIGHTS)
    told = Quantized(
        scheme=scheme, method=method, matrices=tuple(coded), source=source, weights=sha256(folder / WEIGHTS)
    )
    told.save(folder / TOLD)
    return told


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """The tensors of experts as one with an axis for them in front; of one matrix alone as they are."""
    return torch.stack(tuple(parts)) if len(parts) > 1 else parts[0]


def sha256(*paths: Path) -> str:
    """SHA-256 (hex) of the content of files, one after the other."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def read(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], dict[str, list[Coded]]]:
    """What was kept, by name, and the matrices in few bits, of a model whose tensors have these `shapes`.

    Raises UserError where the file is not the one that quantized.json speaks of, or does not hold these tensors.
    """
    told = Quantized.load(folder / TOLD)
    if not (folder / WEIGHTS).is_file() or sha256(folder / WEIGHTS) != told.weights:
        raise UserError(f"{folder / WEIGHTS} is not the file that {TOLD} was written beside: copy the folder again")
    source = Source([folder / WEIGHTS])
    kept = {name: shape for name, shape in shapes.items() if name not in told.matrices}
    wanted = dict(kept)
    for name in told.matrices:
        if name not in shapes:
            raise UserError(f"{folder / TOLD} names {name}, which its decoder does not have")
        wanted |= _wanted(name, shapes[name], told.scheme, source)
    check(source, wanted, str(folder), lambda name: True)
    return {name: source[name] for name in kept}, {
        name: _coded(name, shapes[name], told.scheme, source) for name in told.matrices
    }


def _wanted(name: str, shape: tuple[int, ...], scheme: Scheme, source: Source) -> dict[str, tuple[int, ...]]:
    *experts, outputs, inputs = shape
    parts = shapes_of(scheme, outputs, inputs)
    if f"{name}.{DIVISOR}" in source:
        parts[DIVISOR] = (inputs,)
    return {f"{name}.{part}": (*(experts if experts != [1] else []), *found) for part, found in parts.items()}


def _coded(name: str, shape: tuple[int, ...], scheme: Scheme, source: Source) -> list[Coded]:
    parts = {each.removeprefix(f"{name}."): source[each] for each in source if each.startswith(f"{name}.")}
    count = shape[0] if len(shape) == 3 else 1
    each = [parts] if count == 1 else [{part: tensor[n] for part, tensor in parts.items()} for n in range(count)]
    coded = [coded_of(tensors, scheme) for tensors in each]
    if not all(torch.isfinite(one.grid.scale_OG).all() for one in coded):
        raise UserError(f"the scales of {name} are not finite: nothing can be computed from them")
    return coded
