"""The verb `nachim report`: a study's or a run's folder in, one page that needs no server and no network out."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nachim.app.page import Html, bullets, cards, document, element, figure, short
from nachim.app.page import power as flop
from nachim.spec.disk import write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from nachim.app.figures import Curve
    from nachim.app.record import Record, Rung

CONFIG = {"displayModeBar": False, "responsive": True}


def report(directory: Annotated[Path, tyro.conf.Positional], json: bool = False) -> int:
    """Write the report page of a study or of a run: its verdict, its figures, its numbers, and how to repeat it.

    DIRECTORY is the folder a study or a run was written to. The page is DIRECTORY/report.html, one file that carries
    all it shows: it opens without a network and may be sent to anyone. It opens with the verdict in one sentence; every
    figure says below it how it is read. An unfinished or refused study has a page too, which says what is missing; so
    has a run that is still in training: its loss, its speed, and what goes on in every layer.

    Example: nachim report studies/first

    Args:
        directory: Folder of the study, or of the run.
        json: Print one JSON object instead of the path alone.
    """
    path = write_report(directory)
    print(jsonlib.dumps({"report": str(path)}) if json else path)
    return 0


def write_report(directory: Path) -> Path:
    """Write `directory`/report.html, atomically, and return its path.

    Raises UserError when `directory` is no folder or holds neither study nor run; what it lacks is said on the page.
    """
    from nachim.app.run_record import is_run, open_run

    path = directory / "report.html"
    if is_run(directory):
        from nachim.app.run_page import page_of_run

        page = page_of_run(open_run(directory))
    else:
        from nachim.app.record import open_record

        page = page_of(open_record(directory))
    write_text(path, page)
    return path


def page_of(record: Record) -> str:
    """The whole page, as HTML."""
    from plotly.offline import get_plotlyjs

    from nachim.app import tables

    drawn = figures_of(record)
    kind, sentence = verdict_of(record)
    failed = [f"It does not hold that {what}." for what, holds in record.checks.items() if not holds]
    scripts = get_plotlyjs() if any(fig for _, fig, _, _ in drawn) else ""
    name = record.root.resolve().name
    return document(
        f"nachim: {name}",
        scripts,
        element("header", element("h1", f"nachim report · {name}")),
        element("div", sentence, kind=f"verdict {kind}"),
        bullets("Do not trust this verdict", failed, "gaps bad"),
        bullets("What is missing, and what to beware of", [*record.gaps, *tables.warnings(record)], "gaps"),
        cards(cards_of(record)),
        *(figure(title, _markup(fig), caption, missing) for title, fig, caption, missing in drawn),
        *tables.all_tables(record),
    )


def verdict_of(record: Record) -> tuple[str, str]:
    """How it went (good, bad or wait), and the verdict in one sentence."""
    sealed, verdict, refused = record.sealed, record.verdict, record.files.get("refused")
    if not sealed:
        if refused:
            why = str(refused.get("why", "no reason was written")).removeprefix("no forecast ")
            return "wait", f"No forecast {why}." if why.startswith("at ") else f"No forecast was made: {why}."
        return "wait", "No forecast yet: this study is unfinished."
    forecast = f"{sealed['bpb']:.4f} bpb ({sealed['low']:.4f} to {sealed['high']:.4f})"
    if not all(record.checks.values()):
        return "bad", f"Forecast {forecast}, but its files do not belong together: no verdict can be given."
    if not verdict:
        return "wait", f"Forecast {forecast}, sealed; the target run has not been judged yet."
    error = verdict["error_percent"]
    where = "inside the interval" if verdict["inside"] else "outside the interval"
    way = f"{abs(error):.2f} % {'below' if error < 0 else 'above'} the forecast"
    kind = "good" if verdict["inside"] else "bad"
    return kind, f"Forecast {forecast}; measured {verdict['measured']:.4f}: {where}, {way}."


def cards_of(record: Record) -> list[tuple[str, str, str]]:
    """The key numbers: (what, number, note). What was not measured has no card."""
    return [*_forecast_cards(record), *_law_cards(record), *_machine_card(record)]


def _forecast_cards(record: Record) -> list[tuple[str, str, str]]:
    found, obs, sealed, verdict = [], record.obs, record.sealed, record.verdict
    if obs is not None:
        low, high = flop(obs.flops.min()), flop(obs.flops.max())
        found.append(("top budget of the ladder", f"{high} FLOP", f"from {low} up, {len(obs)} runs"))
    if sealed and obs is not None:
        times = sealed["flops"] / obs.flops.max()
        found.append(("target", f"{flop(sealed['flops'])} FLOP", f"{times:.1f} times the ladder's top"))
    if verdict:
        side = "inside" if verdict["inside"] else "outside"
        said = f"measured over forecast; {side} the interval"
        found.append(("forecast error", f"{verdict['error_percent']:+.2f} %".replace("-", "−"), said))
    if sealed:
        width = 100 * (sealed["high"] - sealed["low"]) / sealed["bpb"]
        level = f"of the forecast; {100 * sealed.get('level', 0.9):.0f} % prediction interval"
        found.append(("width of the interval", f"{width:.2f} %", level))
    return found


def _law_cards(record: Record) -> list[tuple[str, str, str]]:
    reading = record.reading
    if not reading:
        return []
    found, name = [], reading.fit.law.name
    if name in reading.errors:
        miss = f"{reading.errors[name]:.2f} %"
        found.append((f"rollout error, {name} law", miss, "dear runs forecast from cheap ones"))
    found.append(("residual of the law", f"{reading.fit.mape:.2f} %", f"mean over {reading.fit.n} runs"))
    if record.repeats is not None:
        noise = f"{100 * record.repeats:.2f} %"
        found.append(("run noise", noise, "standard deviation between seeds, measured"))
    return found


def _machine_card(record: Record) -> list[tuple[str, str, str]]:
    machine = record.machine
    if not machine:
        return []
    peak = f"matmul peak {short(machine.peak(machine.precision, 2))}FLOP/s in {machine.precision}"
    return [("machine", machine.name, peak if machine.device == "cuda" else f"{machine.cores} cores; {peak}")]


def figures_of(record: Record) -> list[tuple[str, go.Figure | None, str, str]]:
    """The figures in their order: (title, figure or None, caption, why it is missing)."""
    from nachim.app import captions, figures

    obs, reading, second, sealed = record.obs, record.reading, record.second, record.sealed
    run, verdict = record.sealed_run, record.verdict
    target = (float(run.flops_per_token), float(run.train.tokens)) if run else None
    made: dict[str, go.Figure] = {}
    if obs is not None:
        measured = float(verdict["measured"]) if verdict else None
        made["compute"] = figures.loss_against_compute(obs, reading, sealed, measured)
    if obs is not None and reading:
        levels = (float(obs.flops.min()), 1.4 * float(run.flops if run else obs.flops.max()))
        made["isoflop"] = figures.isoflop_curves(obs, reading, second)
        made["surface"] = figures.loss_surface(obs, reading, target)
        made["allocation"] = figures.allocation(reading, levels, second, target)
        made["residuals"] = figures.residuals(obs, reading, record.repeats)
        if reading.errors:
            made["rollouts"] = figures.rollouts(reading)
    if any(rung.bpb is not None for rung in record.sweep):
        trains = [(rung.run.train, rung.bpb) for rung in record.sweep if rung.bpb is not None]
        tries = [(train.optimizer.lr, float(train.batch_tokens), bpb) for train, bpb in trains]
        made["sweep"] = figures.sweep(tries, _chosen(record))
    if curves := [curve for rung in record.ladder if (curve := _curve(rung))]:
        made["curves"] = figures.training_curves(curves, _curve(record.target) if record.target else None)
    return [(title, made.get(name), text, why) for name, (title, text, why) in captions.captions(record).items()]


def _chosen(record: Record) -> tuple[float, float] | None:
    """Learning rate and batch of the chosen recipe at the sweep's budget."""
    from nachim.lab.recipe import Recipe
    from nachim.spec import UserError

    try:
        recipe = Recipe.from_json(record.files.get("recipe"))
    except UserError:
        return None
    flops = float(record.sweep[0].run.flops)
    return recipe.lr(flops), float(recipe.batch_tokens(flops))


def _curve(rung: Rung) -> Curve | None:
    from nachim.app.figures import Curve

    rows = rung.metrics
    if not len(rows.get("loss", ())):
        return None
    there = rows["validation_loss"] == rows["validation_loss"]
    validation = (rows["tokens"][there], rows["validation_loss"][there])
    return Curve(rung.shape, float(rung.run.flops_per_token), rows["tokens"], rows["loss"], validation)


def _markup(fig: go.Figure | None) -> Html | None:
    """The figure as a <div> and its script; plotly escapes what could end the script."""
    return Html(fig.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)) if fig else None
