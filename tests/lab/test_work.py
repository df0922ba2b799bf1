"""Carrying out: chains equal separate runs, bit for bit; what is finished is not repeated; kills lose nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import tiny_recipe

from nachim.budget.shape import shape
from nachim.lab.ladder import Chain, Ladder, name_of
from nachim.lab.launch.local import Event, carry_out_all
from nachim.lab.recipe import Recipe
from nachim.lab.store import finished, observe
from nachim.lab.work import Place, carry_out, carry_out_chain
from nachim.spec import Run, UserError
from nachim.train import checkpoint


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Place]:
    root = tmp_path_factory.mktemp("lab")
    return tiny_recipe(root), Place(cache=root / "cache")


def nothing(run: Run, step: int, loss: float) -> None: ...


def weights(folder: Path) -> dict[str, bytes]:
    last = checkpoint.latest(folder / "checkpoint")
    assert last is not None
    return {name: value.numpy().tobytes() for name, value in load_file(last / "weights.safetensors").items()}


def chain_of(recipe: Recipe, *steps: int) -> Chain:
    batch = recipe.batch_tokens(1e9)
    return Chain(runs=tuple(recipe.run(shape(16, 300), 1e9, count * batch) for count in steps))


def test_chain_gives_the_weights_of_separate_runs(lab: tuple[Recipe, Place], tmp_path: Path) -> None:
    recipe, place = lab
    chain = chain_of(recipe, 20, 30, 50)
    carry_out_chain(chain, tmp_path / "chain", place, nothing)
    for run in chain.runs:
        carry_out(run, tmp_path / "alone" / name_of(run), place, nothing)
        assert weights(tmp_path / "chain" / name_of(run)) == weights(tmp_path / "alone" / name_of(run)), name_of(run)
    shared = [result["steps_taken_here"] for _, result in finished(tmp_path / "chain", chain.runs)]
    assert shared == [20, 30 - 16, 50 - 24]


def test_interrupted_chain_goes_on_to_the_same_weights(lab: tuple[Recipe, Place], tmp_path: Path) -> None:
    recipe, _ = lab
    place = Place(cache=lab[1].cache, checkpoint_seconds=0.0)
    chain = chain_of(recipe, 16, 24)
    carry_out_chain(chain, tmp_path / "whole", place, nothing)
    taken = 0

    def stop(run: Run, step: int, loss: float) -> None:
        nonlocal taken
        taken += 1
        if taken % 5 == 0:
            raise KeyboardInterrupt

    for _ in range(20):
        try:
            carry_out_chain(chain, tmp_path / "broken", place, stop)
            break
        except KeyboardInterrupt:
            continue
    for run in chain.runs:
        assert weights(tmp_path / "broken" / name_of(run)) == weights(tmp_path / "whole" / name_of(run))


def test_workers_carry_out_all_and_repeat_nothing(lab: tuple[Recipe, Place], tmp_path: Path) -> None:
    recipe, place = lab
    ladder = Ladder(chains=(chain_of(recipe, 16, 24), chain_of(recipe, 10)))
    events: list[Event] = []
    carry_out_all(ladder.chains, tmp_path, place, 2, events.append)
    observed = observe(tmp_path, ladder.runs)
    assert len(observed) == 3 and set(observed.group) == {"2x16"}
    assert {event.run for event in events} == {name_of(run) for run in ladder.runs}
    assert os.getpid() not in {event.worker for event in events}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    carry_out_all(ladder.chains, tmp_path, place, 2, events.append)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")} == before


def test_diverged_run_is_recorded_and_the_others_go_on(lab: tuple[Recipe, Place], tmp_path: Path) -> None:
    recipe, place = lab
    wild = tiny_wild(recipe)
    chains = (Chain(runs=(wild,)), chain_of(recipe, 8))
    carry_out_all(chains, tmp_path, place, 1, lambda event: None)
    assert "try a lower learning rate" in json.loads((tmp_path / name_of(wild) / "diverged.json").read_text())["why"]
    assert [run for run, _ in finished(tmp_path, [run for chain in chains for run in chain.runs])] == [
        chains[1].runs[0]
    ]


def tiny_wild(recipe: Recipe) -> Run:
    """A run whose learning rate must overflow."""
    run = recipe.run(shape(16, 300), 1e9, 40 * recipe.batch_tokens(1e9))
    optimizer = dataclasses.replace(run.train.optimizer, lr=1e30)
    return dataclasses.replace(run, train=dataclasses.replace(run.train, optimizer=optimizer))


def test_result_of_another_run_is_refused(lab: tuple[Recipe, Place], tmp_path: Path) -> None:
    run = chain_of(lab[0], 8).runs[0]
    folder = tmp_path / name_of(run)
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"fingerprint": "other"}))
    with pytest.raises(UserError, match="another run"):
        finished(tmp_path, [run])
    with pytest.raises(UserError, match="no run under"):
        observe(tmp_path / "empty", [run])
