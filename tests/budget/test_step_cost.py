"""Seconds of a step: the works against what torch counts, and the rates against those that made the points."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from bench.predicted import CASES, VOCAB, markdown, medians
from nachim.budget.layout import Job
from nachim.budget.shape import shape
from nachim.budget.step_cost import MUON_LAYERS, TERMS, StepCost, fit_step_cost, orthogonal_flops, work
from nachim.lab.speed import STEP_POINTS, run_of, step_seconds, stepping
from nachim.model import build
from nachim.spec import UserError
from nachim.train.optimizer import build_optimizer


def jobs():
    """Those that `nachim measure` takes steps of."""
    return [
        Job(model=shape(width, vocab), seq_len=length, batch_tokens=batch, optimizer=optimizer, precision="fp32")
        for width, batch, length, optimizer, vocab in STEP_POINTS
    ]


RATES = StepCost(
    threads=2,
    points=12,
    error=0.0,
    layers=1e-4,
    matmul=1e-11,
    mixing=2e-11,
    values=3e-9,
    logits=1e-8,
    params=1e-9,
    orthogonal=1.5e-11,
)


@pytest.mark.parametrize("width", [32, 96])
def test_the_flop_of_muon_are_those_that_torch_counts(width):
    spec = shape(width, 512)
    model = build(spec, width)
    weights = dict(model.named_parameters())
    run = run_of(Job(model=spec, seq_len=128, batch_tokens=128, optimizer="muon", precision="fp32"))
    optimizer = build_optimizer(run.train.optimizer, weights, spec)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == orthogonal_flops(spec)


def test_muon_calls_as_many_operators_as_it_is_said_to():
    def operators(n_layers, optimizer):
        model = dataclasses.replace(shape(32, 512), n_layers=n_layers)
        step = stepping(
            run_of(Job(model=model, seq_len=8, batch_tokens=8, optimizer=optimizer, precision="fp32")), "cpu"
        )
        step()
        with profile() as seen:
            step()
        return sum(event.name.startswith("aten::") for event in seen.events())

    layer = (operators(3, "adamw") - operators(1, "adamw")) / 2
    for n_layers in (1, 3):
        muon = operators(n_layers, "muon") - operators(n_layers, "adamw")
        assert muon / layer == pytest.approx(MUON_LAYERS, rel=0.15)


def test_the_works_of_a_step_are_those_of_the_model():
    job = jobs()[0]
    done, model = work(job), job.model
    tokens = job.batch_tokens
    assert done["matmul"] + done["mixing"] == tokens * (model.flops_per_token(128) + model.head_flops_per_token)
    assert done["params"] == model.params_total and done["logits"] == tokens * 512
    assert done["orthogonal"] == 0.0 < work(dataclasses.replace(job, optimizer="muon"))["orthogonal"]
    assert tuple(done) == TERMS


def test_the_rates_that_made_the_points_are_found_again():
    points = [(job, RATES.seconds(job)) for job in jobs()]
    found = fit_step_cost(points, threads=2)
    assert found.error < 1e-6 and found.points == len(STEP_POINTS) and found.threads == 2
    for name in TERMS:
        assert getattr(found, name) == pytest.approx(getattr(RATES, name), rel=1e-3)


def test_no_rate_is_negative_when_the_points_are_noisy():
    noisy = [(job, RATES.seconds(job) * (1.1 if i % 2 else 0.9)) for i, job in enumerate(jobs())]
    found = fit_step_cost(noisy, threads=1)
    assert all(getattr(found, name) >= 0 for name in TERMS)
    assert 0 < found.error < 0.1


def test_too_few_points_are_refused():
    job = jobs()[0]
    with pytest.raises(UserError, match="2 measured steps cannot fix 7 rates"):
        fit_step_cost([(job, 1.0)] * 2, threads=1)


def test_a_step_that_would_take_negative_time_is_no_part():
    with pytest.raises(UserError, match=r"StepCost\.matmul is -1"):
        dataclasses.replace(RATES, matmul=-1.0)


def test_steps_take_turns_after_one_that_is_not_timed():
    calls = []
    times = step_seconds([lambda: calls.append("a"), lambda: calls.append("b")], seconds=0.0, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(found) for found in times] == [2, 2] and all(math.isfinite(t) for found in times for t in found)


def test_what_the_bench_predicts_was_not_measured_before():
    known = {(width, batch) for width, batch, _, _, vocab in STEP_POINTS if vocab == VOCAB["cpu"]}
    cases = CASES["cpu"]
    assert len(cases) >= 12 and not known & {(width, batch) for width, batch, _ in cases}
    assert {optimizer for _, _, optimizer in cases} == {"adamw", "muon"}


def test_the_bench_says_its_errors_and_their_medians():
    def row(error):
        def pair():
            return {"predicted": 1.0 + error, "measured": 1.0, "error": error}

        about = {"shape": "2 x 32", "params": 60_128, "batch_tokens": 1024, "optimizer": "muon"}
        return about | {"flops": pair(), "memory": pair(), "seconds by steps": pair(), "seconds by pace": pair()}

    rows = [row(error) for error in (-0.1, 0.02, 0.3)]
    assert medians(rows) == dict.fromkeys(("flops", "memory", "seconds by steps", "seconds by pace"), 0.1)
    lines = markdown(rows).splitlines()
    assert len(lines) == 6 and len({line.count("|") for line in lines}) == 1
    assert lines[-1].count("10.0 %") == 4 and "+30.0 %" in lines[4]
