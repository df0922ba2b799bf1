"""The page of `nachim plan --out DIR`: the plan's numbers and reasons, and sliders that work it out anew."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nachim
from nachim.app.page import Html, bullets, cards, document, element, figure, folded, power, short, table
from nachim.app.plan_facts import facts_of, shape_name
from nachim.app.plan_tables import MEMORY, clock
from nachim.spec.disk import write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCRIPTS = ("plan_model.js", "plan_page.js")
TIME = ("matmul", "attention", "memory", "recompute", "communication", "bubble", "optimizer")


def write_plan_page(plan: dict[str, Any], path: Path) -> Path:
    """Write the page of `plan`, the JSON object of `nachim plan`, to `path`, atomically, and return `path`."""
    write_text(path, page_of(plan))
    return path


def page_of(plan: dict[str, Any]) -> str:
    """The whole page, as HTML that loads nothing."""
    from plotly.offline import get_plotlyjs

    warned = [f"{text[:1].upper()}{text[1:]}." for text in plan["warnings"]]
    facts = facts_of(plan)
    script = "\n".join([get_plotlyjs(), *(files("nachim.app").joinpath(name).read_text("utf-8") for name in SCRIPTS)])
    return document(
        f"nachim plan: {power(plan['budget']['flops'])} FLOP",
        script,
        element("header", element("h1", "nachim plan")),
        element("div", answer(plan), kind="verdict"),
        bullets("Know before you believe it", warned, "gaps"),
        cards(cards_of(plan)),
        *_sliders(plan, facts),
        *_designs(plan),
        *_where(plan),
        *_serving(plan),
        *_because(plan),
        _started(facts),
    )


def answer(plan: dict[str, Any]) -> str:
    """What to train, in one sentence."""
    best = plan["designs"][0]
    return (
        f"Train {best['n_layers']} layers × {best['d_model']:,}, {counted(best['params_total'])} parameters, on "
        f"{counted(best['tokens'])} tokens: loss {best['loss']:.3f} nat/token, {clock(plan['hours'])}"
        f"{'' if plan['dollars'] is None else ', ' + money(plan['dollars'])}."
    )


def cards_of(plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The budget, the optimum, and what it costs: (what, number, note)."""
    budget, optimum, best, layout = plan["budget"], plan["optimum"], plan["designs"][0], plan["layout"]
    where = f"{layout['devices']} × {layout['device']}{', assumed' if budget['devices_assumed'] else ''}"
    ends = (
        "no interval is known"
        if optimum["low"] is None
        else f"90 % of runs {optimum['low']:.3f} to {optimum['high']:.3f}"
    )
    found = [
        ("budget", f"{power(budget['flops'])} FLOP", where),
        (
            "the law's optimum",
            f"M = {power(optimum['flops_per_token'])}",
            f"{plan['law']}; {interval(plan)}",
        ),
        ("its tokens", short(optimum["tokens"]), "D, training tokens"),
        ("its loss", f"{optimum['loss']:.3f} nat/token", f"{plan['loss_law']}; {ends}"),
        ("batch and learning rate", f"{counted(best['batch_tokens'])} tokens", f"peak learning rate {best['lr']:.3g}"),
        (
            "time",
            clock(plan["hours"]),
            f"{counted(layout['tokens_per_second'])} tokens/s, MFU {100 * layout['mfu']:.1f} %",
        ),
    ]
    if plan["dollars"] is not None:
        price = plan["asked"]["device"]["dollars_per_hour"]
        found.append(("money", money(plan["dollars"]), f"at ${price:g} a device-hour"))
    if plan["energy_kwh"] is not None:
        found.append(("energy", f"{short(1000 * plan['energy_kwh'])}Wh", "devices and their share of the nodes"))
    found.append(("checkpoint", f"{short(plan['disk_bytes'])}B", "weights and moments in fp32, and metrics"))
    if plan["data"]["epochs"]:
        worth = f"{counted(plan['data']['effective_tokens'])} fresh tokens' worth"
        found.append(
            ("epochs", f"{plan['data']['epochs']:.3g}", f"of {counted(plan['data']['unique_tokens'])} tokens; {worth}")
        )
    return found


def interval(plan: dict[str, Any]) -> str:
    """The interval of the optimal scale, or that there is none."""
    optimum = plan["optimum"]
    if not optimum["x_interval"]:
        return "no interval is published"
    low, high = optimum["x_interval"]
    return f"{optimum['interval_percent']} % interval of {plan['law_scale'].replace('_', ' ')}: {low:.3g} to {high:.3g}"


def counted(value: float) -> str:
    """A count of things that are no unit: 8.05 G."""
    return short(value).strip()


def money(dollars: float | None) -> str:
    """Dollars; whole ones from a hundred on."""
    if dollars is None or not math.isfinite(dollars):
        return "–"
    return f"${dollars:,.0f}" if dollars >= 100 else f"${dollars:.3g}"


def _sliders(plan: dict[str, Any], facts: dict[str, Any]) -> Iterator[Html]:
    """Sliders, what they answer, and the figures that they move."""
    from nachim.app.plan_figures import moving

    drawn = {name: _markup(fig, name) for name, fig in moving(facts).items()}
    served = "" if plan["serving"] else " Serving was not asked for: slide its tokens up to see what it would change."
    priced = "" if plan["dollars"] is not None else " Nobody knows the device's price: $1 an hour stands in for it."
    yield element("h2", "What if")
    yield element(
        "p",
        "Slide: all down to the table of designs is worked out again here, by the plan's own formulas, over real "
        f"shapes. The layout is not searched again: MFU is a slider.{served}{priced} Repeated tokens count at what "
        "they are worth (arXiv 2305.16264), in the optimum's loss too.",
        kind="note",
    )
    yield element("div", kind="knobs", id="knobs")
    yield element("button", "Back to the plan", id="reset", type="button")
    yield element("div", kind="cards", id="answers")
    loss_law = facts["lossLaw"]["name"]
    yield figure(
        "The loss surface",
        drawn["surface"],
        f"Darker is lower, by {loss_law}. The dashed line spends the budget by that law's own accounting; the designs "
        "spend it by their exact M, so that they lie beside the line. Its thick part costs at most "
        f"{100 * facts['epsilon']:g} % more loss than its best point: that is how little the exact size matters.",
        "",
    )
    yield figure(
        "One budget, all sizes",
        drawn["slice"],
        "The dashed line of the surface, seen from the side: small models on many tokens at the left, large ones on "
        "few at the right. What lies in the band is as good as a law can tell; shapes lie off the curve where their "
        "exact M differs from what the law counts.",
        "",
    )
    yield _money(drawn["cost"], drawn["split"])


def _money(cost: Html, split: Html) -> Html:
    """What training and serving cost together; hidden where no shape can be served."""
    return element(
        "div",
        figure(
            "Training and serving together",
            cost,
            "Total dollars over size and training tokens; darker is cheaper. Along the dashed line every model "
            "reaches the same loss: Chinchilla's point is the cheapest to train, the star the cheapest with serving.",
            "",
        ),
        element("h2", "What the same loss costs"),
        element(
            "figure",
            split,
            element("figcaption", "The same dashed line over size: what training, serving and both cost."),
        ),
        element("h2", "Break-even"),
        element(
            "p",
            "Tokens served, over the whole horizon, from which the model of a row is cheaper in all than that of a "
            "column; all of them reach the same loss. The star is the cheapest now.",
            kind="note",
        ),
        element("div", element("table", id="breakeven"), kind="wide"),
        id="money",
    )


def _markup(fig: go.Figure, name: str) -> Html:
    """The figure as a <div id=name> and its script."""
    from nachim.app.report import CONFIG

    return Html(fig.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, div_id=name))


def _started(facts: dict[str, Any]) -> Html:
    """The script that starts the sliders; no text of a plan can end it."""
    said = json.dumps(facts, allow_nan=False).replace("<", "\\u003c")
    return Html(f"<script>start({said});</script>")


def _designs(plan: dict[str, Any]) -> Iterator[Html]:
    heads = (
        "shape",
        "heads / KV",
        "parameters",
        "M, FLOP/token",
        "tokens",
        "loss",
        "batch",
        "lr",
        "steps",
        "time",
        "money",
        "MFU",
        "KV bytes/token",
    )
    yield element("h2", "Designs")
    yield element("p", "Real shapes around the optimum, best first; each spends the whole budget.", kind="note")
    yield table(heads, [_design_row(one) for one in plan["designs"]], left=2)


def _design_row(one: dict[str, Any]) -> list[object]:
    return [
        shape_name(one),
        f"{one['n_heads']} / {one['n_kv_heads']}",
        short(one["params_total"]),
        short(one["flops_per_token"]),
        short(one["tokens"]),
        f"{one['loss']:.4f}",
        short(one["batch_tokens"]),
        f"{one['lr']:.3g}",
        f"{one['steps']:,}",
        clock(one["hours"]),
        money(one["dollars"]),
        f"{100 * one['mfu']:.1f} %",
        f"{one['kv_bytes_per_token']:,}",
    ]


def _where(plan: dict[str, Any]) -> Iterator[Html]:
    """Layout, memory and time of the first design."""
    layout, memory, time = plan["layout"], plan["memory"], plan["time"]
    degrees = ", ".join(f"{name} {layout[name]}" for name in ("dp", "tp", "pp", "cp", "ep") if layout[name] > 1)
    yield element("h2", "Where it runs")
    yield element(
        "p",
        f"{layout['devices']} × {layout['device']}: {degrees or 'one device'}, ZeRO-{layout['zero']}, micro-batch "
        f"{layout['micro_batch']}, recomputing {layout['recompute']}, {layout['optimizer']} in {layout['precision']}.",
    )
    unit, size = ("GB", 1e9) if memory["device_bytes"] >= 1e10 else ("MB", 1e6)
    parts = [(name, memory[name] / size) for name in MEMORY]
    moved = f", and {short(memory['host'])}B in host memory" if memory["host"] else ""
    yield _bar(
        "Memory",
        parts,
        (unit, memory["device_bytes"] / size),
        f"{short(memory['total'])}B of {short(memory['device_bytes'])}B on the fullest device at its fullest moment, "
        f"the {memory['moment']}{moved}.",
    )
    seconds = sum(time[name] for name in TIME)
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3)
    measured = abs(layout["seconds_per_step"] / seconds - 1) > 1e-6
    said = (
        f" Steps measured on this machine say {layout['seconds_per_step']:.3g} s, which the plan uses."
        if measured
        else ""
    )
    yield _bar(
        "One step",
        [(name, time[name] / size) for name in TIME],
        (unit, seconds / size),
        f"{clock(seconds / 3600)} a step by a roofline of every part; of communication what nothing hides.{said}",
    )


def _bar(title: str, parts: list[tuple[str, float]], total: tuple[str, float], caption: str) -> Html:
    """A stacked bar up to `total` (unit, amount), and its pieces as a table."""
    from nachim.app.plan_figures import bar, pieces

    unit, whole = total
    held = pieces(parts, whole, "free")
    rows = [
        [
            element("span", "■", style=f"color: {one.colour}"),
            one.name,
            f"{one.amount:.3g}",
            f"{100 * one.amount / whole:.1f} %",
        ]
        for one in held
    ]
    drawn = Html(
        _markup(bar(held, unit), title.lower().replace(" ", "-")) + table(("", "", unit, "share"), rows, left=2)
    )
    return figure(title, drawn, caption, "")


def _serving(plan: dict[str, Any]) -> Iterator[Html]:
    serving, asked = plan["serving"], plan["asked"]["serve"]
    if not serving:
        return
    yield element("h2", "Serving")
    yield element(
        "p",
        f"{counted(asked['serve_tokens_per_day'])} tokens a day for {asked['serve_days']:g} days, prompts of "
        f"{asked['prompt_tokens']:,} and answers of {asked['answer_tokens']:,} tokens, weights in {asked['weights']}, "
        f"cache in {asked['cache']}. Every row reaches {serving['loss']:.4f} nat/token ({serving['loss_law']}).",
        kind="note",
    )
    heads = (
        "",
        "shape",
        "parameters",
        "trained on",
        "training",
        "serving",
        "total",
        "devices",
        "batch",
        "first token",
        "per token",
        "$/M prompt",
        "$/M answer",
    )
    marks = {_identity(serving["chosen"]): "cheapest in all", _identity(serving["chinchilla"]): "cheapest to train"}
    if len(marks) == 1:
        marks = {_identity(serving["chosen"]): "cheapest, both ways"}
    yield table(heads, [_served_row(one, marks.get(_identity(one), "")) for one in serving["curve"]], left=2)
    even = serving["break_even_tokens"]
    lines = [] if even is None else [f"The first is the cheaper of the two from {counted(even)} tokens served."]
    if serving["answers_at_equal_cost"] is not None:
        lines.append(
            f"For the total of the second it could give {serving['answers_at_equal_cost']:.3g} answers a question, "
            "and with a judge of right answers is right as often as a model that is right half the time if each "
            f"is right in {100 * serving['accuracy_needed_for_half']:.0f} % (more where questions differ)."
        )
    scale, value = next((key, value) for key, value in serving["by_flops"].items() if key != "tokens")
    lines.append(
        f"Counting FLOP alone (arXiv 2401.00448) the least total has {counted(value)} {scale.replace('_', ' ')} on "
        f"{counted(serving['by_flops']['tokens'])} tokens."
    )
    yield element("p", " ".join(lines))


def _identity(point: dict[str, Any]) -> tuple[int, int, int]:
    return point["n_layers"], point["d_model"], point["params_total"]


def _served_row(one: dict[str, Any], mark: str) -> list[object]:
    head = [
        mark,
        shape_name(one),
        short(one["params_total"]),
        short(one["tokens"]),
        money(one["train_dollars"]),
    ]
    how = one["serving"]
    if how is None:
        return [*head, "cannot", *[""] * 7]
    return [
        *head,
        money(one["serve_dollars"]),
        money(one["total_dollars"]),
        how["devices"],
        f"{how['batch']:,}",
        f"{1e3 * how['ttft']:.3g} ms",
        f"{1e3 * how['tpot']:.3g} ms",
        f"{how['dollars_per_million_prompt']:.3g}",
        f"{how['dollars_per_million_answer']:.3g}",
    ]


def _because(plan: dict[str, Any]) -> Iterator[Html]:
    """Reasons, and how to repeat it."""
    asked, note, recipe = plan["asked"], plan["law_note"], plan["recipe"]
    yield element("h2", "Why")
    yield table(("", ""), [[one["topic"], one["because"]] for one in plan["why"]], left=2)
    yield element("h2", "How to repeat it")
    rows: list[list[object]] = [["command", element("code", asked["command"])]]
    if isinstance(recipe, str):
        rows.append(["recipe", element("code", recipe)])
    rows.append(["law", f"{plan['law']}: {plan['law_source']}{f' ({note})' if note else ''}"])
    rows += [[asked["device"]["name"], source] for source in asked["device"]["sources"]]
    yield table(("what", ""), rows, left=2)
    if not isinstance(recipe, str):
        yield folded("The recipe", element("code", json.dumps(recipe)))
    yield element("p", f"Page written by nachim {nachim.__version__}.", kind="note")
