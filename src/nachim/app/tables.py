"""The tables of a report: runs, coefficients, corpus, settings, and how to repeat it all."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import nachim
from nachim.app.fit import MEANING
from nachim.app.page import Html, bullets, element, flat, folded, power, short, table

if TYPE_CHECKING:
    from nachim.app.record import Record, Rung
    from nachim.spec import Machine

RUN_HEADS = (
    *("shape", "M, FLOP/token", "D, tokens", "C, FLOP", "bpb", "lr", "batch", "seed"),
    *("tokens/s", "body FLOP/s", "head FLOP/s", "MFU"),
)


def all_tables(record: Record) -> Iterator[Html]:
    """Every table of the page in its order, under its heading."""
    yield from _runs(record)
    yield from _law(record)
    yield from _corpus(record)
    yield from _settings(record)
    yield from _provenance(record)


def warnings(record: Record) -> list[str]:
    """What the fit itself warns of."""
    found = record.summary["warnings"] if record.summary else []
    return [f"{text[:1].upper()}{text[1:]}." for text in found]


def mfu(rung: Rung, machine: Machine | None) -> float | None:
    """Body and head FLOP/s over the machine's measured matmul peak for the run's precision and threads."""
    result = rung.result
    if not machine or not result:
        return None
    rate = result["flops_per_second"] + result["head_flops_per_second"]
    return float(rate) / machine.peak(rung.run.train.precision, int(result["threads"]))


def _runs(record: Record) -> Iterator[Html]:
    groups = [("target", [record.target] if record.target else []), ("ladder", record.ladder), ("sweep", record.sweep)]
    if not any(rungs for _, rungs in groups):
        return
    yield element("h2", "Runs")
    for name, rungs in groups:
        if rungs:
            yield element("h3", f"{name}, {len(rungs)} runs" if name != "target" else name)
            yield table(RUN_HEADS, [_run_row(rung, record.machine) for rung in rungs])
    yield element(
        "p",
        "MFU is (body + head FLOP/s) over the matmul peak that was measured on this machine for the run's precision, "
        "on one thread for a run of one thread, else on all cores. Runs of a ladder train beside each other, while the "
        "peak was measured alone.",
        kind="note",
    )


def _run_row(rung: Rung, machine: Machine | None) -> list[object]:
    run, result = rung.run, rung.result
    head = [rung.shape, power(run.flops_per_token), f"{run.train.tokens:,}", power(run.flops)]
    setup = [f"{run.train.optimizer.lr:.3g}", f"{run.train.batch_tokens:,}", run.train.seed]
    if not result:
        return [*head, "diverged" if rung.diverged else f"{100 * rung.done:.0f} % done", *setup, "", "", "", ""]
    used = mfu(rung, machine)
    rates = [short(result[name]) for name in ("tokens_per_second", "flops_per_second", "head_flops_per_second")]
    bpb = "" if rung.bpb is None else f"{rung.bpb:.4f}"
    return [*head, bpb, *setup, *rates, "" if used is None else f"{100 * used:.1f} %"]


def _law(record: Record) -> Iterator[Html]:
    said = record.summary
    if not said:
        return
    rows: list[list[object]] = []
    for name, value in said["coefficients"].items():
        low, high = said["interval90"][name]
        rows.append([name, MEANING[name], f"{value:.4g}", f"{low:.4g} to {high:.4g}"])
    for name, value in said["exponents"].items():
        low, high = said["exponents_interval90"][name]
        what = "growth of the best M with C" if name == "model" else "growth of the best D with C"
        rows.append([f"{name} exponent", what, f"{value:.3f}", f"{low:.3f} to {high:.3f}"])
    yield element("h2", "The law")
    yield element(
        "p",
        f"The {said['law']} law: bpb = {said['formula']} with x = M. Intervals are of a bootstrap; coefficients trade "
        f"against each other, so trust the forecast's interval rather than theirs. Run noise in use: "
        f"{said['noise']:.2f} %; the rollouts stretched the prediction interval {said['conformal_factor']:.2f} times.",
        kind="note",
    )
    yield table(("", "what it is", "value", "90 % interval"), rows, left=2)


def _corpus(record: Record) -> Iterator[Html]:
    corpus = record.files.get("corpus")
    if not isinstance(corpus, dict):
        return
    yield element("h2", "Corpus")
    rows = []
    for name in ("train", "validation"):
        part = corpus.get(name)
        if isinstance(part, dict) and part.get("tokens"):
            tokens, size = part["tokens"], part.get("bytes", 0)
            rows.append([name, f"{tokens:,}", f"{size:,}", f"{size / tokens:.3f}"])
    yield table(("split", "tokens", "bytes of raw text", "bytes/token"), rows)
    yield bullets("Notes of its preparation", list(corpus.get("notes", ())), "note")


def _settings(record: Record) -> Iterator[Html]:
    titles = {"study": "What was asked", "machine": "Machine", "recipe": "Recipe", "plan": "Plan"}
    found = [(title, record.files[name]) for name, title in titles.items() if isinstance(record.files.get(name), dict)]
    if found:
        yield element("h2", "Settings")
    for title, value in found:
        yield folded(title, table(("field", "value"), list(flat(value)), left=2))


def _provenance(record: Record) -> Iterator[Html]:
    yield element("h2", "How to repeat it")
    commands = [entry for entry in record.files.get("commands", []) if isinstance(entry, dict)]
    if commands:
        lines = [element("code", shlex.join(map(str, entry.get("argv", ())))) for entry in commands]
        rows = [[line, entry.get("at", ""), _versions(entry)] for line, entry in zip(lines, commands, strict=True)]
        yield table(("command", "at", "versions"), rows, left=3)
    prints = [[what, element("code", value)] for what, value in _fingerprints(record)]
    if prints:
        yield table(("fingerprint", "SHA-256"), prints, left=2)
    if record.checks:
        checks = [["holds" if holds else "DOES NOT HOLD", what] for what, holds in record.checks.items()]
        yield table(("checked for this page", ""), checks, left=2)
    yield element("p", f"Page written by nachim {nachim.__version__} from the files of {record.root}.", kind="note")


def _versions(entry: dict[str, Any]) -> str:
    known = ("argv", "at", "version")
    named = {"nachim": entry.get("version"), **{name: value for name, value in entry.items() if name not in known}}
    return ", ".join(f"{name} {value}" for name, value in named.items() if value is not None)


def _fingerprints(record: Record) -> Iterator[tuple[str, object]]:
    sealed, corpus = record.sealed or {}, record.files.get("corpus")
    if isinstance(corpus, dict) and corpus.get("fingerprint"):
        yield f"corpus {corpus.get('name', '')}", corpus["fingerprint"]
    if sealed:
        yield "observations the law was fitted to", sealed.get("observations_sha256", "")
        yield "forecast run", sealed.get("run_fingerprint", "")
        yield f"seal of the forecast, {sealed.get('sealed_at', '')}", sealed.get("sha256", "")
