"""One value of every part, none of them at its defaults."""

from __future__ import annotations

from nachim.spec import (
    BPE,
    WSD,
    AdamW,
    Attention,
    Corpus,
    Cosine,
    Data,
    Decoder,
    Files,
    HuggingFace,
    Machine,
    MultiStep,
    Muon,
    Part,
    RMSNorm,
    RoPE,
    Run,
    Schedule,
    Stdlib,
    SwiGLU,
    Train,
    Validation,
)

ATTENTION = Attention(n_heads=4, n_kv_heads=2, d_head=8, qk_norm=True, previous_key=True)
MODEL = Decoder(
    vocab_size=300,
    d_model=32,
    n_layers=3,
    attention=ATTENTION,
    ffn=SwiGLU(d_ff=88),
    norm=RMSNorm(eps=1e-5),
    position=RoPE(theta=5e5),
    tied=True,
)
DATA = Data(
    corpus=Files(path="나침/*.jsonl", text_column="body", validation_bytes=4000, near_duplicates=True),
    tokenizer=BPE(vocab_size=300),
    seq_len=16,
    seed=7,
    fingerprint_of_tokens="ab12",
)
TRAIN = Train(
    tokens=6400,
    batch_tokens=64,
    optimizer=AdamW(lr=0.003, beta1=0.8, beta2=0.97, eps=1e-9, weight_decay=0.05),
    schedule=WSD(warmup_tokens=640, decay=0.3),
    clip=0.5,
    precision="bf16",
    micro_batch_tokens=32,
    seed=11,
)
RUN = Run(model=MODEL, data=DATA, train=TRAIN, validation=Validation(tokens=2048, times=3))
MACHINE = Machine(
    name="box",
    device="cuda",
    cores=2,
    fp32_one_thread=1e10,
    fp32_all=2e10,
    bf16_one_thread=1e12,
    bf16_all=2e12,
)
OTHERS: tuple[Part, ...] = (
    Corpus(validation_bytes=9),
    Stdlib(validation_bytes=5, near_duplicates=True),
    HuggingFace(name="a/b", config="en", split="validation", text_column="body"),
    HuggingFace(name="a/b"),
    Schedule(warmup_tokens=3),
    Muon(lr=0.02, momentum=0.9),
    Cosine(warmup_tokens=64, final=0.2),
    MultiStep(warmup_tokens=128),
)
ALL: tuple[Part, ...] = (
    RUN,
    MODEL,
    DATA,
    TRAIN,
    MACHINE,
    ATTENTION,
    MODEL.ffn,
    MODEL.norm,
    MODEL.position,
    DATA.corpus,
    DATA.tokenizer,
    TRAIN.optimizer,
    TRAIN.schedule,
    RUN.validation,
    *OTHERS,
)


def decoder(**changes: object) -> Decoder:
    """A decoder small enough for any test; `changes` are its fields, or those of its attention."""
    attention = {"n_heads": 4, "n_kv_heads": 4, "d_head": 8}
    attention |= {name: changes.pop(name) for name in list(changes) if hasattr(Attention, name) or name in attention}
    fields = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "ffn": SwiGLU(d_ff=40)} | changes
    return Decoder(attention=Attention(**attention), **fields)
