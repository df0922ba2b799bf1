"""A plan in the terminal: what to train, where, what it costs, and why."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from nachim.app.page import short

WIDE = 110
"""Columns of a terminal from which on every column of the designs has room."""
MEMORY = ("weights", "gradients", "optimizer", "master", "activations", "logits", "buffers", "fragmentation")


def show(plan: dict[str, Any]) -> None:
    """Print what `nachim plan --json` says."""
    console = Console()
    designs = _designs(plan, wide=console.width >= WIDE)
    for table in (_budget(plan), designs, _costs(plan), _memory(plan), _serving(plan), _why(plan)):
        if table is not None:
            console.print(table)
    for text in plan["warnings"]:
        console.print(f"warning: {text}", style="yellow", highlight=False, markup=False)
    recipe = plan["recipe"]
    if isinstance(recipe, str):
        console.print(f"train it: nachim train {recipe} --out {recipe.removesuffix('run.json')}run", highlight=False)
    else:
        console.print("keep it: add --out DIR, which writes plan.json and the recipe run.json", highlight=False)


def _budget(plan: dict[str, Any]) -> Table:
    budget, optimum = plan["budget"], plan["optimum"]
    table = Table("", "", show_header=False, title="Budget and optimum", title_justify="left")
    table.add_row("compute", f"{budget['flops']:.3g} FLOP on {budget['devices']}")
    table.add_row("law", f"{plan['law']} ({plan['law_source']})")
    table.add_row("optimal M", f"{optimum['flops_per_token']:.3g} FLOP/token")
    if plan["law_scale"] != "flops_per_token":
        table.add_row(f"optimal {plan['law_scale']}", _with(optimum["x"], optimum["x_interval"], optimum))
    elif optimum["x_interval"]:
        table.add_row("its interval", _with(optimum["x"], optimum["x_interval"], optimum))
    table.add_row("optimal tokens", _with(optimum["tokens"], optimum["tokens_interval"], optimum))
    ends = (optimum["low"], optimum["high"]) if optimum["low"] is not None else None
    between = f", 90 % of runs {ends[0]:.3f} to {ends[1]:.3f}" if ends else ", no interval known"
    table.add_row("loss there", f"{optimum['loss']:.3f} nat/token by {plan['loss_law']}{between}")
    return table


def _with(value: float, interval: Any, optimum: dict[str, Any]) -> str:
    if not interval:
        return f"{value:.3g} (no interval is published)"
    return f"{value:.3g} ({optimum['interval_percent']} %: {interval[0]:.3g} to {interval[1]:.3g})"


def _designs(plan: dict[str, Any], wide: bool) -> Table:
    """One design a row; a narrow terminal goes without the last columns."""
    table = Table(title="Designs, best first", title_justify="left")
    heads = ("shape", "heads", "params", "tokens", "loss", "time", "batch", "lr", "M", "kv/token", "MFU")
    shown = len(heads) if wide else 8
    for head in heads[:shown]:
        table.add_column(head, justify="left" if head == "shape" else "right", no_wrap=True)
    for one in plan["designs"]:
        cells = (
            f"{one['n_layers']} x {one['d_model']}",
            f"{one['n_heads']}/{one['n_kv_heads']}",
            short(one["params_total"]),
            short(one["tokens"]),
            f"{one['loss']:.3f}",
            clock(one["hours"]),
            short(one["batch_tokens"]),
            f"{one['lr']:.2g}",
            short(one["flops_per_token"]),
            f"{short(one['kv_bytes_per_token'])}B",
            f"{100 * one['mfu']:.1f} %",
        )
        table.add_row(*cells[:shown])
    return table


def _costs(plan: dict[str, Any]) -> Table:
    layout, data = plan["layout"], plan["data"]
    table = Table("", "", show_header=False, title="The first of them", title_justify="left")
    degrees = " ".join(f"{name}={layout[name]}" for name in ("dp", "tp", "pp", "cp", "ep") if layout[name] > 1)
    table.add_row("devices", f"{layout['devices']} x {layout['device']}, {layout['precision']}, {layout['optimizer']}")
    table.add_row(
        "layout",
        f"{degrees or 'one device'}, ZeRO-{layout['zero']}, micro-batch {layout['micro_batch']}, "
        f"recompute {layout['recompute']}" + (f", {layout['schedule']}" if layout["pp"] > 1 else ""),
    )
    table.add_row("speed", f"{short(layout['tokens_per_second'])} tokens/s, MFU {100 * layout['mfu']:.1f} %")
    table.add_row("time", f"{clock(plan['hours'])} (steps alone)")
    table.add_row("money", "price unknown" if plan["dollars"] is None else f"${plan['dollars']:,.2f}")
    table.add_row("energy", "unknown" if plan["energy_kwh"] is None else f"{plan['energy_kwh']:,.3g} kWh")
    table.add_row("disk", f"{short(plan['disk_bytes'])}B for the last checkpoint and the metrics")
    if data["unique_tokens"] is not None:
        table.add_row("epochs", f"{data['epochs']:.3g}, worth {short(data['effective_tokens'])} fresh tokens")
    return table


def _memory(plan: dict[str, Any]) -> Table:
    memory = plan["memory"]
    table = Table("", "", show_header=False, title="Memory of the fullest device", title_justify="left")
    for name in MEMORY:
        if memory[name]:
            table.add_row(name, f"{short(memory[name])}B")
    table.add_row("in all", f"{short(memory['total'])}B of {short(memory['device_bytes'])}B")
    return table


def _serving(plan: dict[str, Any]) -> Table | None:
    serving = plan["serving"]
    if serving is None:
        return None
    table = Table(title=f"Training and serving together, loss {serving['loss']:.4f}", title_justify="left")
    for head in ("", "shape", "params", "tokens", "training", "serving", "total"):
        table.add_column(head, justify="left" if head in ("", "shape") else "right", no_wrap=True)
    for name, about in (("least in all", "chosen"), ("least training", "chinchilla")):
        one = serving[about]
        table.add_row(
            name,
            f"{one['n_layers']} x {one['d_model']}",
            short(one["params_total"]),
            short(one["tokens"]),
            *(
                "not possible" if one[key] is None else f"${one[key]:,.0f}"
                for key in ("train_dollars", "serve_dollars", "total_dollars")
            ),
        )
    even = serving["break_even_tokens"]
    if even is not None:
        table.caption = f"the first is the cheaper from {short(even)} served tokens on"
    return table


def _why(plan: dict[str, Any]) -> Table:
    table = Table("", "", show_header=False, title="Why", title_justify="left")
    for reason in plan["why"]:
        table.add_row(reason["topic"], reason["because"])
    return table


def clock(hours: float) -> str:
    """Hours as a person says them: seconds, minutes, hours or days."""
    for limit, unit, word in ((1 / 30, 3600, "s"), (2, 60, "min"), (72, 1, "h")):
        if hours < limit:
            return f"{hours * unit:.3g} {word}"
    return f"{hours / 24:.3g} days"
