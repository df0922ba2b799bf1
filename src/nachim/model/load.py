"""A model from a folder: one of our runs, or a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nachim.model.build import NotDrawn, build
from nachim.model.decoder import DecoderModule
from nachim.model.hf.checkpoint import open_checkpoint, shapes
from nachim.model.hf.source import Source, check
from nachim.model.quantized.grid import Coded
from nachim.model.quantized.linear import put
from nachim.model.quantized.store import is_quantized, read
from nachim.model.weights import CHECKPOINT, WEIGHTS, latest
from nachim.spec import Decoder, Part, Run, UserError

RUN = "run.json"


def load(folder: Path | str, dtype: str | None = "float32") -> DecoderModule:
    """The model in `folder`, in eval mode; called with token ids [B, T] it gives logits [B, T, V].

    `folder` is one of our runs (run.json and a checkpoint, the newest is taken), a Hugging Face directory, or what
    `nachim quantize` wrote. Weights are cast to `dtype`, a name that torch knows ("bfloat16"); None keeps what is
    stored, and what is kept beside the weights always stays as it is. Raises UserError, with nothing loaded, for a
    folder that is none of these, an option not computed exactly, and tensors that do not fit.
    """
    folder, kind = Path(folder), _dtype(dtype)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if is_quantized(folder):
        return load_quantized(folder, kind)
    if (folder / RUN).is_file():
        decoder, source = open_run(folder)
        weights: Mapping[str, Tensor] = source
    else:
        found = open_checkpoint(folder)
        decoder, weights = found.decoder, found.weights()
    return module_of(decoder, _cast(decoder, weights, kind))


def load_quantized(folder: Path, kind: torch.dtype | None) -> DecoderModule:
    """A quantised model, its activations in `kind`; in bf16 its matrices are multiplied by as they are stored."""
    decoder, kept, coded = open_quantized(folder)
    return put(module_of(decoder, _cast(decoder, kept, kind)), coded)


def open_quantized(folder: Path) -> tuple[Decoder, dict[str, Tensor], dict[str, list[Coded]]]:
    """The decoder of a quantised model, what was kept of its weights, and its matrices in few bits."""
    decoder = decoder_of(folder)
    return decoder, *read(folder, {name: tuple(tensor.shape) for name, tensor in shapes(decoder).items()})


def _cast(decoder: Decoder, weights: Mapping[str, Tensor], kind: torch.dtype | None) -> dict[str, Tensor]:
    """Weights in another precision; what is kept beside them as it is."""
    cast = {name for name, tensor in shapes(decoder).items() if isinstance(tensor, nn.Parameter)}
    return {name: weights[name].to(kind if name in cast else None) for name in weights}


def _dtype(name: str | None) -> torch.dtype | None:
    found = None if name is None else getattr(torch, name, None)
    if name is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise UserError(f"dtype is {name!r}; torch has no floating-point type of that name, such as 'bfloat16'")
    return found


def open_run(folder: Path) -> tuple[Decoder, Source]:
    """The decoder of one of our runs and its newest weights, in fp32 or as they were imported, not read yet.

    Raises UserError where there is none, or its tensors are not those of its decoder.
    """
    if is_quantized(folder):
        raise UserError(f"{folder} is quantised, which cannot be undone: give the folder that it was made of")
    decoder, newest = decoder_of(folder), latest(folder / CHECKPOINT)
    if newest is None:
        raise UserError(f"{folder} has no checkpoint: `nachim train` writes one")
    source = Source([newest / WEIGHTS])
    wanted = {name: tuple(tensor.shape) for name, tensor in shapes(decoder).items()}
    check(source, wanted, str(newest), lambda name: True)
    return decoder, source


def decoder_of(folder: Path) -> Decoder:
    """The decoder of one of our runs: its run.json holds a Run, or a Decoder where it was imported."""
    part = Part.load(folder / RUN)
    if isinstance(part, Run):
        return part.model
    if not isinstance(part, Decoder):
        raise UserError(f"{folder / RUN} holds a {type(part).__name__}, which is neither a Run nor a Decoder")
    return part


def module_of(decoder: Decoder, weights: dict[str, Tensor]) -> DecoderModule:
    """The module of `decoder` with these tensors as its parameters, in eval mode."""
    with NotDrawn():
        model = build(decoder, decoder.d_model)
    model.load_state_dict(weights, strict=False, assign=True)
    if decoder.tied:
        model.head.weight = model.embedding.weight
    return model.eval()
