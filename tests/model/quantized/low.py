"""A small decoder whose matrices are in few bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch

from nachim.infer.quantize.rounding import rounded
from nachim.model import DecoderModule
from nachim.model.decoder import tensors
from nachim.model.quantized import store
from nachim.model.quantized.linear import matrices
from nachim.spec import NF4, Attention, Decoder, Int4, Int8, MoE, SwiGLU
from nachim.spec.quantize import Scheme
from tests.model.contract import drawn

SCHEMES = (
    Int8(),
    Int4(group=32),
    Int4(group=32, symmetric=True),
    NF4(group=32),
    NF4(group=64, double=False),
)
DENSE = Decoder(
    vocab_size=61,
    d_model=64,
    n_layers=2,
    attention=Attention(n_heads=4, n_kv_heads=2, d_head=16, bias="all"),
    ffn=SwiGLU(d_ff=128),
)
LLAMA = replace(DENSE, attention=replace(DENSE.attention, bias="none"))
SPARSE = Decoder(
    vocab_size=61,
    d_model=64,
    n_layers=2,
    attention=Attention(n_heads=4, n_kv_heads=2, d_head=16),
    ffn=MoE(experts=4, active=2, d_ff=64, shared=1),
)


def model_of(spec: Decoder) -> DecoderModule:
    """The same weights whenever they are drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return drawn(spec)


def written(folder: Path, spec: Decoder, scheme: Scheme) -> DecoderModule:
    """Write a quantised decoder into `folder`; the dense one with the values that its codes stand for."""
    model = model_of(spec)
    coded = rounded(model, tuple(matrices(model)), scheme)
    kept = {name: tensor.detach() for name, tensor in tensors(model).items() if name not in coded}
    spec.save(folder / "run.json")
    store.write(folder, scheme, "rtn", "of these weights", coded, kept)
    dense = copy.deepcopy(model)
    values = {name: [one.decode() for one in each] for name, each in coded.items()}
    found = {name: each[0] if len(each) == 1 else torch.stack(each) for name, each in values.items()}
    dense.load_state_dict(found, strict=False)
    return dense.eval()
