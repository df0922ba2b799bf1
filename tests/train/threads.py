"""As a script, ``python threads.py``: 20 steps of decoders of every sort on the threads that OMP_NUM_THREADS says, and
printed as JSON a hash of each one's weights. Lengths are such that sums over the tokens are worth sharing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import torch

from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import (
    BPE,
    MLA,
    MLP,
    WSD,
    AdamW,
    Data,
    Decoder,
    LayerNorm,
    Learned,
    Mamba2,
    MoE,
    Muon,
    Run,
    Train,
)
from nachim.train.guard import Guard
from nachim.train.step import Stepper
from tests.spec.examples import decoder
from tests.train.tiny import loss

STEPS, ROWS, LENGTH = 20, 8, 128
BASE = decoder(n_kv_heads=2, n_layers=1, vocab_size=257)
GPT2 = decoder(
    bias="all",
    n_layers=1,
    vocab_size=257,
    ffn=MLP(d_ff=64, bias=True),
    norm=LayerNorm(),
    position=Learned(length=LENGTH),
)
LATENT, EXPERTS = MLA(n_heads=2, d_head=16, rank=16, rope_dim=8), MoE(d_ff=16, experts=4, active=2)
CASES = {
    "plain": (BASE, {}),
    "LayerNorm, biases, a table": (GPT2, {}),
    "bf16": (GPT2, {"precision": "bf16"}),
    "latent, experts, Muon": (replace(BASE, attention=LATENT, ffn=EXPERTS), {"optimizer": Muon(lr=1e-2)}),
    "states, micro-batches": (
        replace(BASE, attention=Mamba2(n_heads=2, d_head=16, d_state=16)),
        {"micro_batch_tokens": ROWS * LENGTH // 2},
    ),
}


def hash_of(model: Decoder, steps: int = STEPS, **changes: object) -> str:
    """Of the weights of `model` after some steps on random tokens."""
    tokens = ROWS * LENGTH
    fields = {"tokens": STEPS * tokens, "batch_tokens": tokens, "optimizer": AdamW(lr=1e-2), "schedule": WSD()}
    data = Data(tokenizer=BPE(vocab_size=model.vocab_size), seq_len=LENGTH)
    run = Run(model=model, data=data, train=Train(**fields | changes))
    module = build(model, model.d_model)
    initialise(module, 0)
    stepper, guard = Stepper(run, module, loss), Guard(1.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        stepper.take(step, torch.randint(model.vocab_size, (ROWS, LENGTH + 1), generator=generator), guard)
    digest = hashlib.sha256()
    for weight in stepper.masters.weights:
        digest.update(weight.detach().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    found = {name: hash_of(model, **changes) for name, (model, changes) in CASES.items()}
    print(json.dumps(found | {"threads": torch.get_num_threads()}))
