"""What is seen inside a model is right, costs no bit, and survives whatever the run survives."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from nachim.model.attend import Rule
from nachim.model.frame import Frame
from nachim.spec import MLA, MoE, Muon, RollBack, Run, ScheduleFreeAdamW
from nachim.train import checkpoint
from nachim.train.loop import Watch
from nachim.train.onlooker import Onlooker
from nachim.train.samples import QUANTITIES, STATISTICS, read
from nachim.train.statistics import LEAST_EVERY, MOST_SAMPLES, Statistics, activations, largest_score
from tests.train.tiny import ALWAYS, BATCH, NEVER, Kill, batches, differing, fresh, go, kill_at, loss, rows, tiny_run
from tests.train.tiny import weights as last_weights

STEPS = 5


def sampled(every: int | None = 1, said: list[str] | None = None) -> Watch:
    return Watch((said if said is not None else []).append, onlookers=(Statistics(every),))


def table(out: Path) -> dict[tuple[int, str, str], float]:
    return {(row["step"], row["quantity"], row["name"]): row["value"] for row in read(out / STATISTICS).to_pylist()}


def with_model(**changes: object) -> Run:
    run = tiny_run(STEPS, times=2)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **changes))


RUNS = {
    "plain": tiny_run(STEPS, times=2, clip=0.3),
    "bf16, Muon, micro-batches": tiny_run(
        STEPS, precision="bf16", optimizer=Muon(lr=0.01), micro_batch_tokens=BATCH // 2
    ),
    "schedule-free": tiny_run(STEPS, optimizer=ScheduleFreeAdamW(lr=0.01)),
    "experts": with_model(ffn=MoE(experts=4, active=2, d_ff=8, bias_step=0.01, balance_loss=0.01)),
    "latent attention": with_model(attention=MLA(n_heads=2, d_head=8, rank=8, rope_dim=4)),
}


@pytest.mark.parametrize("name", RUNS)
def test_looking_on_changes_no_bit(name, tmp_path):
    run = RUNS[name]
    go(run, tmp_path / "alone")
    go(run, tmp_path / "seen", watch=sampled())
    assert not differing(last_weights(tmp_path / "alone"), last_weights(tmp_path / "seen"))
    assert rows(tmp_path / "alone") == rows(tmp_path / "seen")
    assert {step for step, _, _ in table(tmp_path / "seen")} == set(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run of which every step was sampled and every checkpoint kept: its spec, folder and table."""
    run, out = RUNS["plain"], tmp_path_factory.mktemp("seen")
    go(run, out, watch=sampled(), checkpoint_seconds=ALWAYS, keep=frozenset(range(1, STEPS)))
    return run, out, table(out)


def at(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.path_at(out / "checkpoint", step) / "weights.safetensors")


def test_norms_and_updates_are_those_between_two_checkpoints(seen):
    _, out, found = seen
    before, after = at(out, 3), at(out, 4)
    for name, weight in before.items():
        norm, change = weight.double().norm().item(), (after[name].double() - weight.double()).norm().item()
        assert found[4, "weight", name] == pytest.approx(norm, rel=1e-5), name
        assert found[4, "update", name] == pytest.approx(change / norm, rel=1e-4), name


def test_gradients_are_those_of_the_batch_before_clipping(seen):
    run, out, found = seen
    assert any(row["grad_norm"] > run.train.clip for row in rows(out)), "clipping must be seen"
    for step in range(1, STEPS):
        model = fresh(run)
        model.load_state_dict(at(out, step), strict=False)
        loss(model, torch.from_numpy(batches(4 * step, 4))).backward()
        for name, weight in model.named_parameters():
            assert found[step + 1, "gradient", name] == pytest.approx(weight.grad.norm().item(), rel=1e-4, abs=1e-9)


def test_activations_are_the_root_mean_squares_of_the_stream(seen):
    run, out, found = seen
    model = fresh(run)
    model.load_state_dict(at(out, 2), strict=False)
    ids_BT = torch.from_numpy(batches(8, 1))[:, :-1]
    with torch.no_grad():
        frame = Frame(tuple(ids_BT.shape), ids_BT.device)
        x_BTD = model.embed(ids_BT, frame)
        for number, block in enumerate(model.blocks):
            added = block.attention(block.attention_norm(x_BTD), frame, block.position)
            assert found[3, "activation", f"blocks.{number}.attention"] == pytest.approx(rms(added), rel=1e-4)
            x_BTD = block(x_BTD, frame)
            assert found[3, "activation", f"blocks.{number}"] == pytest.approx(rms(x_BTD), rel=1e-4)
    assert {what for _, what, _ in found} == set(QUANTITIES) - {"load"}


def rms(x: torch.Tensor) -> float:
    return math.sqrt(x.double().square().mean().item())


@pytest.mark.parametrize(("window", "past"), [(None, 0), (7, 0), (None, 5)])
@pytest.mark.parametrize("packed", [False, True])
def test_the_largest_score_is_that_of_every_pair_that_meets(window, past, packed, monkeypatch):
    monkeypatch.setattr("nachim.train.statistics.ROWS", 4)
    T, S = 10, 10 + past
    generator = torch.Generator().manual_seed(1)
    q_BHTE, k_BKSE = (torch.randn(2, heads, length, 8, generator=generator) for heads, length in ((4, T), (2, S)))
    documents = torch.tensor([[0] * 4 + [1] * (S - 4), [0] * 9 + [2] * (S - 9)]) if packed else None
    frame = Frame((2, T), torch.device("cpu"), past, documents)
    best = -math.inf
    for b in range(2):
        for h in range(4):
            for t in range(T):
                for s in range(S):
                    apart = past + t - s
                    same = documents is None or documents[b, past + t] == documents[b, s]
                    if apart >= 0 and (window is None or apart < window) and same:
                        best = max(best, 0.3 * float(q_BHTE[b, h, t] @ k_BKSE[b, h // 2, s]))
    found = largest_score(q_BHTE, k_BKSE, frame, Rule(window, 0.3))
    assert found.item() == pytest.approx(best, rel=1e-5)


def test_loads_are_the_whole_batchs_and_give_the_imbalance(tmp_path):
    run = RUNS["experts"]
    go(run, tmp_path, watch=sampled())
    found = table(tmp_path)
    for row in rows(tmp_path):
        loads = [
            [found[row["step"], "load", f"blocks.{layer}.ffn.router.{expert}"] for expert in range(4)]
            for layer in range(2)
        ]
        assert all(sum(layer) == pytest.approx(4) for layer in loads)
        assert max(map(max, loads)) == pytest.approx(row["imbalance"])


@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_has_the_same_statistics(seen, step, tmp_path):
    run, whole, _ = seen
    with pytest.raises(Kill):
        go(run, tmp_path, watch=sampled(), checkpoint_seconds=ALWAYS, on_step=kill_at(step))
    go(run, tmp_path, watch=sampled(), checkpoint_seconds=NEVER)
    assert read(tmp_path / STATISTICS).equals(read(whole / STATISTICS))


def test_a_kill_between_statistics_and_checkpoint_leaves_no_step_twice(seen, tmp_path):
    run, whole, _ = seen
    with pytest.raises(Kill):
        go(run, tmp_path, watch=sampled(), checkpoint_seconds=ALWAYS, on_step=kill_at(3))
    (tmp_path / STATISTICS).write_bytes((whole / STATISTICS).read_bytes())  # as if more had been written
    go(run, tmp_path, watch=sampled())
    assert read(tmp_path / STATISTICS).equals(read(whole / STATISTICS))


def test_a_damaged_file_is_said_and_costs_the_run_nothing(seen, tmp_path):
    run, whole, _ = seen
    with pytest.raises(Kill):
        go(run, tmp_path, watch=sampled(), checkpoint_seconds=ALWAYS, on_step=kill_at(4))
    path, said = tmp_path / STATISTICS, []
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)
    go(run, tmp_path, watch=sampled(said=said))
    assert any("statistics begin again at step" in text for text in said)
    assert not differing(last_weights(tmp_path), last_weights(whole))
    steps = {step for step, _, _ in table(tmp_path)}
    assert steps and max(steps) == STEPS and 1 not in steps


def test_a_roll_back_takes_its_samples_with_it(tmp_path):
    run = tiny_run(12, on_spike=RollBack(every=4, window=3, sigmas=1e6))
    spoilt: list[int] = []

    class Spoiler(Onlooker):
        def before(self, stepper, step, x_BT):
            if step == 6 and not spoilt:
                spoilt.append(step)
                with torch.no_grad():
                    stepper.masters.weights[0].fill_(math.nan)

    found = Statistics(1)
    go(run, tmp_path, watch=Watch(onlookers=(Spoiler(), found)))
    steps = read(tmp_path / STATISTICS)["step"].to_pylist()
    assert spoilt and sorted(set(steps)) == list(range(1, 13))
    assert len(table(tmp_path)) == len(steps), "no number twice"
    assert all(math.isfinite(value) for value in table(tmp_path).values())


def test_by_default_a_run_has_some_hundreds_of_samples(tmp_path):
    for steps in (100, 10**6):
        looking = Statistics()
        looking.begin(tmp_path, tiny_run(steps), 0, print)
        assert looking.every >= LEAST_EVERY and steps / looking.every <= MOST_SAMPLES


def test_other_models_have_no_activations():
    assert activations(torch.nn.Linear(2, 2), torch.zeros(1, 2)) == []


class Broken(Onlooker):
    """Fails where it is told to."""

    def __init__(self, where: str) -> None:
        self.where, self.called = where, []

    def __getattribute__(self, name):
        if name in ("begin", "before", "after", "saving", "end"):
            self.called.append(name)
            if name == self.where:
                return self.fail
        return object.__getattribute__(self, name)

    def fail(self, *told):
        raise OSError("the tracker is gone")


@pytest.mark.parametrize("where", ["begin", "before", "after", "saving", "end"])
def test_an_onlooker_that_fails_is_said_once_and_left_out(where, seen, tmp_path):
    run, whole, _ = seen
    said, broken = [], Broken(where)
    go(run, tmp_path, watch=Watch(said.append, onlookers=(broken,)))
    assert (
        len([text for text in said if "broken failed and is left out, the run goes on: the tracker is gone" in text])
        == 1
    )
    assert broken.called.count(where) <= 2 and not differing(last_weights(tmp_path), last_weights(whole))


def test_what_an_onlooker_writes_may_fail_too(seen, tmp_path):
    run, whole, _ = seen
    looking, said = Statistics(1), []
    (tmp_path / STATISTICS).mkdir(parents=True)
    (tmp_path / STATISTICS / "in the way").touch()
    go(run, tmp_path, watch=Watch(said.append, onlookers=(looking,)))
    assert any("statistics failed and is left out" in text for text in said)
    assert not differing(last_weights(tmp_path), last_weights(whole))
    assert pq.read_table(tmp_path / "metrics.parquet").num_rows == STEPS
