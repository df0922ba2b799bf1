"""Every part by a recipe of three lines: `nachim train recipes/parts.py:latent --out runs/latent`.

Each puts one part in the place of its like in the run of recipes/stdlib.py: 2 layers of 64, a million tokens of the
embedded corpus, about a minute on a core. Patterns take 4 layers.
"""

from __future__ import annotations

from dataclasses import replace

from nachim.spec import (
    BPE,
    FIRE,
    MLA,
    MLP,
    MTP,
    RGLRU,
    WSD,
    ALiBi,
    Attention,
    Data,
    Decoder,
    GatedDeltaNet,
    GeGLU,
    InfiniAttention,
    LayerNorm,
    Learned,
    LinearAttention,
    Mamba,
    Mamba2,
    MixtureOfDepths,
    MoE,
    Muon,
    NoPosition,
    OutputNorm,
    Parallel,
    Pattern,
    RMSNorm,
    RoPE,
    Run,
    SandwichNorm,
    Sinusoidal,
    SwiGLU,
    Train,
)

ATTENTION = Attention(n_heads=4, n_kv_heads=4, d_head=16, qk_norm=True)
LOCAL = replace(ATTENTION, window=32)
STATE = Mamba2(n_heads=8, d_head=16, d_state=16, chunk=64)


def run(**parts: object) -> Run:
    """The plain decoder with these parts in the place of its own."""
    blocks = {"attention": ATTENTION, "ffn": SwiGLU(d_ff=168), "n_layers": 2} | parts
    train = Train(tokens=1_024_000, batch_tokens=1024, optimizer=Muon(lr=0.01), schedule=WSD(warmup_tokens=65_536))
    data = Data(tokenizer=BPE(vocab_size=512), seq_len=128)
    return Run(model=Decoder(vocab_size=512, d_model=64, **blocks), data=data, train=train)


def multi_query() -> Run:
    """One key and value head for all queries."""
    return run(attention=replace(ATTENTION, n_kv_heads=1))


def local_global() -> Run:
    """Three layers that see 32 tokens, then one that sees all."""
    return run(attention=Pattern(parts=(LOCAL, LOCAL, LOCAL, ATTENTION)), n_layers=4)


def capped() -> Run:
    """Scores and logits bounded as in Gemma-2, with its norms."""
    return run(attention=replace(ATTENTION, softcap=50.0), logit_cap=30.0, residual=SandwichNorm())


def sinks() -> Run:
    """A learned sink in every head's softmax."""
    return run(attention=replace(ATTENTION, sinks=True))


def latent() -> Run:
    """Latent attention: 40 values cached a token instead of 128."""
    return run(attention=MLA(n_heads=4, d_head=16, rank=32, rope_dim=8))


def infini() -> Run:
    """Segments of 32 tokens beside a compressive memory."""
    return run(attention=InfiniAttention(n_heads=4, n_kv_heads=4, d_head=16, segment=32))


def alibi() -> Run:
    """Scores that fall with distance."""
    return run(position=ALiBi())


def fire() -> Run:
    """A learned function of distance."""
    return run(position=FIRE(n_heads=4))


def nope() -> Run:
    """No position; its cousins: `position=Learned(length=128)` and `position=Sinusoidal()`."""
    return run(position=NoPosition())


def learned() -> Run:
    """GPT-2's block: a table of positions, LayerNorm, GELU, biases."""
    mlp = MLP(d_ff=256, activation="gelu_tanh", bias=True)
    return run(attention=replace(ATTENTION, bias="all"), ffn=mlp, norm=LayerNorm(), position=Learned(length=128))


def sinusoidal() -> Run:
    """The first transformer's positions, and squared ReLU."""
    return run(position=Sinusoidal(), ffn=MLP(d_ff=256, activation="relu2"))


def half_turned() -> Run:
    """GPT-NeoX's block: a quarter of the channels turn; attention and feed-forward side by side."""
    return run(position=RoPE(dim=4), residual=Parallel(), norm=LayerNorm())


def output_norm() -> Run:
    """OLMo-2's block: norms after the sublayers, queries and keys normalised over all heads."""
    return run(attention=replace(ATTENTION, qk_norm_over="all"), residual=OutputNorm())


def gated_gelu() -> Run:
    """Gemma's block: GeGLU, gains stored as their distance from 1, embedded tokens scaled."""
    return run(ffn=GeGLU(d_ff=168), norm=RMSNorm(offset=True), embedding_scale=8.0)


def experts() -> Run:
    """16 experts, 2 a token, kept even by biases and no auxiliary loss."""
    return run(ffn=MoE(d_ff=84, experts=16, active=2, bias_step=0.001))


def fine_experts() -> Run:
    """DeepSeekMoE: after one dense layer 32 narrow experts, 4 a token, one shared, sigmoid scores, four groups."""
    moe = MoE(
        d_ff=32,
        experts=32,
        active=4,
        shared=1,
        scores="sigmoid",
        groups=4,
        top_groups=2,
        group_score="top2",
        bias_step=0.001,
    )
    return run(ffn=Pattern(first=(SwiGLU(d_ff=168),), parts=(moe,)), n_layers=4)


def depths() -> Run:
    """In every other block only an eighth of the tokens is worked on."""
    return run(depth=MixtureOfDepths(capacity=0.125, every=2), n_layers=4)


def mamba() -> Run:
    """Selective state spaces alone."""
    return run(attention=Mamba(d_inner=128, dt_rank=4), ffn=None, n_layers=4)


def hybrid() -> Run:
    """Three layers of Mamba-2 to one of attention, and no position."""
    return run(attention=Pattern(parts=(STATE, STATE, STATE, ATTENTION)), n_layers=4, position=NoPosition())


def retention() -> Run:
    """RetNet: heads that forget at fixed rates."""
    return run(attention=LinearAttention(n_heads=4, d_key=16, d_value=32, chunk=64))


def gated_linear() -> Run:
    """Linear attention whose decay each token sets."""
    return run(attention=LinearAttention(n_heads=4, d_key=16, d_value=32, decay_rank=8, chunk=64))


def delta() -> Run:
    """The gated delta rule."""
    return run(attention=GatedDeltaNet(n_heads=4, n_key_heads=2, d_key=16, d_value=32))


def griffin() -> Run:
    """Griffin: two recurrent units to one local attention."""
    unit = RGLRU(d_rnn=64, n_blocks=4)
    return run(attention=Pattern(parts=(unit, unit, LOCAL)), n_layers=3)


def further() -> Run:
    """One module that is trained to predict the token after the next."""
    return run(mtp=MTP(depth=1))
