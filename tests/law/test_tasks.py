from __future__ import annotations

import csv

import numpy as np
import pytest

from nachim.law import Observations
from nachim.law.curves import CURVES, Scores, choose, fit_curve
from nachim.law.tasks import read_targets, read_tasks, task_of, tasks
from nachim.spec.error import UserError
from tests.law.answers import answered, loss_at, right_at

TARGET = np.array([7e9]), np.array([7e11])


def test_a_curve_without_noise_is_recovered():
    loss = np.linspace(0.6, 1.8, 12)
    truth = {"sigmoid": [1.0, np.log(4)], "exponential": [0.8, np.log(3)], "slow": [1.1, np.log(3)]}
    truth |= {"sigmoid, free floor": [1.0, np.log(5), 0.3], "sigmoid, free top": [1.0, np.log(5), 0.9]}
    for curve in CURVES:
        exact = curve.value(np.array(truth[curve.name]), loss, 0.25)
        fitted = fit_curve(curve, Scores(loss, exact, 0.25, None))
        assert fitted.point == pytest.approx(truth[curve.name], rel=1e-5)
        assert fitted.value(np.array([0.4])) == pytest.approx(curve.value(np.array(truth[curve.name]), [0.4], 0.25))


def test_the_exponential_is_gadres_error_law_in_its_tail():
    curve = next(curve for curve in CURVES if curve.name == "exponential")
    loss, gamma, middle = np.linspace(3.0, 4.0, 5), 2.0, 1.0
    error = (1 - 0.25) - (1 - 0.25) * np.exp(-gamma * (loss - middle))
    assert 1 - curve.value(np.array([middle, np.log(gamma)]), loss, 0.25) == pytest.approx(error, abs=2e-4)


def test_both_steps_hold_their_intervals():
    rng = np.random.default_rng(0)
    inside, off = 0, []
    for number in range(12):
        chance, middle = (0.25, 0.5)[number % 2], (0.8, 1.0, 1.2)[number % 3]
        task = task_of("a task", answered(rng, chance, middle))
        assert task.reason is None
        found = task.predict(0.0, float(TARGET[0][0]), float(TARGET[1][0]))
        truth = float(right_at(loss_at(*TARGET), chance, middle)[0])
        inside += found.low <= truth <= found.high
        off.append(abs(found.accuracy - truth))
        assert found.loss_low < found.loss < found.loss_high
    assert inside >= 10
    assert np.mean(off) < 0.03


def test_no_forecast_where_all_runs_guess():
    rng = np.random.default_rng(1)
    task = task_of("too hard", answered(rng, middle=-1.0, items=500))
    assert task.reason is not None
    assert "at chance" in task.reason
    assert task.choice is None
    with pytest.raises(UserError, match="no forecast of too hard: accuracy is at chance"):
        task.predict(1e22, 7e9, 7e11)


def test_no_forecast_where_accuracy_does_not_follow_the_loss():
    runs = answered(np.random.default_rng(2))
    upside = dict(runs.extra) | {"accuracy": runs.extra["accuracy"].max() + 0.3 - runs.extra["accuracy"]}
    reason = task_of(
        "inverse", Observations(tokens=runs.tokens, params=runs.params, loss=runs.loss, extra=upside)
    ).reason
    assert reason is not None
    assert "does not rise as the task loss falls" in reason


def test_no_forecast_where_few_items_drown_the_rise():
    found = [
        task_of("small", answered(np.random.default_rng(seed), middle=0.6, steep=1.5, items=40)) for seed in range(6)
    ]
    assert all(task.reason for task in found)
    assert all(task.binomial > 0.05 for task in found)


def test_too_few_runs_and_too_narrow_losses_are_said():
    runs = answered(np.random.default_rng(3))
    assert "at least 6" in str(task_of("few", runs.subset(np.arange(5))).reason)
    same = np.flatnonzero(runs.params == runs.params[0])
    narrow = Observations(
        tokens=np.tile(runs.tokens[same], 3),
        params=np.tile(runs.params[same] * 1.001, 3),
        loss=1.0 + 0.01 * np.random.default_rng(4).standard_normal(12),
        extra={"accuracy": np.linspace(0.3, 0.8, 12), "chance": np.full(12, 0.25)},
    )
    assert task_of("narrow", narrow).reason is not None


def test_compute_alone_is_enough_for_the_loss():
    runs = answered(np.random.default_rng(5))
    path = runs.params == runs.params
    bare = Observations(tokens=runs.flops, flops_per_token=np.ones(16), loss=runs.loss, extra=dict(runs.extra))
    task = task_of("bare", bare.subset(path))
    assert task.law is not None
    assert task.law.name == "power-flops"
    found = task.predict(6 * 7e9 * 7e11, 1.0, 6 * 7e9 * 7e11)
    truth = float(right_at(loss_at(*TARGET), 0.25)[0])
    assert found.low < truth < found.high


def test_without_rollouts_curves_count_alike():
    runs = answered(np.random.default_rng(6))
    few = Scores(runs.loss[:7], runs.extra["accuracy"][:7], 0.25, 2000)
    choice = choose(few)
    assert choice.factor >= 1
    assert sum(choice.weights.values()) == pytest.approx(1)
    assert (np.diff(choice.value(np.linspace(0.5, 2.0, 20))) <= 1e-9).all()


def test_the_table_is_read_by_task(tmp_path):
    path = tmp_path / "tasks.csv"
    rows = [
        {
            "task": name,
            "flops": 10.0**n,
            "task_loss": 2 / n,
            "accuracy": 0.25 + n / 40,
            "chance": 0.25,
            "weight": n > 14,
        }
        for name in ("a", "b")
        for n in range(14, 22)
    ]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "weight": int(row["weight"])} for row in rows)
    found = read_tasks(path)
    assert {name: len(runs) for name, runs in found.items()} == {"a": 7, "b": 7}
    assert found["a"].flops == pytest.approx(10.0 ** np.arange(15, 22))
    path.write_text("flops,task_loss\n1e20,1\n")
    with pytest.raises(UserError, match=r"tasks\.csv: there is no column 'accuracy'"):
        read_tasks(path)
    assert len(read_targets(path, ["a"])["a"]) == 1
    path.write_text("flops,task_loss,accuracy\n1e20,1,25\n")
    with pytest.raises(UserError, match="row 1, column 'accuracy': 25 is no share"):
        read_tasks(path)
    path.write_text("task_loss,accuracy\n1,0.3\n")
    with pytest.raises(UserError, match="how dear was each run"):
        read_tasks(path)
    with pytest.raises(UserError, match="is not a file"):
        read_tasks(tmp_path / "none.csv")


def test_a_wrong_task_is_named():
    runs = answered(np.random.default_rng(7))
    mixed = dict(runs.extra) | {"chance": np.linspace(0.1, 0.3, 16)}
    wrong = Observations(tokens=runs.tokens, params=runs.params, loss=runs.loss, extra=mixed)
    with pytest.raises(UserError, match="task 'quiz': 'chance' varies"):
        tasks([("quiz", wrong)])
