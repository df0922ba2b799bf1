"""What every family is held to: the logits of transformers, tensors bitwise the same after a way there and back."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

import nachim
from nachim.model import DecoderModule
from nachim.model.cache import documents_of
from nachim.model.decoder import tensors
from nachim.model.hf import config_for, open_checkpoint, read_config, write_checkpoint
from nachim.model.hf.checkpoint import shapes, write_each
from nachim.model.hf.source import Source, save
from nachim.spec import Decoder

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
"""A shape, as most config classes name it."""
TOLERANCE = 1e-4
"""Of the largest logit: the bound on the largest error."""
LENGTH = 12
PADDING = (0, 5)
"""Padding before each of two sequences."""
PACKED = (5, 3, 4)
"""Lengths of the documents in a packed sequence."""


def reference(config: PretrainedConfig, attention: str = "eager", seed: int = 0) -> nn.Module:
    """transformers' model of `config`, fp32, with all weights away from their beginnings."""
    torch.manual_seed(seed)
    config._attn_implementation = attention
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
            else:
                weight.add_(torch.randn_like(weight) * 0.3)
        learned = model.state_dict()
        for name, held in model.named_buffers():
            if name in learned:
                held.add_(torch.randn_like(held) * 0.3)
    return model


def hold(config: PretrainedConfig, folder: Path, attention: str = "eager") -> DecoderModule:
    """Save transformers' model of `config`, open it here, and hold the two against each other in every way."""
    model = reference(config, attention)
    model.save_pretrained(folder / "theirs")
    ours = nachim.load(folder / "theirs")
    hold_logits(model, ours, config.vocab_size)
    hold_round_trip(folder, model, ours)
    return ours


def hold_logits(theirs: nn.Module, ours: DecoderModule, vocab_size: int) -> None:
    """Prefill, cached decoding, left padding and packed documents: largest error at most TOLERANCE of the scale."""
    ids_BT = torch.randint(0, vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids_BT, use_cache=False).logits
        close("prefill", ours(ids_BT), expected)
        close("decoding", decoded(ours, ids_BT), expected)
        for row, padding in enumerate(PADDING):
            hold_padding(theirs, ours, ids_BT[row], padding)
        pieces = ids_BT[:1].split(PACKED, 1)
        documents_BT = torch.repeat_interleave(torch.arange(len(PACKED)), torch.tensor(PACKED))[None]
        alone = torch.cat([theirs(piece, use_cache=False).logits for piece in pieces], 1)
        close("packed", ours(ids_BT[:1], documents_BT), alone)
        close("packed, decoding", decoded(ours, ids_BT[:1], documents_BT), alone)


def hold_padding(theirs: nn.Module, ours: DecoderModule, ids_T: Tensor, padding: int) -> None:
    """A sequence after padding, in transformers with a mask and positions, here as documents; read and decoded."""
    ids_BT = torch.cat((torch.zeros(padding, dtype=torch.int64), ids_T))[None]
    mask_BT = torch.cat((torch.zeros(padding), torch.ones(len(ids_T)))).long()[None]
    documents_BT = documents_of(mask_BT)
    expected = padded(theirs, ids_BT, mask_BT)[:, padding:]
    logits = ours(ids_BT, documents_BT)
    assert logits.isfinite().all()
    close("padding", logits[:, padding:], expected)
    close("padding, decoding", decoded(ours, ids_BT, documents_BT)[:, padding:], expected)


def padded(theirs: nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Logits of transformers for left-padded sequences, positions counted from the first token."""
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    names = inspect.signature(theirs.forward).parameters
    positions = {"position_ids": positions_BT} if "position_ids" in names else {}
    return theirs(ids_BT, attention_mask=mask_BT, use_cache=False, **positions).logits


def decoded(model: DecoderModule, ids_BT: Tensor, documents_BT: Tensor | None = None, first: int = 3) -> Tensor:
    """Logits of a cached pass: a prompt of `first` tokens, a piece of two, then token by token."""
    cache, found = model.start(), []
    for piece in (
        slice(0, first),
        slice(first, first + 2),
        *(slice(i, i + 1) for i in range(first + 2, ids_BT.shape[1])),
    ):
        found.append(model(ids_BT[:, piece], None if documents_BT is None else documents_BT[:, piece], cache))
    return torch.cat(found, 1)


def close(what: str, found: Tensor, expected: Tensor) -> None:
    """Largest error at most TOLERANCE of the largest logit."""
    assert found.shape == expected.shape
    error, scale = float((found - expected).abs().max()), float(expected.abs().max())
    assert error <= TOLERANCE * scale, f"{what}: error {error:.2e} at logits up to {scale:.2g}"


def hold_round_trip(folder: Path, theirs: nn.Module, ours: DecoderModule) -> None:
    """Export what was loaded, with and without the config it came with; both open in transformers and are the same."""
    kept = json.loads((folder / "theirs" / "config.json").read_text())
    save({name: weight.detach() for name, weight in tensors(ours).items()}, folder / "ours.safetensors")
    source = Source([folder / "ours.safetensors"])
    for name, config in (("kept", kept), ("anew", None)):
        out = folder / name
        out.mkdir()
        family, values = config_for(ours.spec, getattr(theirs.config, "max_position_embeddings", 64), config)
        write_checkpoint(out, family, values, ours.spec, source)
        again, told = AutoModelForCausalLM.from_pretrained(
            out, output_loading_info=True, attn_implementation=theirs.config._attn_implementation, dtype=torch.float32
        )
        assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
        ids_BT = torch.arange(LENGTH)[None] % ours.spec.vocab_size
        with torch.no_grad():
            close(name, again.eval()(ids_BT, use_cache=False).logits, theirs(ids_BT, use_cache=False).logits)
        hold_bitwise(open_checkpoint(out).weights(), source)
    hold_bitwise(load_file(folder / "kept" / "model.safetensors"), load_file(folder / "theirs" / "model.safetensors"))
    assert json.loads((folder / "kept" / "config.json").read_text()) == kept


def hold_published(values: dict[str, Any], stored: tuple[str, str] = ("", "")) -> Decoder:
    """A config as it stands on the Hub has the tensors of transformers' model, and says what transformers 5 writes.

    `stored` is a prefix of names in transformers' module, and what stands for it in files.
    """
    family, config, decoder = read_config(values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    parameters = {re.sub(f"^{stored[0]}", stored[1], name): weight for name, weight in model.named_parameters()}
    expected = {name: tuple(weight.shape) for name, weight in parameters.items()}
    found = write_each(family.rules_for(decoder, config), shapes(decoder))
    assert {name: tuple(weight.shape) for name, weight in found.items()} == expected
    assert read_config(model.config.to_dict())[2] == decoder
    assert not config.unknown
    return decoder


def hold_bitwise(found, expected) -> None:
    """Both hold the same tensors, bit for bit."""
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name]), name
