"""What the script of a plan's page starts from: the law, real shapes, what serving them takes, where sliders stand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nachim.app.figures import ROUND
from nachim.app.plan import LARGEST_SERVED, SMALLEST_SERVED, Serve
from nachim.budget.deploy import BISECTIONS, FEWEST, MOST
from nachim.budget.designs import EPSILON, RANK, SMALL, Asked, shapes_between
from nachim.budget.device import device_named
from nachim.budget.serve import format_named, serve
from nachim.budget.speculate import Speculation
from nachim.law.precision import GAMMA_D, effective_share, rounding_penalty
from nachim.law.published import FLOPS_PER_UNIT, KnownLaw, known_law, scale_of
from nachim.law.repeat import R_STAR
from nachim.spec import MTP, Decoder, Device, UserError

REACH = 10.0
"""How far the budget can be slid, as a factor either way."""
WIDER = 4.0
"""How much further than the plan's own shapes those reach that a slid budget needs: M grows as C^0.5."""
GRID = 60
"""Points of the loss surface to a side."""
AROUND = 30.0
"""How far around the optimum the surface is drawn, as a factor either way."""
KNOBS = (
    # name, what it says, lowest, highest; a factor of the plan's own value where `relative`
    ("served", "tokens served a day", 1e6, 1e12, False),
    ("days", "days of serving", 7.0, 3650.0, False),
    ("price", "dollars a device-hour", 0.1, 10.0, True),
    ("mfu", "MFU in training", 0.01, 1.0, False),
)
SCALE_TITLES = {
    "flops_per_token": "M, FLOP/token",
    "params_total": "parameters in all",
    "params_non_embedding": "parameters but embeddings",
}


def asked_of(plan: dict[str, Any]) -> Asked:
    """The question of the plan `plan`, the JSON object of `nachim plan`, as its designs were chosen for it."""
    said = plan["asked"]
    return Asked(
        flops=plan["budget"]["flops"],
        seq_len=said["seq_len"],
        vocab_size=said["vocab_size"],
        law=known_law(said["law"]),
        unique_tokens=plan["data"]["unique_tokens"],
        devices=plan["layout"]["devices"],
        ladder=said["ladder"],
        mtp=said["mtp"] and MTP.from_json(said["mtp"]),
    )


def facts_of(plan: dict[str, Any]) -> dict[str, Any]:
    """All that the script knows, as plain JSON values: plan_model.js says what it makes of them."""
    asked, said = asked_of(plan), Serve(**plan["asked"]["serve"])
    device = Device.from_json(plan["asked"]["device"])
    wanted = said.loss is not None or said.total_dollars is not None
    serving_price = device_named(said.serve_on).dollars_per_hour if said.serve_on else None
    found = {
        "law": _law(asked.law),
        "lossLaw": _law(asked.loss_law) | {"title": SCALE_TITLES[asked.loss_law.scale]},
        "rStar": R_STAR,
        "epsilon": EPSILON,
        "rank": RANK,
        "roundingExponent": GAMMA_D,
        "share": effective_share(cache_bits=format_named(said.cache).bits),
        "fewest": FEWEST,
        "most": MOST,
        "bisections": BISECTIONS,
        "fixed": plan["asked"]["shape"] is not None,
        "offered": [SMALLEST_SERVED, LARGEST_SERVED],
        "wanted": plan["serving"]["loss"] if wanted and plan["serving"] else None,
        "device": {"name": device.name, "count": asked.devices, "peak": device.peak(plan["layout"]["precision"])},
        "served": {"name": said.serve_on or device.name, "price": serving_price},
        "shapes": shapes(plan, asked, said, device),
        "start": start(plan, said, device),
        "knobs": knobs(plan, asked, device),
        "round": [[float(digit) for digit in digits] for digits in ROUND],
    }
    return found | {"grid": grid(plan, found)}


def grid(plan: dict[str, Any], facts: dict[str, Any]) -> dict[str, list[float]]:
    """Scales and tokens of the loss surface: what the budget's slider reaches around the optimum."""
    scales, tokens = [shape["x"] for shape in facts["shapes"]], plan["optimum"]["tokens"]
    middle = plan["budget"]["flops"] / facts["lossLaw"]["unit"] / tokens
    return {
        "x": _spaced(max(min(scales), middle / AROUND), min(max(scales), middle * AROUND)),
        "tokens": _spaced(tokens / AROUND, tokens * AROUND),
    }


def _spaced(low: float, high: float) -> list[float]:
    """`GRID` values from `low` to `high`, even in ratio."""
    return [low * (high / low) ** (step / (GRID - 1)) for step in range(GRID)]


def start(plan: dict[str, Any], said: Serve, device: Device) -> dict[str, float | None]:
    """Where the sliders stand at first: the plan's own numbers. A price that nobody knows is taken as 1."""
    return {
        "flops": plan["budget"]["flops"],
        "served": said.serve_tokens_per_day or 0.0,
        "days": said.serve_days,
        "price": device.dollars_per_hour or 1.0,
        "mfu": min(1.0, plan["layout"]["mfu"]),
        "unique": plan["data"]["unique_tokens"],
    }


def knobs(plan: dict[str, Any], asked: Asked, device: Device) -> list[dict[str, Any]]:
    """Each slider: its name, what it says, and its ends. `none` is what its open end means, if it has one."""
    low, high = asked.flops / REACH, asked.flops * REACH
    low, high = (low, min(high, SMALL / 1.001)) if asked.small else (max(low, SMALL), high)
    own = start(plan, Serve(**plan["asked"]["serve"]), device)
    found = [{"name": "flops", "label": "training compute, FLOP", "low": low, "high": high}]
    for name, label, lowest, highest, relative in KNOBS:
        times = own[name] if relative else 1.0
        assert times is not None  # prices are numbers
        ends = min(lowest * times, own[name] or math.inf), max(highest * times, own[name] or 0.0)
        found.append({"name": name, "label": label, "low": ends[0], "high": ends[1]})
    found[1]["none"] = "low"
    tokens = plan["optimum"]["tokens"]
    ends = min(tokens / 300, own["unique"] or math.inf), max(tokens * 10, own["unique"] or 0.0)
    label = "unique training tokens"
    return [*found, {"name": "unique", "label": label, "low": ends[0], "high": ends[1], "none": "high"}]


def shapes(plan: dict[str, Any], asked: Asked, said: Serve, device: Device) -> list[dict[str, Any]]:
    """The plan's designs, and the models that a deployment chooses from (`offered`), by M; what serving those takes."""
    found = {_size(one): one for one in (_offered(model, asked, said, device) for model in models(plan, asked))}
    for rank, design in enumerate(plan["designs"]):
        one = _design(design, asked)
        found.setdefault(_size(one), one)["rank"] = rank
    return sorted(found.values(), key=lambda one: one["flopsPerToken"])


def models(plan: dict[str, Any], asked: Asked) -> list[Decoder]:
    """What a deployment chooses from in the plan, and below and above it what it would with another budget.

    Where only shapes below the optimum fit the devices, none that does not.
    """
    cost = plan["designs"][0]["flops_per_token"]
    most = plan["asked"]["most"] or math.inf
    low, high = SMALLEST_SERVED * cost, min(LARGEST_SERVED * cost, most)
    dearest = dataclasses.replace(asked, flops=min(REACH * asked.flops, SMALL / 1.001 if asked.small else math.inf))
    return [
        *shapes_between(asked, low / WIDER, low),
        *shapes_between(asked, low, high),
        *(shapes_between(dearest, high, WIDER * high) if high < most else ()),
    ]


def shape_name(one: dict[str, Any]) -> str:
    """Layers × width, on one line whatever the room."""
    return f"{one['n_layers']}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{one['d_model']:,}"


def _size(shape: dict[str, Any]) -> tuple[str, int, int]:
    """What tells shapes apart: heads that were given show in the parameters and in M."""
    return shape["name"], shape["params"], shape["flopsPerToken"]


def _offered(model: Decoder, asked: Asked, said: Serve, device: Device) -> dict[str, Any]:
    sizes = {name: getattr(model, name) for name in ("n_layers", "d_model", "params_total")}
    sizes["x"] = scale_of(model, asked.loss_law.scale, asked.seq_len)
    shape = _design(sizes | {"flops_per_token": model.flops_per_token(asked.seq_len)}, asked)
    bits = format_named(said.weights).bits
    hours = served_hours(model, said, device)
    return shape | {
        "offered": True,
        "rounding": rounding_penalty(model.params_total, 1.0, bits),
        "hoursPerToken": hours,
    }


def _design(design: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """A shape that is trained only. The head takes 6·d·V FLOP a token, three passes over a matrix, and as much for each
    further token."""
    heads = 1 if asked.mtp is None else 1 + asked.mtp.depth
    return {
        "name": shape_name(design),
        "params": design["params_total"],
        "x": design["x"],
        "flopsPerToken": design["flops_per_token"],
        "headFlops": 6 * design["d_model"] * asked.vocab_size * heads,
        "offered": False,
        "rounding": 0.0,
        "hoursPerToken": None,
        "rank": None,
    }


def served_hours(model: Decoder, said: Serve, device: Device) -> float | None:
    """Device-hours that a served token takes, prompts and answers in their proportion; None where it cannot be served.

    They do not depend on how many tokens are served, for how long, or at what price.
    """
    where = dataclasses.replace(device_named(said.serve_on) if said.serve_on else device, dollars_per_hour=1.0)
    demand = said.demand(said.serve_tokens_per_day or 1.0)
    draft = Speculation(acceptance=said.acceptance, draft_cost=said.draft_cost) if said.acceptance is not None else None
    try:
        return serve(model, where, demand, weights=said.weights, cache=said.cache, speculation=draft).dollars_per_token
    except UserError:
        return None


def _law(law: KnownLaw) -> dict[str, Any]:
    surface = law.surface and {name: getattr(law.surface, name) for name in ("E", "A", "B", "alpha", "beta", "k")}
    place = law.place and dataclasses.asdict(law.place)
    return {"name": law.name, "unit": FLOPS_PER_UNIT[law.scale], "place": place, "surface": surface}
