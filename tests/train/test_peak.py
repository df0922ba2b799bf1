"""The measured peak against cases counted by hand, and the predicted peak of training steps against the measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from nachim.budget.layout import Job, Layout, Optimizer
from nachim.budget.memory import memory
from nachim.budget.shape import shape
from nachim.lab.speed import run_of
from nachim.spec import UserError
from nachim.train.guard import Guard
from nachim.train.moments import quantise
from nachim.train.peak import peak_bytes
from nachim.train.step import Stepper
from tests.plainly import plainly
from tests.train.tiny import fresh, loss

N = 100
SQUARE = N * N * 4


def test_what_stands_at_once_counts_and_what_is_gone_does_not() -> None:
    def work() -> None:
        one = torch.ones(N, N)
        two = one + one
        del one
        two + two

    assert peak_bytes(work) == 2 * SQUARE


def test_views_take_nothing_and_a_temporary_inside_an_expression_counts() -> None:
    def work() -> None:
        one = torch.ones(N, N)
        one.view(-1)[None].T.expand(N * N, 7)
        (one * 2 * 3).sum()

    assert peak_bytes(work) == pytest.approx(3 * SQUARE, abs=64)  # and a few scalars


def test_backward_is_followed_node_by_node() -> None:
    """Three layers of x -> tanh(x) keep three outputs; going back, one gradient comes in and one goes out."""

    def work() -> None:
        x = torch.ones(N, N, requires_grad=True)
        y = x.tanh().tanh().tanh()
        gradient = torch.ones(N, N)
        y.backward(gradient)

    # x, three outputs, the gradient given and the one going out of the last layer; its output is then held by `y`.
    # One layer down: x, y, two outputs, gradient given, one in, one out.
    assert peak_bytes(work) == 7 * SQUARE


def test_cross_entropy_stands_three_times_on_the_way_back() -> None:
    """Log-probabilities, the gradient on them, and the gradient of the logits; the logits themselves are held too."""
    tokens, words = 64, 1000
    targets = torch.arange(tokens)

    def work() -> None:
        logits = torch.zeros(tokens, words, requires_grad=True)
        F.cross_entropy(logits, targets).backward()

    assert peak_bytes(work) == pytest.approx(4 * tokens * words * 4, rel=1e-3)


def test_tensors_made_before_are_not_counted() -> None:
    before = torch.ones(N, N)
    assert peak_bytes(lambda: before.add(1).sum().item() and None) == pytest.approx(SQUARE, abs=64)


def test_work_without_tensors_is_refused() -> None:
    with pytest.raises(UserError, match="makes no tensor"):
        peak_bytes(lambda: None)


@pytest.mark.parametrize(
    ("width", "rows", "times", "optimizer", "precision", "moment"),
    [
        (32, 4, 1, "adamw", "fp32", "loss"),
        (32, 4, 2, "muon", "bf16", "loss"),
        (96, 1, 1, "muon", "fp32", "update"),
        (96, 1, 1, "adamw", "fp32", "gradients"),
        (64, 1, 2, "adamw", "bf16", "gradients"),
        (96, 1, 1, "adamw8bit", "fp32", "update"),
        (64, 1, 2, "schedule-free", "fp32", "gradients"),
        (96, 1, 1, "schedule-free", "bf16", "update"),
    ],
)
def test_predicted_peak_of_a_step_is_the_measured_one(
    width: int,
    rows: int,
    times: int,
    optimizer: Optimizer,
    precision: Literal["fp32", "bf16"],
    moment: str,
) -> None:
    """Within 3 %, whichever moment is the fullest; never more, where functions of one pass keep less."""
    model, seq_len = shape(width, 257), 16
    batch = rows * times * seq_len
    job = Job(model=model, seq_len=seq_len, batch_tokens=batch, optimizer=optimizer, precision=precision)
    one = run_of(job)
    run = replace(one, train=replace(one.train, tokens=2 * batch, micro_batch_tokens=rows * seq_len))

    def work() -> None:
        stepper, guard = Stepper(run, fresh(run), loss), Guard(1e-3)
        for step in range(2):
            stepper.take(step, torch.zeros(rows * times, seq_len + 1, dtype=torch.long), guard)

    for signed in (True, False):
        quantise(torch.zeros(1), signed)  # its tables stay for all that follows
    predicted = memory(job, Layout(micro_batch=rows), "cpu")
    assert predicted.moment == moment
    assert peak_bytes(work) < 1.03 * predicted.total
    with plainly():
        assert predicted.total == pytest.approx(peak_bytes(work), rel=0.03)
