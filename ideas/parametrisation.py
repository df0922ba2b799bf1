"""Does the best learning rate move with width and depth? Standard AdamW and Muon beside CompleteP, one sweep a shape.

    python ideas/parametrisation.py --out runs/ideas/parametrisation

Every shape of two ladders from one base, one in width and one in depth, is swept over learning rates in factors of two
until its best lies inside the sweep: the same data, batch and steps for all, seeds paired. Prints the best rate of
every shape, the exponents with which it moves, and what the largest shapes lose by each rule for their rate: the base's
kept, DeepSeek's power of compute, the law that `nachim transfer` fits to the smaller shapes, and the base's under
CompleteP (in width alone, muP). Finished runs are not repeated; beside them stand `losses.json` and the plots.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import plotly.graph_objects as go
import tyro
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from scipy.stats import linregress, t

from nachim.app.ask import CACHE
from nachim.app.figures import BAND, LAW, TEMPLATE
from nachim.app.page import Html, document, element, figure
from nachim.app.view import TerminalView
from nachim.budget.shape import shape
from nachim.data.prepare import prepare
from nachim.lab.ladder import Chain, name_of
from nachim.lab.launch.local import carry_out_all
from nachim.lab.store import table_of
from nachim.lab.work import Place, result_of
from nachim.law.hyper import Hyper, hyper
from nachim.law.sweep import sweep_of
from nachim.law.transfer import lr_opt
from nachim.spec import BPE, WSD, AdamW, CompleteP, Data, Muon, Run, Standard, Train, Validation
from nachim.spec.disk import write_text

DATA = Data(tokenizer=BPE(vocab_size=512), seq_len=128)
BATCH, STEPS, WARMUP_STEPS = 1024, 300, 32
BASE = (32, 2)
AXES = {"width": ((32, 2), (64, 2), (128, 2)), "depth": ((32, 2), (32, 4), (32, 8))}
"""(d_model, n_layers) of every shape, the base first."""
LARGEST = tuple(models[-1] for models in AXES.values())
SMALL = ((32, 2), (64, 2), (32, 4))
"""Shapes whose standard sweeps a law of `nachim transfer` is fitted to; it then gives the largest ones their rates."""
CENTRE = -6
"""Sweeps begin at learning rates of two to this power."""
SEEDS = (0, 1, 2)

LEGEND = {"orientation": "h", "y": 1, "yref": "container", "yanchor": "top"}
TICKS = {"type": "log", "tickvals": [2.0**e for e in range(-12, 0)], "tickformat": ".2g"}
COLOURS = {True: "#c8498f", False: "#0f766e"}
SIZES = {"the base, 2 x 32": "#1f77b4", "twice as wide or deep": "#ff7f0e", "four times": "#2ca02c"}
OPTIMA = (
    "Small marks are seeds, lines their geometric means. The dashed law is fitted to the standard runs of "
    f"{', '.join(f'{layers} x {width}' for width, layers in SMALL)} and drawn on to the largest shapes."
)
SWEEPS = "Each line is a seed's sweep, each star the best rate and loss that its parabola gives."

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

    def missing(self) -> list[int]:
        """Rates to run before the best has one on either side, and the base's best rate, for the largest shapes, too.

        A later seed begins where the first one's best was.
        """
        found = self.losses()
        asked = set(around(found or replace(self, seed=0).losses()))
        if self.model in LARGEST and not (base := replace(self, model=BASE)).missing():
            place = vertex(base.losses())[0]
            asked |= {math.floor(place), math.ceil(place)}
        return sorted(asked - found.keys())


def around(found: Sweep) -> range:
    """The best rate of a sweep and one on either side; where nothing was swept, those about the centre."""
    best = min(found, key=found.__getitem__) if found else CENTRE
    return range(best - 1, best + 2)


def sweep(root: Path, names: list[str], workers: int) -> None:
    """Carry out every run that the sweeps ask for, seed by seed."""
    models = dict.fromkeys(model for models in AXES.values() for model in models)
    with TerminalView() as view:
        for seed in SEEDS:
            cells = [Cell(root, name, model, seed) for name in names for model in models]
            while asked := {(cell.folder, cell.run(exponent)): None for cell in cells for exponent in cell.missing()}:
                view.stage(f"seed {seed}: {len(asked)} runs")
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
    for seed in SEEDS:
        cell = Cell(root, name, model, seed)
        if (found := cell.losses()) and not cell.missing():
            yield seed, found


def exponent(root: Path, name: str, axis: str) -> str:
    """The power of width or depth that the best rate follows, with its 95 % interval, over all shapes and seeds."""
    index = 0 if axis == "width" else 1
    pairs = [
        (np.log2(model[index] / BASE[index]), vertex(found)[0])
        for model in AXES[axis]
        for _, found in bracketed(root, name, model)
    ]
    if len(pairs) < 3:
        return "not swept"
    fit = linregress(*zip(*pairs, strict=True))
    half = fit.stderr * t.ppf(0.975, len(pairs) - 2)
    return f"{fit.slope:+.2f} ({fit.slope - half:+.2f} to {fit.slope + half:+.2f}; {len(pairs)} sweeps)"


def fitted(root: Path, name: str) -> Hyper:
    """The law of `nachim transfer` through every run of the small shapes, all seeds, in FLOP a token."""
    rows = []
    for model in SMALL:
        for seed, found in bracketed(root, name, model):
            cell = Cell(root, name, model, seed)
            runs = (cell.run(e) for e in found if np.isfinite(found[e]))
            rows += [(run, result_of(cell.folder / name_of(run))) for run in runs]
    return hyper(sweep_of(table_of(rows), "flops_per_token"))


def scale(name: str, model: tuple[int, int]) -> tuple[float, float]:
    """(FLOP a token, tokens) of a shape's runs."""
    run = METHODS[name].run(name, model, CENTRE, 0)
    return float(run.flops_per_token), float(run.train.tokens)


def carried(root: Path, name: str, model: tuple[int, int], law: Hyper | None) -> dict[str, dict[int, float]]:
    """Bpb of `model`, seed by seed, at the rate that each rule gives it; `law` where the parametrisation needs one."""
    base, here = dict(bracketed(root, name, BASE)), dict(bracketed(root, name, model))
    rates = {seed: vertex(found)[0] for seed, found in base.items()}
    places = {f"{name}, base's rate": rates}
    if law:
        compute = [lr_opt(np.prod(scale(name, each))) for each in (BASE, model)]
        move = float(np.log2(compute[1] / compute[0]))
        own = float(np.log2(law.planes.lr(*scale(name, model))))
        places[f"{name}, base's rate times C^-0.125"] = {seed: place + move for seed, place in rates.items()}
        places[f"{name}, law of nachim transfer"] = dict.fromkeys(here, own)
    places[f"{name}, its own best"] = {seed: vertex(found)[0] for seed, found in here.items()}
    return {
        rule: {seed: at(here[seed], place) for seed, place in by_seed.items() if seed in here}
        for rule, by_seed in places.items()
    }


def told(values: list[float], digits: int) -> str:
    """Mean, and standard deviation where there is one."""
    spread = f" +- {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def against(values: dict[int, float], reference: dict[int, float]) -> str:
    """Mean difference of paired seeds in percent, with its 95 % interval."""
    percent = [100 * (values[seed] / reference[seed] - 1) for seed in values.keys() & reference.keys()]
    if len(percent) < 2:
        return f"{np.mean(percent):+.2f}"
    half = t.ppf(0.975, len(percent) - 1) * np.std(percent, ddof=1) / len(percent) ** 0.5
    return f"{np.mean(percent):+.2f} ({np.mean(percent) - half:+.2f} to {np.mean(percent) + half:+.2f})"


def report(root: Path, names: list[str], laws: dict[str, Hyper]) -> None:
    """Print the tables."""
    print("best learning rate, and bpb there: mean +- standard deviation over seeds")
    for name in names:
        for model in dict.fromkeys(model for models in AXES.values() for model in models):
            if not (best := [vertex(found) for _, found in bracketed(root, name, model)]):
                continue
            rates = told([2**place * 1e3 for place, _ in best], 2)
            print(f"{name:16s} {model[1]} x {model[0]:<4d} {rates:>16s} e-3 {told([b for _, b in best], 4):>18s}")
    print("exponent of the best rate, 95 % interval")
    for name in names:
        print(f"{name:16s} width {exponent(root, name, 'width')}   depth {exponent(root, name, 'depth')}")
    print(f"laws of nachim transfer, fitted to {', '.join(f'{m[1]} x {m[0]}' for m in SMALL)}")
    for name, law in laws.items():
        lr = law.laws["lr"]
        ends = " to ".join(f"{end:.2f}" for end in lr.interval90["model"])
        rates = (f"{1e3 * lr.plane(*scale(name, each)):.2f} e-3 for {each[1]} x {each[0]}" for each in LARGEST)
        print(f"{name:16s} lr proportional to M^{lr.plane.model:.2f} (90 %: {ends}), {', '.join(rates)}")
    print("the largest shapes: bpb, and what it is over the standard's own best there, % (95 % interval, seeds paired)")
    for axis, models in AXES.items():
        for standard, law in laws.items():
            found = carried(root, standard, models[-1], law)
            best = found[f"{standard}, its own best"]
            for name in names:
                if name != standard and METHODS[name].standard == standard:
                    found |= carried(root, name, models[-1], None)
            for rule, bpb in ((rule, bpb) for rule, bpb in found.items() if bpb):
                print(f"{axis:6s} {rule:36s} {told(list(bpb.values()), 4):>18s}   {against(bpb, best)}")


def optima(root: Path, names: list[str], laws: dict[str, Hyper]) -> go.Figure:
    """The best rate against width and depth: both parametrisations, and the law of the standard one."""
    titles = [f"{s}: {n}" for s in laws for n in ("width (CompleteP is muP here)", "depth (standard is muP here)")]
    picture = make_subplots(rows=len(laws), cols=2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    for row, (standard, law) in enumerate(laws.items(), 1):
        for column, (axis, models) in enumerate(AXES.items(), 1):
            place = {"row": row, "col": column}
            sizes = [model[0 if axis == "width" else 1] for model in models]
            _law(picture, law, sizes, [scale(standard, model) for model in models], place)
            for name in names:
                if METHODS[name].standard == standard:
                    rates = [[2 ** vertex(found)[0] for _, found in bracketed(root, name, model)] for model in models]
                    _rates(picture, sizes, rates, name == standard, place)
            picture.update_xaxes(type="log", tickvals=sizes, title=axis, **place)
    picture.update_yaxes(**TICKS)
    picture.update_yaxes(title="best learning rate", col=1)
    return picture.update_layout(template=TEMPLATE, height=360 * len(laws), margin={"t": 80}, legend=LEGEND)


def _rates(picture: go.Figure, sizes: list[int], rates: list[list[float]], plain: bool, place: dict[str, int]) -> None:
    """Each seed's best rates, and the line of their geometric means."""
    colour = COLOURS[plain]
    style = {"color": colour, "symbol": "circle" if plain else "diamond"}
    swept = {size: here for size, here in zip(sizes, rates, strict=True) if here}
    seeds = {**style, "size": 7, "opacity": 0.45}
    x, y = [size for size, here in swept.items() for _ in here], [rate for here in swept.values() for rate in here]
    picture.add_scatter(x=x, y=y, mode="markers", marker=seeds, showlegend=False, **place)
    mean = [float(np.exp(np.mean(np.log(here)))) for here in swept.values()]
    line = {"mode": "lines+markers", "marker": {**style, "size": 11}, "line": {"color": colour}}
    said = f"{'standard' if plain else 'CompleteP'}: mean of seeds"
    picture.add_scatter(x=list(swept), y=mean, name=said, **line, showlegend=set(place.values()) == {1}, **place)


def _law(
    picture: go.Figure, law: Hyper, sizes: list[int], at: list[tuple[float, float]], place: dict[str, int]
) -> None:
    """What the law says at (FLOP a token, tokens) of each size, and its 90 % band."""
    bands = [law.bands(*each)["lr"] for each in at]
    low, high = zip(*(band.interval90 for band in bands), strict=True)
    shown = {"showlegend": set(place.values()) == {1}}
    area = {"fill": "toself", "fillcolor": BAND, "line": {"width": 0}, "hoverinfo": "skip", "mode": "lines"}
    there_and_back = {"x": sizes + sizes[::-1], "y": low + high[::-1]}
    picture.add_scatter(**there_and_back, **area, name="the law's 90 %", **shown, **place)
    line = {"mode": "lines", "line": {"color": LAW, "dash": "dash"}, "name": "law of nachim transfer (standard)"}
    picture.add_scatter(x=sizes, y=[band.best for band in bands], **line, **shown, **place)


def sweeps(root: Path, names: list[str]) -> go.Figure:
    """Every sweep, a panel a method and axis, its best rate as a star."""
    titles = [f"{name}: {axis}" for name in names for axis in AXES]
    picture = make_subplots(rows=len(names), cols=2, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.05)
    for row, name in enumerate(names, 1):
        for column, models in enumerate(AXES.values(), 1):
            for (size, colour), model in zip(SIZES.items(), models, strict=True):
                for seed, found in bracketed(root, name, model):
                    rates = [2.0**e for e in sorted(found)]
                    lines = {"mode": "lines+markers", "line": {"color": colour, "width": 1}, "marker": {"size": 4}}
                    label = {"name": size, "legendgroup": size, "showlegend": row == column == 1 and not seed}
                    values = [found[e] if np.isfinite(found[e]) else None for e in sorted(found)]
                    picture.add_scatter(x=rates, y=values, **lines, **label, row=row, col=column)
                    place, bpb = vertex(found)
                    star = {"mode": "markers", "marker": {"symbol": "star", "size": 11, "color": colour}}
                    picture.add_scatter(x=[2**place], y=[bpb], **star, showlegend=False, row=row, col=column)
    picture.update_xaxes(**TICKS)
    picture.update_yaxes(title="validation bpb", col=1)
    return picture.update_layout(template=TEMPLATE, height=300 * len(names), margin={"t": 80}, legend=LEGEND)


def write(root: Path, names: list[str], laws: dict[str, Hyper]) -> None:
    """The plots as a page, and the measured numbers as JSON."""
    plain = {"full_html": False, "include_plotlyjs": False, "config": {"displayModeBar": False}}
    pages = [Html(each.to_html(**plain)) for each in (optima(root, names, laws), sweeps(root, names))]
    page = document(
        "nachim: best learning rate and parametrisation",
        get_plotlyjs(),
        element("header", element("h1", "ideas/parametrisation")),
        figure("The best learning rate against width and depth", pages[0], OPTIMA, ""),
        figure("The sweeps", pages[1], SWEEPS, ""),
    )
    write_text(root / "parametrisation.html", page)
    numbers = [
        {
            "method": name,
            "model": model,
            "seed": seed,
            "bpb": {e: bpb if np.isfinite(bpb) else None for e, bpb in found.items()},
        }
        for name in names
        for model in dict.fromkeys(model for models in AXES.values() for model in models)
        for seed, found in bracketed(root, name, model)
    ]
    write_text(root / "losses.json", json.dumps(numbers, indent=1) + "\n")


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
    laws = {name: fitted(out, name) for name in names if name == METHODS[name].standard}
    report(out, names, laws)
    write(out, names, laws)


if __name__ == "__main__":
    tyro.cli(main)
