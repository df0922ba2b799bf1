"""DeepSeek-V2 and V3: latent attention, dense layers first, then many narrow experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nachim.model.hf.common import expert_rules, gated_rules, outer_rules, over_layers, read_shape, write_shape
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import (
    KEEP,
    Rule,
    Tensors,
    Transform,
    each,
    half_split,
    layers,
    module,
    rule,
)
from nachim.spec import MLA, MTP, Decoder, MoE, RMSNorm, SwiGLU
from nachim.spec.model import Block

LAYER = "model.layers.{}."
GREEDY, LIMITED = "greedy", "group_limited_greedy"
INTERLEAVED = "rope_interleave"
"""Whether V3's rotary pairs stand side by side; V2's always do."""
FURTHER = ("num_nextn_predict_layers", "num_mtp_layers")
"""Names of the number of modules for further tokens, the first of which is written."""


@dataclass(frozen=True)
class Version:
    """What tells V2 and V3 apart: how scores are made, and the defaults of the config class."""

    scores: Literal["softmax", "sigmoid"]
    defaults: Mapping[str, Any]


V2 = Version(
    scores="softmax",
    defaults={"first_k_dense_replace": 0, "intermediate_size": 11_008, "moe_intermediate_size": 1407}
    | {"n_routed_experts": 64, "n_shared_experts": 2, "routed_scaling_factor": 1.0},
)
V3 = Version(
    scores="sigmoid",
    defaults={"first_k_dense_replace": 3, "intermediate_size": 18_432, "moe_intermediate_size": 2048}
    | {"n_routed_experts": 256, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "num_experts_per_tok": 8}
    | {"n_group": 8, "topk_group": 4, "norm_topk_prob": True},
)


def to_spec(config: Config, version: Version) -> Decoder:
    """The decoder of a DeepSeek config, with the modules for further tokens that V3's says there are."""
    config.without_effect("max_position_embeddings", "head_dim", "qk_head_dim", "ep_size", "output_router_logits")
    config.without_effect("aux_loss_alpha", "seq_aux")
    config.without_effect(*(() if version is V3 else FURTHER))
    modules = config.get(FURTHER[0], config.get(FURTHER[1], 1)) if version is V3 else 0
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    config.only("moe_layer_freq", 1)
    config.only("scoring_func", version.scores)
    config.get(INTERLEAVED)
    shape = read_shape(config)
    part = _latent(config)
    dense = min(_value(config, version, "first_k_dense_replace"), shape["n_layers"])
    ffn = [SwiGLU(d_ff=_value(config, version, "intermediate_size"))] * dense
    if dense < shape["n_layers"]:
        ffn += [_experts(config, version)] * (shape["n_layers"] - dense)
    return Decoder(
        **shape,
        attention=part,
        ffn=over_layers(ffn),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        position=read_rope(config, part.rope_dim),
        mtp=MTP(depth=modules) if modules else None,
    )


def _value(config: Config, version: Version, key: str) -> Any:
    return config.get(key, version.defaults[key]) if key in version.defaults else config.need(key)


def _latent(config: Config) -> MLA:
    heads = config.need("num_attention_heads")
    config.only("num_key_value_heads", heads)
    return MLA(
        n_heads=heads,
        d_head=config.get("qk_nope_head_dim", 128),
        rank=config.get("kv_lora_rank", 512),
        rope_dim=config.get("qk_rope_head_dim", 64),
        q_rank=config.given("q_lora_rank", 1536),
        d_value=config.get("v_head_dim", 128),
    )


def _experts(config: Config, version: Version) -> MoE:
    shared = _value(config, version, "n_shared_experts")
    if shared < 1:
        config.refuse("n_shared_experts", shared, "these families have at least one")
    return MoE(
        d_ff=_value(config, version, "moe_intermediate_size"),
        experts=_value(config, version, "n_routed_experts"),
        active=_value(config, version, "num_experts_per_tok"),
        shared=shared,
        scale=_value(config, version, "routed_scaling_factor"),
        **(_choice_of_v2(config) if version is V2 else _choice_of_v3(config)),
    )


def _choice_of_v2(config: Config) -> dict[str, Any]:
    config.only("norm_topk_prob", False)
    chosen = {"scores": "softmax", "renormalise": False}
    if config.only("topk_method", GREEDY, LIMITED) == GREEDY:
        config.without_effect("n_group", "topk_group")
        return chosen
    return {**chosen, "groups": config.need("n_group"), "top_groups": config.need("topk_group"), "group_score": "max"}


def _choice_of_v3(config: Config) -> dict[str, Any]:
    config.only("topk_method", "noaux_tc")
    groups = _value(config, V3, "n_group")
    return {
        "scores": "sigmoid",
        "renormalise": _value(config, V3, "norm_topk_prob"),
        "groups": groups,
        "top_groups": _value(config, V3, "topk_group"),
        "group_score": "top2" if groups > 1 else "max",
        "bias_step": 0.0,
    }


def to_config(decoder: Decoder, context: int, version: Version) -> dict[str, Any]:
    """The config nearest to a decoder."""
    first, last = decoder.blocks[0], decoder.blocks[-1]
    part, dense = first.mixer, sum(isinstance(block.ffn, SwiGLU) for block in decoder.blocks)
    return {
        **write_shape(decoder, context),
        **write_rope(first.position, part.rope_dim),
        **({"intermediate_size": first.ffn.d_ff} if dense else {}),
        "first_k_dense_replace": dense,
        "num_attention_heads": part.n_heads,
        "num_key_value_heads": part.n_heads,
        "qk_nope_head_dim": part.d_head,
        "qk_rope_head_dim": part.rope_dim,
        "kv_lora_rank": part.rank,
        "q_lora_rank": part.q_rank,
        "v_head_dim": part.value_width,
        "rms_norm_eps": decoder.norm.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        **({INTERLEAVED: True, FURTHER[0]: decoder.passes - 1} if version is V3 else {"mlp_bias": False}),
        **({} if dense == decoder.n_layers else _written(last.ffn, version)),
    }


def _written(part: MoE, version: Version) -> dict[str, Any]:
    limited = part.groups > 1 or version is V3
    return {
        "moe_intermediate_size": part.d_ff,
        "n_routed_experts": part.experts,
        "num_experts_per_tok": part.active,
        "n_shared_experts": part.shared,
        "routed_scaling_factor": part.scale,
        "norm_topk_prob": part.renormalised,
        "scoring_func": part.scores,
        "topk_method": "noaux_tc" if version is V3 else LIMITED if limited else GREEDY,
        **({"n_group": part.groups, "topk_group": part.top_groups} if limited else {}),
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a DeepSeek checkpoint."""
    paired = config.get(INTERLEAVED, True)

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from module("ffn_norm", "post_attention_layernorm")
        yield from _latent_rules(block.mixer, paired)
        yield from _expert_rules(block.ffn) if isinstance(block.ffn, MoE) else gated_rules()

    yield from outer_rules()
    yield from layers(decoder, LAYER, block_rules)
    last = tuple(block_rules(decoder.blocks[-1]))
    for number in range(decoder.passes - 1):
        ours, theirs = f"mtp.{number}.", LAYER.format(decoder.n_layers + number)
        yield from (one.under(ours, theirs) for one in _module_rules(decoder))
        yield from (one.under(f"{ours}block.", theirs) for one in last)
        table = "embedding.weight" if decoder.tied else "head.weight"
        yield Rule(("embedding.weight",), (f"{theirs}embed_tokens.weight",), copy=True)
        yield Rule((table,), (f"{theirs}shared_head.head.weight",), copy=True)


def _module_rules(decoder: Decoder) -> Iterator[Rule]:
    """What a module for further tokens has beside its block; theirs joins the token before the stream."""
    yield from module("stream_norm", "hnorm")
    yield from module("token_norm", "enorm")
    yield from module("norm", "shared_head.norm")

    def swapped(matrix: Tensor) -> Tensor:
        return matrix.roll(decoder.d_model, 1)

    yield from module("join", "eh_proj", each(swapped, swapped))


def _latent_rules(part: MLA, paired: bool) -> Iterator[Rule]:
    heads = ends_turned(part.d_head, part.rope_dim) if paired else KEEP
    if part.q_rank is None:
        yield from module("attention.q", "self_attn.q_proj", heads)
    else:
        yield from module("attention.q_down", "self_attn.q_a_proj")
        yield from module("attention.q_norm", "self_attn.q_a_layernorm")
        yield from module("attention.q_up", "self_attn.q_b_proj", heads)
    shared = ends_turned(part.rank, part.rope_dim) if paired else KEEP
    yield from module("attention.kv_down", "self_attn.kv_a_proj_with_mqa", shared)
    yield from module("attention.kv_norm", "self_attn.kv_a_layernorm")
    yield from module("attention.kv_up", "self_attn.kv_b_proj")
    yield from module("attention.out", "self_attn.o_proj")


def ends_turned(own: int, turned: int) -> Transform:
    """Heads of `own` rows and `turned` rotary ones after them, these from pairs side by side to halves."""

    def over(x: Tensor, change: Callable[[Tensors], Tensors]) -> Tensor:
        heads = x.unflatten(0, (-1, own + turned))
        (moved,) = change((heads[:, own:].flatten(0, 1),))
        return torch.cat((heads[:, :own], moved.unflatten(0, (-1, turned))), 1).flatten(0, 1)

    ends = half_split(turned)
    return each(lambda x: over(x, ends.read), lambda x: over(x, ends.write))


def _expert_rules(part: MoE) -> Iterator[Rule]:
    yield from module("ffn.router", "mlp.gate")
    yield from expert_rules(part, "mlp.experts")
    if part.bias_step is not None:
        yield rule("ffn.router.selection_bias", "mlp.gate.e_score_correction_bias")
    yield from gated_rules("ffn.shared", "mlp.shared_experts")


def _family(name: str, architecture: str, version: Version) -> Family:
    return Family(
        name,
        architecture,
        lambda config: to_spec(config, version),
        lambda decoder, context: to_config(decoder, context, version),
        rules,
        ignored=(r".*\.rotary_emb\.inv_freq", r"model\.layers\.61\..*"),
    )


FAMILIES = (
    _family("deepseek_v2", "DeepseekV2ForCausalLM", V2),
    _family("deepseek_v3", "DeepseekV3ForCausalLM", V3),
)
