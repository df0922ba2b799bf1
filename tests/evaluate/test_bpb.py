"""Bits per byte against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nachim.evaluate import bpb
from nachim.evaluate.bpb import Windows, measure, measure_each
from nachim.model import build
from nachim.model.decoder import initialise
from tests.spec.examples import decoder

VOCABULARY = 300


class Fixed(nn.Module):
    """The same logits at every position, whatever the tokens."""

    def __init__(self, logits_V: Tensor) -> None:
        super().__init__()
        self.logits_V = nn.Parameter(logits_V)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """[B, T] to [B, T, V]."""
        return self.logits_V.expand(*ids_BT.shape, -1)


def windows(n: int, length: int, target_bytes: int) -> Windows:
    """Random sequences."""
    return Windows(np.random.default_rng(1).integers(0, VOCABULARY, (n, length + 1)), target_bytes)


def random_model() -> nn.Module:
    """A decoder whose logits differ from position to position."""
    spec = decoder()
    model = build(spec, spec.d_model)
    initialise(model, 0)
    nn.init.normal_(model.head.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("n", [1, 16, 21])
def test_a_uniform_guess_costs_the_vocabularys_bits_for_every_target(n):
    found = measure(Fixed(torch.zeros(VOCABULARY)), windows(n, 8, 1000))
    assert found["loss"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert found["bpb"] == pytest.approx(math.log2(VOCABULARY) * 8 * n / 1000, rel=1e-6)


def test_a_known_distribution_costs_its_surprise():
    logits_V = torch.linspace(-3, 3, VOCABULARY)
    given = windows(5, 8, 77)
    surprise = -logits_V.double().log_softmax(0).numpy()[given.ids[:, 1:]]
    found = measure(Fixed(logits_V), given)
    assert found["loss"] == pytest.approx(surprise.mean(), rel=1e-6)
    assert found["bpb"] == pytest.approx(surprise.sum() / math.log(2) / 77, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_the_number_of_rows_at_a_time_changes_nothing(rows, monkeypatch):
    model, given = random_model(), windows(21, 12, 500)
    expected = measure(model, given)
    monkeypatch.setattr(bpb, "ROWS", rows)
    assert measure(model, given) == pytest.approx(expected, rel=1e-6)


def test_every_target_counts_once_and_sees_only_what_is_before_it():
    model, given = random_model(), windows(3, 12, 500)
    nats = 0.0
    with torch.no_grad():
        for row in torch.from_numpy(given.ids):
            for t in range(12):
                nats -= model(row[None, : t + 1])[0, -1].log_softmax(0)[row[t + 1]].item()
    assert measure(model, given)["loss"] == pytest.approx(nats / 36, rel=1e-5)


def test_a_measured_model_can_still_be_trained():
    model, given = random_model(), windows(2, 12, 500)
    measure(model, given)
    ids_BT = torch.from_numpy(given.ids)
    model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_bf16_weights_are_judged_in_fp32():
    model, given = random_model(), windows(2, 4, 500)
    expected = measure(model, given)
    assert measure(model.to(torch.bfloat16), given) == pytest.approx(expected, rel=0.02)


def test_texts_apart_and_mixed_in_their_shares():
    model = random_model()
    texts = {"old": windows(3, 8, 40), "new": windows(5, 8, 90)}
    found = measure_each(model, texts, {"old": 0.2, "new": 0.8})
    apart = {name: measure(model, one) for name, one in texts.items()}
    for name, one in apart.items():
        assert (found[f"loss/{name}"], found[f"bpb/{name}"]) == (one["loss"], one["bpb"])
    nats = 0.2 * apart["old"]["loss"] + 0.8 * apart["new"]["loss"]
    assert found["loss"] == pytest.approx(nats)
    assert found["bpb"] == pytest.approx(nats / math.log(2) / (0.2 * 40 / 24 + 0.8 * 90 / 40))
