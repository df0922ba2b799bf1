"""Jamba: selective state spaces with inner norms, attention without positions now and then, experts in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nachim.model.hf.common import attention_rules, expert_rules, gated_rules, over_layers, read_shape, write_shape
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.mamba import mixer_rules, rank
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import Attention, Decoder, Mamba, MoE, NoPosition, RMSNorm, SwiGLU
from nachim.spec.model import Block

TRAINING = (
    "calc_logits_for_entire_prompt",
    "max_position_embeddings",
    "num_logits_to_keep",
    "output_router_logits",
    "router_aux_loss_coef",
    "use_associative_scan",
    "use_mamba_kernels",
    "use_mambapy",
)
"""What is asked of training, or which kernels run."""


def to_spec(config: Config) -> Decoder:
    """The decoder of a Jamba config."""
    config.without_effect(*TRAINING)
    for key, value in {"hidden_act": "silu", "mamba_conv_bias": True, "mamba_proj_bias": False}.items():
        config.only(key, value)
    config.only("mamba_inner_layernorms", True)
    config.only("sliding_window", None)
    shape = read_shape(config)
    kinds = _mixer(config, shape["d_model"]), _attention(config, shape["d_model"])
    ffns = _feed_forwards(config)
    every = {name: (config.get(f"{name}_period", p), config.get(f"{name}_offset", o)) for name, (p, o) in TURNS.items()}
    numbers = range(shape["n_layers"])
    return Decoder(
        **shape,
        attention=over_layers([kinds[_in_turn(layer, every["attn_layer"])] for layer in numbers]),
        ffn=over_layers([ffns[_in_turn(layer, every["expert_layer"])] for layer in numbers]),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        position=NoPosition(),
    )


TURNS = {"attn_layer": (8, 4), "expert_layer": (2, 1)}
"""Period and offset of the layers with attention, and of those with experts, where a config is silent."""


def _in_turn(layer: int, turns: tuple[int, int]) -> bool:
    period, offset = turns
    return layer % period == offset


def _mixer(config: Config, d_model: int) -> Mamba:
    return Mamba(
        d_inner=config.get("mamba_expand", 2) * d_model,
        d_state=config.get("mamba_d_state", 16),
        dt_rank=rank(config, "mamba_dt_rank", d_model),
        d_conv=config.get("mamba_d_conv", 4),
        inner_norm=True,
        eps=config.get("rms_norm_eps", 1e-6),
    )


def _feed_forwards(config: Config) -> tuple[SwiGLU, SwiGLU | MoE]:
    """Of a layer out of turn, and of one in turn; a sole expert is no mixture."""
    d_ff, experts, active = (
        config.get(key, default)
        for key, default in {"intermediate_size": 14_336, "num_experts": 16, "num_experts_per_tok": 2}.items()
    )
    dense = SwiGLU(d_ff=d_ff)
    return dense, dense if experts == 1 else MoE(d_ff=d_ff, experts=experts, active=active, renormalise=False)


def _attention(config: Config, d_model: int) -> Attention:
    heads = config.get("num_attention_heads", 32)
    return Attention(n_heads=heads, n_kv_heads=config.get("num_key_value_heads", 8), d_head=d_model // heads)


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Jamba config nearest to a decoder."""
    mixers, ffns = [block.mixer for block in decoder.blocks], [block.ffn for block in decoder.blocks]
    state = next(part for part in [*mixers, None] if not isinstance(part, Attention))
    attention = next((part for part in mixers if isinstance(part, Attention)), None)
    experts = next((part for part in ffns if isinstance(part, MoE)), None)
    attends, chooses = (
        [isinstance(part, kind) for part in parts] for parts, kind in ((mixers, Attention), (ffns, MoE))
    )
    return {
        **write_shape(decoder, context),
        **_turns("attn_layer", attends),
        **_turns("expert_layer", chooses),
        "mamba_expand": state.d_inner // decoder.d_model,
        "mamba_d_state": state.d_state,
        "mamba_dt_rank": state.dt_rank,
        "mamba_d_conv": state.d_conv,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        **({} if attention is None else _heads(attention)),
        "hidden_act": "silu",
        "intermediate_size": ffns[0].d_ff,
        "num_experts": 1 if experts is None else experts.experts,
        **({} if experts is None else {"num_experts_per_tok": experts.active}),
        "rms_norm_eps": decoder.norm.eps,
    }


def _heads(part: Attention) -> dict[str, int]:
    return {"num_attention_heads": part.n_heads, "num_key_value_heads": part.n_kv_heads}


def _turns(name: str, chosen: Sequence[bool]) -> dict[str, int]:
    """Period and offset that give the layers `chosen`; those of none where no layer is, or no turns give them."""
    fitting = (
        (period, offset)
        for period in range(1, len(chosen) + 2)
        for offset in range(period)
        if all(_in_turn(layer, (period, offset)) == one for layer, one in enumerate(chosen))
    )
    period, offset = next(fitting, (len(chosen) + 1, len(chosen)))
    return {f"{name}_period": period, f"{name}_offset": offset}


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Jamba checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from module("ffn_norm", "pre_ff_layernorm")
        yield from attention_rules(block) if isinstance(block.mixer, Attention) else mixer_rules(block.mixer, "mamba")
        if isinstance(block.ffn, MoE):
            yield from module("ffn.router", "feed_forward.router")
            yield from expert_rules(block.ffn, "feed_forward.experts")
        else:
            yield from gated_rules(theirs="feed_forward")

    yield from module("embedding", "model.embed_tokens")
    yield from module("norm", "model.final_layernorm")
    yield from module("head", "lm_head")
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("jamba", "JambaForCausalLM", to_spec, to_config, rules),)
