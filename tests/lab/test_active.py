"""An active ladder: what it offers and charges, rungs that runs can start from later, and a real one, end to end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny import tiny_data, tiny_recipe

from nachim.budget.shape import ladder_shapes, shape
from nachim.budget.throughput import Throughput
from nachim.lab import active, ladder
from nachim.lab import study as stages
from nachim.lab.active import Log, climb, left_over, made, opening
from nachim.lab.ladder import Chain, Ladder, budgets, make_ladder, name_of
from nachim.lab.recipe import Recipe
from nachim.lab.size import Plan
from nachim.lab.store import finished
from nachim.lab.sweep import sweep
from nachim.lab.work import Place, carry_out, carry_out_chain
from nachim.law import read
from nachim.spec import BPE, Data, Machine, UserError
from nachim.train import checkpoint
from nachim.train.schedule import stable_steps

RECIPE = Recipe(data=Data(tokenizer=BPE(vocab_size=512), seq_len=128), precision="fp32", batch_factor=0.2)
TOP = 2e9


def planned(design: str) -> Ladder:
    return make_ladder(RECIPE, ladder_shapes(2.7e5, 1e6, 5, 512, 128), budgets(2e12, count=5), 10**8, design)


@pytest.mark.parametrize("design", ["trunks", "isoflop"])
def test_whatever_the_order_the_runs_cost_what_their_chains_do(design: str) -> None:
    offer, spent, names = planned(design), 0.0, []
    rng = np.random.default_rng(0)
    while True:
        runs, candidates = left_over(offer, names)
        if candidates is None:
            break
        pick = int(rng.integers(len(runs)))
        spent += float(candidates.charged()[pick])
        names.append(name_of(runs[pick]))
        assert spent == pytest.approx(made(offer, names).flops)
    assert len(names) == len(offer.runs) and spent == pytest.approx(offer.flops)


def test_the_opening_is_the_cheapest_that_determines_a_law() -> None:
    offer = planned("trunks")
    first = opening(offer)
    rest = [run for run in offer.runs if run not in first]
    assert max(run.flops for run in first) <= min(run.flops for run in rest)
    assert len({run.flops_per_token for run in first}) >= 3 and len(first) >= 9


def test_runs_beyond_one_that_diverged_are_not_offered() -> None:
    offer = planned("trunks")
    lost = name_of(offer.chains[0].runs[1])
    runs, _ = left_over(offer, [lost], [lost])
    assert not set(offer.chains[0].runs[1:]) & set(runs) and offer.chains[0].runs[0] in runs


def test_an_active_ladder_goes_on_as_it_began(tmp_path: Path) -> None:
    log = Log(tmp_path / "active.json", 1.0)
    log.rounds.append(active.Round(("a", "b"), ("why", "why"), None, 5.0))
    log.write()
    again = Log(tmp_path / "active.json", 1.0)
    assert again.rounds == log.rounds and again.unfinished and again.names == ["a", "b"]
    with pytest.raises(UserError, match="began with --within 1"):
        Log(tmp_path / "active.json", 2.0)


def test_a_run_added_later_starts_at_its_rung_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    place, batch = Place(cache=tmp_path / "cache"), recipe.batch_tokens(1e9)
    short, middle, long = (recipe.run(shape(16, 300), 1e9, steps * batch) for steps in (20, 30, 50))
    rungs = tuple(stable_steps(run.train) for run in (short, middle, long))
    for runs in ((short,), (short, long), (short, middle, long)):
        carry_out_chain(Chain(runs=runs, rungs=rungs), tmp_path / "chain", place, lambda run, step, loss: None)
    carry_out(middle, tmp_path / "alone", place, lambda run, step, loss: None)
    both = [load_file(checkpoint.latest(folder / "checkpoint") / "weights.safetensors") for folder in (
        tmp_path / "alone", tmp_path / "chain" / name_of(middle)
    )]  # fmt: skip
    assert {n: w.numpy().tobytes() for n, w in both[0].items()} == {n: w.numpy().tobytes() for n, w in both[1].items()}
    taken = [result["steps_taken_here"] for _, result in finished(tmp_path / "chain", [short, middle, long])]
    assert taken == [20, 30 - 24, 50 - 16]


class Silent:
    """Hears nothing but sentences."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def __getattr__(self, name: str):
        return lambda *args, **fields: None


def tiny_study(root: Path, out: str) -> tuple[stages.Study, Plan]:
    """A study whose machine, speed and plan are given: four shapes at four budgets, runs of well under a second."""
    question = stages.Question(minutes=0.1, data=tiny_data(root), seed=0)
    study = stages.Study(root / out, question, root / "cache", Silent(), time.monotonic())
    study.root.mkdir()
    Machine(
        name="test", device="cpu", cores=2, fp32_one_thread=1e11, fp32_all=2e11, bf16_one_thread=1e9, bf16_all=2e9
    ).save(study.root / "machine.json")
    tiny_recipe(root).save(study.root / "recipe.json")
    rate = Throughput(threads=1, flops=(1e5, 1e8), seconds=(1e-5, 1e-2)).to_json()
    (study.root / "pace.json").write_text(json.dumps({"alone": rate, "beside": rate, "workers": 2}))
    shapes = tuple(shape(width, 300) for width in (16, 24, 32, 40))
    plan = Plan(
        design="trunks",
        levels=tuple(budgets(TOP, count=4, span=8.0)),
        shapes=shapes,
        sweep=sweep(study.recipe(), shapes[0], TOP / 8)[0],
        target_flops=10 * TOP,
        sweep_seconds=1.0,
        ladder_seconds=600.0,
        target_seconds=1.0,
        disk=1,
    )
    return study, plan


def test_a_real_active_ladder_is_cheaper_and_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice, it makes the choices of one that was not; its table is what the other stages read."""
    monkeypatch.setattr(ladder, "FEWEST_STEPS", 40)
    kills = SimpleNamespace(every=0, seen=0)

    def here(chains, root: Path, place: Place, workers: int, on_event, stopping) -> None:
        def step(run, number: int, loss: float) -> None:
            kills.seen += 1
            if kills.every and kills.seen % kills.every == 0:
                raise KeyboardInterrupt

        for chain in chains:
            carry_out_chain(chain, root, place, step)

    monkeypatch.setattr(active, "carry_out_all", here)
    whole, plan = tiny_study(tmp_path, "whole")
    climb(whole, plan, within=None)
    steps = kills.seen
    kills.every, kills.seen = steps // 2, 0
    broken, _ = tiny_study(tmp_path, "broken")
    interrupted = 0
    for _ in range(5):
        try:
            climb(broken, plan, within=None)
            break
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted in (1, 2)
    logs = [json.loads((study.root / "active.json").read_text()) for study in (whole, broken)]
    assert logs[0]["rounds"] == logs[1]["rounds"] and logs[0]["stopped"] == logs[1]["stopped"]
    assert (whole.root / "observations.csv").read_text() == (broken.root / "observations.csv").read_text()
    table, offer = read(whole.root / "observations.csv"), whole.make_ladder(plan)
    assert (
        len(table)
        == len(Ladder.load(whole.root / "ladder.json").runs)
        == sum(len(r["runs"]) for r in logs[0]["rounds"])
    )
    assert len(table) <= len(offer.runs)
    assert len(logs[0]["rounds"]) > 1 and whole.view.said[-1] == logs[0]["stopped"]
    assert all(len(each["runs"]) == len(each["why"]) for each in logs[0]["rounds"])
    assert all(len(list((whole.root / "ladder" / name_of(run) / "checkpoint").iterdir())) == 1
               for run in Ladder.load(whole.root / "ladder.json").runs)  # fmt: skip
