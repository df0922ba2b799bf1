"""Does the best learning rate move with width and depth? Standard AdamW and Muon beside CompleteP, one sweep a shape.

    python ideas/parametrisation.py --out runs/ideas/parametrisation

Every shape of two ladders from one base, one in width and one in depth, is swept over learning rates in factors of two
until its best lies inside the sweep: the same data, batch and steps for all, seeds paired. Prints the best rate of
every shape, the exponents with which it moves, and what each rule for carrying the base's best rate to the largest
shape costs. Finished runs are not repeated; `losses.json` and `parametrisation.html` are left beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import plotly.graph_objects as go
import tyro
from plotly.subplots import make_subplots
from scipy.stats import linregress, t

from nachim.app.ask import CACHE
from nachim.app.view import TerminalView
from nachim.budget.shape import shape
from nachim.data.prepare import prepare
from nachim.lab.ladder import Chain, name_of
from nachim.lab.launch.local import carry_out_all
from nachim.lab.work import Place, result_of
from nachim.law.transfer import lr_opt
from nachim.spec import BPE, WSD, AdamW, CompleteP, Data, Muon, Run, Standard, Train, Validation

DATA = Data(tokenizer=BPE(vocab_size=512), seq_len=128)
BATCH, STEPS, WARMUP_STEPS = 1024, 300, 32
BASE = (32, 2)
AXES = {"width": ((32, 2), (64, 2), (128, 2)), "depth": ((32, 2), (32, 4), (32, 8))}
"""(d_model, n_layers) of every shape, the base first."""
CENTRE = -6
"""Sweeps begin at learning rates of two to this power."""
PASSES = ((0, 1), (1, 1), (0, 2), (1, 2), (2, 1), (2, 2))
"""(seed, reach): what is swept first, and how many rates on either side of the best one are asked for."""

Sweep = dict[int, float]
"""Exponent of two of the learning rate to validation bpb; infinite where the run diverged."""


@dataclass(frozen=True)
class Method:
    """An optimizer in a parametrisation. At the base it is the `standard` method, bit for bit."""

    optimizer: type[AdamW]
    standard: str

    def run(self, name: str, model: tuple[int, int], exponent: int, seed: int) -> Run:
        """The run of one shape at one learning rate."""
        width, layers = model
        base = shape(BASE[0], DATA.tokenizer.vocab_size).attention.d_head
        completep = CompleteP(base_width=BASE[0], base_head=base, base_depth=BASE[1])
        own = Standard() if name == self.standard else completep
        train = Train(
            tokens=STEPS * BATCH,
            batch_tokens=BATCH,
            optimizer=self.optimizer(lr=2.0**exponent),
            schedule=WSD(warmup_tokens=WARMUP_STEPS * BATCH),
            seed=seed,
        )
        decoder = replace(shape(width, DATA.tokenizer.vocab_size), n_layers=layers, parametrisation=own)
        return Run(model=decoder, data=replace(DATA, seed=seed), train=train, validation=Validation(tokens=65_536))


METHODS = {
    "AdamW": Method(AdamW, "AdamW"),
    "CompleteP AdamW": Method(AdamW, "AdamW"),
    "Muon": Method(Muon, "Muon"),
    "CompleteP Muon": Method(Muon, "Muon"),
}


@dataclass(frozen=True)
class Cell:
    """One shape of one method and seed: a sweep of learning rates."""

    root: Path
    name: str
    model: tuple[int, int]
    seed: int

    def run(self, exponent: int) -> Run:
        """Its run at the learning rate 2^exponent; at the base, the standard method's."""
        method = METHODS[self.name]
        name = method.standard if self.model == BASE else self.name
        return method.run(name, self.model, exponent, self.seed)

    @property
    def folder(self) -> Path:
        """Where its runs are."""
        name = METHODS[self.name].standard if self.model == BASE else self.name
        return self.root / name.lower().replace(" ", "-")

    def losses(self) -> Sweep:
        """What has been measured."""
        found = {}
        for exponent in range(-14, 1):
            out = self.folder / name_of(self.run(exponent))
            if (out / "result.json").exists():
                found[exponent] = result_of(out)["validation"]["bpb"]
            elif (out / "diverged.json").exists():
                found[exponent] = np.inf
        return found

    def missing(self, reach: int) -> list[int]:
        """Rates to run before `reach` of them lie on either side of the best."""
        found = self.losses()
        best = min(found, key=found.__getitem__) if found else CENTRE
        return [e for e in range(best - reach, best + reach + 1) if e not in found]


def sweep(root: Path, names: list[str], workers: int) -> None:
    """Carry out every run that the passes ask for."""
    models = dict.fromkeys(model for models in AXES.values() for model in models)
    with TerminalView() as view:
        for seed, reach in PASSES:
            cells = [Cell(root, name, model, seed) for name in names for model in models]
            while asked := {
                (cell.folder, cell.run(exponent)): None for cell in cells for exponent in cell.missing(reach)
            }:
                view.stage(f"seed {seed}, {reach} on either side: {len(asked)} runs")
                for folder in dict.fromkeys(folder for folder, _ in asked):
                    chains = [Chain(runs=(run,)) for where, run in asked if where == folder]
                    carry_out_all(chains, folder, Place(cache=CACHE), workers, view.event)


def vertex(losses: Sweep) -> tuple[float, float]:
    """(log2 rate, bpb) of the parabola through the best rate and its neighbours."""
    best = min(losses, key=losses.__getitem__)
    low, middle, high = (losses[best + step] for step in (-1, 0, 1))
    bend = low - 2 * middle + high
    if not np.isfinite(bend):
        return float(best), middle
    return best + (low - high) / (2 * bend), middle - (low - high) ** 2 / (8 * bend)


def at(losses: Sweep, place: float) -> float:
    """Bpb at log2 rate `place`: the parabola about the best rate, lines between the rates farther out."""
    best = min(losses, key=losses.__getitem__)
    near = [best - 1, best, best + 1]
    if abs(place - best) <= 1 and np.isfinite([losses[e] for e in near]).all():
        return float(np.polyval(np.polyfit(np.array(near) - best, [losses[e] for e in near], 2), place - best))
    return float(np.interp(place, sorted(losses), [losses[e] for e in sorted(losses)], left=np.nan, right=np.nan))


def bracketed(root: Path, name: str, model: tuple[int, int]) -> Iterator[tuple[int, Sweep]]:
    """(seed, sweep) of every seed whose best rate lies inside its sweep."""
    for seed in dict.fromkeys(seed for seed, _ in PASSES):
        cell = Cell(root, name, model, seed)
        if (found := cell.losses()) and not cell.missing(1):
            yield seed, found


def exponent(root: Path, name: str, axis: str) -> str:
    """The power of width or depth that the best rate follows, with its 95 % interval, over all shapes and seeds."""
    index = 0 if axis == "width" else 1
    pairs = [
        (np.log2(model[index] / BASE[index]), vertex(found)[0])
        for model in AXES[axis]
        for _, found in bracketed(root, name, model)
    ]
    fit = linregress(*zip(*pairs, strict=True))
    half = fit.stderr * t.ppf(0.975, len(pairs) - 2)
    return f"{fit.slope:+.2f} ({fit.slope - half:+.2f} to {fit.slope + half:+.2f}; {len(pairs)} sweeps)"


def rules(root: Path, name: str, model: tuple[int, int]) -> dict[str, list[tuple[float, float]]]:
    """(bpb, its excess over the best of `model` in %), seed by seed, of each rule that carries the base's best rate."""
    base, here = dict(bracketed(root, name, BASE)), dict(bracketed(root, name, model))
    method = METHODS[name]
    flops = [method.run(name, each, CENTRE, 0).flops for each in (BASE, model)]
    law = float(np.log2(lr_opt(flops[1]) / lr_opt(flops[0])))
    moves = {"kept": 0.0} | ({"C^-0.125": law} if name == method.standard else {})
    found: dict[str, list[tuple[float, float]]] = {rule: [] for rule in moves}
    for seed in base.keys() & here.keys():
        for rule, move in moves.items():
            bpb = at(here[seed], vertex(base[seed])[0] + move)
            found[rule].append((bpb, 100 * (bpb / vertex(here[seed])[1] - 1)))
    return found


def told(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.{digits}f} +- {np.std(values, ddof=min(1, len(values) - 1)):.{digits}f}"


def report(root: Path, names: list[str]) -> None:
    """Print the three tables."""
    print("best learning rate, and bpb there: mean +- standard deviation over seeds")
    for name in names:
        for model in dict.fromkeys(model for models in AXES.values() for model in models):
            best = [vertex(found) for _, found in bracketed(root, name, model)]
            rates = told([2**place * 1e3 for place, _ in best], 2)
            print(f"{name:16s} {model[1]} x {model[0]:<4d} {rates:>16s} e-3 {told([b for _, b in best], 4):>18s}")
    print("exponent of the best rate, 95 % interval")
    for name in names:
        print(f"{name:16s} width {exponent(root, name, 'width')}   depth {exponent(root, name, 'depth')}")
    print("the base's best rate carried to the largest shape: bpb, and excess over that shape's own best rate, %")
    for axis, models in AXES.items():
        for name in names:
            for rule, found in rules(root, name, models[-1]).items():
                bpb, excess = zip(*found, strict=True)
                print(f"{axis:6s} {name:16s} {rule:9s} {told(list(bpb), 4):>18s} {told(list(excess), 2):>14s}")


def draw(root: Path, names: list[str]) -> None:
    """Every sweep, a panel a method and axis, and the measured numbers as JSON."""
    figure = make_subplots(
        rows=len(names), cols=2, shared_xaxes=True, subplot_titles=[f"{n}: {a}" for n in names for a in AXES]
    )
    numbers = []
    colours = ("#1f77b4", "#ff7f0e", "#2ca02c")
    for row, name in enumerate(names, 1):
        for column, models in enumerate(AXES.values(), 1):
            for colour, model in zip(colours, models, strict=True):
                for seed, found in bracketed(root, name, model):
                    numbers.append({"method": name, "model": model, "seed": seed, "bpb": found})
                    rates = [2.0**e for e in sorted(found)]
                    lines = {"mode": "lines+markers", "line": {"color": colour, "width": 1}, "marker": {"size": 4}}
                    label = f"{model[1]} x {model[0]}"
                    trace = go.Scatter(x=rates, y=[found[e] for e in sorted(found)], name=label, **lines)
                    figure.add_trace(trace.update(showlegend=row == 1 and not seed), row, column)
                    place, bpb = vertex(found)
                    star = {"symbol": "star", "size": 11, "color": colour}
                    best = go.Scatter(x=[2**place], y=[bpb], mode="markers", marker=star, showlegend=False)
                    figure.add_trace(best, row, column)
    figure.update_xaxes(type="log", title_text="learning rate")
    figure.update_yaxes(title_text="validation bpb")
    figure.update_layout(height=320 * len(names), width=1100, template="plotly_white")
    figure.write_html(root / "parametrisation.html")
    (root / "losses.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def main(
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/ideas/parametrisation"),
    methods: tuple[str, ...] = tuple(METHODS),
    workers: int = 1,
    train: bool = True,
) -> None:
    """Sweep every shape and print the tables; `--no-train` prints what is there."""
    prepare(DATA, CACHE)
    names = list(methods)
    if train:
        sweep(out, names, workers)
    report(out, names)
    draw(out, names)


if __name__ == "__main__":
    tyro.cli(main)
