"""One value of every part, none of them at its defaults."""

from __future__ import annotations

from nachim.spec import (
    BPE,
    MLA,
    MLP,
    WSD,
    AdamW,
    Attention,
    Cluster,
    CompleteP,
    Corpus,
    Cosine,
    Data,
    Decoder,
    Device,
    Files,
    GeGLU,
    Growth,
    HuggingFace,
    LayerNorm,
    Learned,
    LinearAttention,
    Machine,
    Mamba,
    Mamba2,
    MixtureOfDepths,
    MoE,
    MultiStep,
    Muon,
    MuP,
    NoPosition,
    OutputNorm,
    Parallel,
    Part,
    Pattern,
    PostNorm,
    PreNorm,
    RMSNorm,
    RoPE,
    Run,
    SandwichNorm,
    Schedule,
    Standard,
    Stdlib,
    SwiGLU,
    Train,
    Validation,
)

ATTENTION = Attention(n_heads=4, n_kv_heads=2, d_head=8, qk_norm=True, previous_key=True)
LOCAL = Attention(n_heads=4, n_kv_heads=2, d_head=8, qk_norm=True, previous_key=True, window=6, bias="all")
LATENT = MLA(n_heads=4, d_head=8, rank=12, rope_dim=4, q_rank=16, d_value=6)
STATE = Mamba(d_inner=64, d_state=5, dt_rank=3, d_conv=3, inner_norm=True)
HEADED_STATE = Mamba2(n_heads=4, d_head=8, d_state=6, n_groups=2, d_conv=3, chunk=4)
LINEAR = LinearAttention(n_heads=4, d_key=6, d_value=8, gate=False, decay_rank=3, chunk=4)
EXPERTS = MoE(d_ff=16, experts=6, active=2, shared=1, shared_gate=True)
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
    growth=Growth(begin_tokens=1280, power=0.5),
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
DEVICE = Device(
    name="card",
    kind="cuda",
    fp32_flops=1e12,
    bf16_flops=2e12,
    fp8_flops=4e12,
    int8_flops=5e12,
    sustained=0.5,
    memory_bytes=1e9,
    memory_bandwidth=1e11,
    node_devices=4,
    link_bandwidth=1e10,
    link_latency=1e-6,
    network_bandwidth=1e9,
    network_latency=1e-5,
    watts=100.0,
    dollars_per_hour=1.0,
    sources=("a datasheet",),
)
HYBRID = Decoder(
    vocab_size=300,
    d_model=32,
    n_layers=5,
    attention=Pattern(first=(LOCAL,), parts=(STATE, LATENT)),
    ffn=Pattern(first=(MLP(d_ff=64, activation="relu2", bias=True),), parts=(EXPERTS, GeGLU(d_ff=48, exact=True))),
    norm=LayerNorm(eps=1e-4),
    position=Learned(length=64),
    tied=True,
    residual=SandwichNorm(),
    embedding_scale=4.0,
    embedding_norm=True,
    logit_cap=30.0,
    depth=MixtureOfDepths(capacity=0.25, every=3),
    parametrisation=CompleteP(base_width=16, base_head=4, base_depth=2),
)
OTHERS: tuple[Part, ...] = (
    LOCAL,
    LATENT,
    STATE,
    HEADED_STATE,
    LINEAR,
    EXPERTS,
    *HYBRID.ffn.first,
    HYBRID.ffn.parts[1],
    HYBRID.attention,
    HYBRID.norm,
    HYBRID.position,
    HYBRID.depth,
    HYBRID.parametrisation,
    MuP(base_width=8, base_head=4),
    Standard(),
    NoPosition(),
    PreNorm(),
    PostNorm(),
    OutputNorm(),
    Parallel(shared=True),
    SandwichNorm(),
    LayerNorm(bias=False),
    RMSNorm(offset=True),
    HYBRID,
    DEVICE,
    Cluster(device=DEVICE, count=8),
    Corpus(validation_bytes=9),
    Stdlib(validation_bytes=5, near_duplicates=True),
    HuggingFace(
        name="a/b",
        config="en",
        split="validation",
        text_column="body",
        validation_bytes=7,
        near_duplicates=True,
    ),
    HuggingFace(name="a/b"),
    Schedule(warmup_tokens=3),
    Muon(lr=0.02, beta1=0.8, beta2=0.97, eps=1e-9, weight_decay=0.05, momentum=0.9),
    Cosine(warmup_tokens=64, final=0.2),
    MultiStep(warmup_tokens=128),
)
ALL: tuple[Part, ...] = (
    RUN,
    MODEL,
    DATA,
    TRAIN,
    TRAIN.growth,
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
