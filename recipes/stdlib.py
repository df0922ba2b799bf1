"""Whole runs on the embedded corpus, for a CPU box: `nachim train recipes/stdlib.py[:NAME] --out DIR`.

A recipe is a function that returns a Run. Copy one, change what you like: the run is a value, and its folder keeps it.
"""

from __future__ import annotations

from dataclasses import replace

from nachim.spec import BPE, WSD, AdamW, Attention, Cosine, Data, Decoder, Muon, Run, SwiGLU, Train, plain

DATA = Data(tokenizer=BPE(vocab_size=512), seq_len=128)
"""The source of Python's standard library, 512 byte pairs, 128 tokens of context."""


def run() -> Run:
    """The quickstart's recipe at one size: 2 layers x 64, Muon, previous-token keys; about half a minute."""
    attention = Attention(n_heads=4, n_kv_heads=4, d_head=16, qk_norm=True, previous_key=True)
    model = Decoder(vocab_size=512, d_model=64, n_layers=2, attention=attention, ffn=SwiGLU(d_ff=168))
    train = Train(
        tokens=1_024_000, batch_tokens=1024, optimizer=Muon(lr=0.01), schedule=WSD(warmup_tokens=64 * 1024), seed=0
    )
    return Run(model=model, data=DATA, train=train)


def plain_adamw() -> Run:
    """The literature's plain block at the same size, AdamW and a cosine: what `run` is measured against."""
    train = replace(run().train, optimizer=AdamW(lr=0.005), schedule=Cosine(warmup_tokens=64 * 1024))
    return Run(model=plain(d_model=64, n_layers=2, d_head=16, vocab_size=512), data=DATA, train=train)


def grouped() -> Run:
    """`run` with two key-value heads for four query heads: half the cache."""
    model = run().model
    return replace(run(), model=replace(model, attention=replace(model.attention, n_kv_heads=2)))
