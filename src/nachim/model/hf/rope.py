"""Rotary positions in a config.json, in the spelling of transformers 4 and in that of 5."""

from __future__ import annotations

from typing import Any

from nachim.model.hf.config import Config
from nachim.spec import DynamicNTK, Interpolated, Llama3Scaling, LongRoPE, RoPE, YaRN
from nachim.spec.scaling import Scaling

ORIGINAL = "original_max_position_embeddings"
SHARE = "partial_rotary_factor"
KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


def read_rope(config: Config, d_head: int, theta: float = 10_000.0, share: float | None = None) -> RoPE:
    """The rotary position of all layers. transformers 5 writes `rope_parameters`; 4 wrote `rope_theta`, `rope_scaling`
    and `partial_rotary_factor`.

    `theta` and `share`, that of a head's channels which turn, are the family's defaults; where `share` is None the
    family turns all.
    """
    given = {SHARE: config.get(SHARE, share), **(config.get("rope_parameters") or {})}
    return rope(config, {**given, **(config.get("rope_scaling") or {})}, d_head, config.get("rope_theta", theta), share)


def rope(config: Config, given: dict[str, Any], d_head: int, theta: float, share: float | None = None) -> RoPE:
    """The rotary position that a dict of `rope_parameters` asks for, `theta` and `share` where it has none.

    Raises UserError for a share where `share` is None: transformers' families that turn all do not read it.
    """
    base, turned = given.get("rope_theta", theta), given.get(SHARE, share)
    if share is None and turned not in (None, 1):
        config.refuse(SHARE, turned, f"a {config.get('model_type')} model turns whole heads")
    dim = int(d_head * (1 if turned is None else turned))
    return RoPE(theta=base, dim=None if dim == d_head else dim, scaling=_scaling(config, given))


def _scaling(config: Config, given: dict[str, Any]) -> Scaling | None:
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in KINDS:
        config.refuse("rope_type", kind, f"computed exactly are {', '.join(KINDS)}")
    if kind == "default":
        return None
    if kind == "linear":
        return Interpolated(factor=_need(config, given, "factor"))
    longest = config.need("max_position_embeddings")
    if kind == "dynamic":
        return DynamicNTK(factor=_need(config, given, "factor"), original=longest)
    original = config.get(ORIGINAL, given.get(ORIGINAL, longest))
    if kind == "llama3":
        names = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor"}
        return Llama3Scaling(original=original, **{ours: _need(config, given, key) for ours, key in names.items()})
    factor = given.get("factor") or longest / original
    sharper = given.get("attention_factor")
    if kind == "yarn":
        optional = {key: given[key] for key in ("beta_fast", "beta_slow") if given.get(key)}
        optional |= {key: given[key] for key in ("mscale", "mscale_all_dim", "truncate") if given.get(key) is not None}
        return YaRN(factor=factor, original=original, attention_factor=sharper, **optional)
    divisors = {ours: tuple(map(float, _need(config, given, f"{ours}_factor"))) for ours in ("short", "long")}
    return LongRoPE(factor=factor, original=original, attention_factor=sharper, **divisors)


def _need(config: Config, given: dict[str, Any], key: str) -> Any:
    if given.get(key) is None:
        config.refuse("rope_scaling", given, f"{key!r} is missing")
    return given[key]


def write_rope(position: RoPE, d_head: int) -> dict[str, Any]:
    """The keys of `position` in the older spelling, which every release of transformers reads.

    The share that turns is written where it is not all. Dynamic and LongRoPE scaling write the longest context too.
    """
    share = {} if position.dim is None else {SHARE: position.dim / d_head}
    return {"rope_theta": position.theta, **share, **write_scaling(position.scaling)}


def write_scaling(part: Scaling | None) -> dict[str, Any]:
    """`rope_scaling` and what belongs to it; nothing for frequencies as they are."""
    match part:
        case Interpolated():
            return {"rope_scaling": {"rope_type": "linear", "factor": part.factor}}
        case DynamicNTK():
            return {
                "max_position_embeddings": part.original,
                "rope_scaling": {"rope_type": "dynamic", "factor": part.factor},
            }
        case Llama3Scaling():
            factors = {"factor": part.factor, "low_freq_factor": part.low, "high_freq_factor": part.high}
            return {"rope_scaling": {"rope_type": "llama3", **factors, ORIGINAL: part.original}}
        case YaRN():
            optional = {key: getattr(part, key) for key in ("attention_factor", "mscale", "mscale_all_dim")}
            written = {
                "rope_type": "yarn",
                "factor": part.factor,
                ORIGINAL: part.original,
                "beta_fast": part.beta_fast,
                "beta_slow": part.beta_slow,
                "truncate": part.truncate,
                **{key: value for key, value in optional.items() if value is not None},
            }
            return {"rope_scaling": written}
        case LongRoPE():
            return _longrope(part)
    return {}


def _longrope(part: LongRoPE) -> dict[str, Any]:
    longest = round(part.factor * part.original)
    written: dict[str, Any] = {"rope_type": "longrope", "short_factor": [*part.short], "long_factor": [*part.long]}
    if longest / part.original != part.factor:
        written["factor"] = part.factor
    if part.attention_factor is not None:
        written["attention_factor"] = part.attention_factor
    return {"max_position_embeddings": longest, ORIGINAL: part.original, "rope_scaling": written}
