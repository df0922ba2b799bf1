"""The page of a single run: how it went, what it cost, and what went on inside the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

import nachim
from nachim.app.page import Html, bullets, cards, document, element, figure, flat, folded, short, table
from nachim.app.run_record import RunRecord
from nachim.app.view import clock
from nachim.train.samples import QUANTITIES

if TYPE_CHECKING:
    import plotly.graph_objects as go

OPERATIONS = 15
CAPTIONS = {
    "loss": "Pale: the loss of each step before its update. Dark: its mean over the last fiftieth of the steps so far. "
    "Diamonds: validation. A gap that opens between the two is overfitting.",
    "course": "The dashed line is the norm to which gradients are clipped. A gradient noise scale above the batch says "
    "that a larger batch would lose little (arXiv 1812.06162).",
    "speed": "Dips are validations, checkpoints or other work on the machine. What looks on at the run is within.",
    "gradient": "A row that goes dark has stopped learning; one that flares up alone is where an instability begins.",
    "update": "How far a step moves a tensor, over the tensor's own norm. About 1 in 1,000 is common; near 1 in 10 the "
    "learning rate is too high for that tensor.",
    "weight": "One that grows without end wants weight decay.",
    "activation": "Over the step's first sequence.",
    "score": "Far above 10 attention is nearly one-hot. Kimi K2 clipped it at 100 (arXiv 2507.20534); a norm on "
    "queries and keys, or a cap, bounds it too.",
    "load": "White is an even load. A row that stays dark is an expert that nobody asks.",
}
TITLES = {
    "gradient": "Gradient norm, tensor by tensor",
    "update": "Update over weight, tensor by tensor",
    "weight": "Weight norm, tensor by tensor",
    "activation": "Activations, layer by layer",
    "score": "Largest attention score, layer by layer",
    "load": "Load of every expert",
}


def page_of_run(record: RunRecord) -> str:
    """The whole page, as HTML."""
    from plotly.offline import get_plotlyjs

    from nachim.app.report import _markup

    drawn = figures_of(record)
    kind, sentence = verdict_of(record)
    name = record.root.resolve().name
    return document(
        f"nachim: {name}",
        get_plotlyjs() if drawn else "",
        element("header", element("h1", f"nachim report · {name}")),
        element("div", sentence, kind=f"verdict {kind}"),
        bullets("What is missing", record.gaps, "gaps"),
        cards(cards_of(record)),
        *(figure(title, _markup(fig), caption, "") for title, fig, caption in drawn),
        *_tables(record),
    )


def verdict_of(record: RunRecord) -> tuple[str, str]:
    """How it went (good, bad or wait), in one sentence."""
    run, beat = record.run, record.pulse
    if record.result:
        found = record.result["validation"]
        bpb = f", {found['bpb']:.4f} bits/byte" if "bpb" in found else ""
        said = f"validation loss {found['loss']:.4f} nat/token{bpb}" if found else "no validation was measured"
        return (
            "good",
            f"{short(run.model.params_total).strip()} parameters on {short(run.train.tokens).strip()} tokens: {said}.",
        )
    if record.diverged:
        return "bad", f"Diverged: {record.diverged}."
    if beat is None:
        return "wait", f"Not begun: {run.train.steps:,} steps are to be taken."
    far = f"step {beat.step:,} of {beat.steps:,}"
    if beat.state == "failed":
        return "bad", f"Failed at {far}: {record.journal[-1][1] if record.journal else 'no reason was written'}."
    if beat.state == "stopped":
        return "wait", f"Stopped at {far}; the same command goes on."
    if beat.alive is False:
        return "bad", f"Process {beat.pid} ended at {far} without a word; the same command goes on."
    return "wait", f"In training: {far}, as of {clock(beat.seconds)} before this page was written."


def cards_of(record: RunRecord) -> list[tuple[str, str, str]]:
    """The key numbers: (what, number, note). What was not measured has no card."""
    run, found = record.run, []
    model = run.model
    found.append(
        ("model", f"{short(model.params_total).strip()} parameters", f"{model.n_layers} layers x {model.d_model}")
    )
    flops = f"{short(float(run.flops))}FLOP (M·D)"
    found.append(("training", f"{short(run.train.tokens).strip()} tokens", f"{run.train.steps:,} steps, {flops}"))
    if not record.rows:
        return found
    loss, seconds = record.column("loss"), record.column("seconds")
    last = loss[-max(1, len(loss) // 50) :]
    found.append(("training loss", f"{np.nanmean(last):.4f}", f"mean of the last {len(last):,} steps, nat/token"))
    rate = float(np.nanmedian(record.tokens_per_second))
    mfu = "" if record.mfu is None else f"MFU {record.mfu:.1%}; "
    found.append(("speed", f"{rate:,.0f} tokens/s", f"{mfu}median step, {run.train.precision}"))
    found.append(("time", clock(float(np.nansum(seconds))), f"in {record.step:,} steps"))
    clipped = float((record.column("grad_norm") > run.train.clip).mean())
    found.append(("clipped", f"{clipped:.0%} of steps", f"gradient norm above {run.train.clip:g}"))
    skipped = int(np.nansum(record.column("skipped")))
    passed = int(np.isfinite(record.column("passed_tokens")).sum())
    if skipped or passed:
        found.append(("guard", f"{skipped + passed}", f"{skipped} steps skipped, {passed} roll-backs"))
    return found


def figures_of(record: RunRecord) -> list[tuple[str, go.Figure, str]]:
    """The figures in their order: (title, figure, caption)."""
    from nachim.app import run_figures as figures

    drawn: list[tuple[str, go.Figure, str]] = []
    if record.rows:
        drawn.append(("Loss", figures.loss(record), CAPTIONS["loss"]))
        drawn.append(("Learning rate and gradients", figures.course(record), CAPTIONS["course"]))
        drawn.append(("Speed", figures.speed(record), CAPTIONS["speed"]))
    for quantity, title in TITLES.items():
        if quantity in record.heats:
            caption = f"Colour: {QUANTITIES[quantity]}. {CAPTIONS[quantity]}"
            drawn.append((title, figures.heat(record.heats[quantity], quantity), caption))
    return drawn


def _tables(record: RunRecord) -> Iterator[Html]:
    if record.journal:
        yield element("h2", "What befell it")
        yield table(("when (UTC)", "said"), record.journal, left=2)
    if record.operations:
        yield element("h2", "Where the time goes")
        found = record.operations["operations"]
        rows = [
            (each["name"], f"{each['calls']:,}", f"{1e3 * each['seconds']:,.1f}", f"{each['share']:.1%}")
            for each in found[:OPERATIONS]
        ]
        yield table(("operation", "calls", "ms", "share"), rows)
        many = f"Of {record.operations['steps']} steps that were traced; {max(0, len(found) - OPERATIONS)} more kinds."
        yield element("p", f"{many} profile/trace.json opens in Perfetto or chrome://tracing.", kind="note")
    yield element("h2", "Recipe")
    yield folded("run.json", table(("field", "value"), list(flat(record.run.to_json())), left=2))
    prints = [("run", element("code", record.run.fingerprint))]
    prints += [("checkpoint", element("code", name)) for name in record.checkpoints]
    yield table(("what", "fingerprint or folder"), prints, left=2)
    yield element("p", f"Page written by nachim {nachim.__version__} from the files of {record.root}.", kind="note")
