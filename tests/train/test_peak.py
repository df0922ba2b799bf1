"""The measured peak against cases counted by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nachim.spec import UserError
from nachim.train.peak import peak_bytes

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
