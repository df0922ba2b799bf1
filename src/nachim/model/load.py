"""A model from a folder: one of our runs, or a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nachim.model.build import build
from nachim.model.decoder import DecoderModule
from nachim.model.hf.checkpoint import open_checkpoint, shapes
from nachim.model.hf.source import Source, check
from nachim.model.weights import CHECKPOINT, WEIGHTS, latest
from nachim.spec import Decoder, Part, Run, UserError

RUN = "run.json"


def load(folder: Path | str, dtype: str | None = "float32") -> DecoderModule:
    """The model in `folder`, in eval mode; called with token ids [B, T] it gives logits [B, T, V].

    `folder` is one of our runs (run.json and a checkpoint, the newest is taken) or a Hugging Face directory. Weights
    are cast to `dtype`, a name that torch knows ("bfloat16"); None keeps what is stored, and what is kept beside the
    weights always stays as it is. Raises UserError, with nothing loaded, for a folder that is neither, an option not
    computed exactly, and tensors that do not fit.
    """
    folder, kind = Path(folder), _dtype(dtype)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if (folder / RUN).is_file():
        decoder, source = open_run(folder)
        weights: Mapping[str, Tensor] = source
    else:
        found = open_checkpoint(folder)
        decoder, weights = found.decoder, found.weights()
    cast = {name for name, tensor in shapes(decoder).items() if isinstance(tensor, nn.Parameter)}
    return module_of(decoder, {name: weights[name].to(kind if name in cast else None) for name in weights})


def _dtype(name: str | None) -> torch.dtype | None:
    found = None if name is None else getattr(torch, name, None)
    if name is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise UserError(f"dtype is {name!r}; torch has no floating-point type of that name, such as 'bfloat16'")
    return found


def open_run(folder: Path) -> tuple[Decoder, Source]:
    """The decoder of one of our runs and its newest weights, in fp32 or as they were imported, not read yet.

    Raises UserError where there is none, or its tensors are not those of its decoder.
    """
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


class _NotDrawn(TorchFunctionMode):
    """Within it, nothing is drawn for new parameters: what is loaded takes their place."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def module_of(decoder: Decoder, weights: dict[str, Tensor]) -> DecoderModule:
    """The module of `decoder` with these tensors as its parameters, in eval mode."""
    with _NotDrawn():
        model = build(decoder, decoder.d_model)
    model.load_state_dict(weights, strict=False, assign=True)
    if decoder.tied:
        model.head.weight = model.embedding.weight
    return model.eval()
