"""The gradient noise scale against gradients whose noise is known, and against micro-batches taken apart by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nachim.train.guard import Guard
from nachim.train.noise import NoiseScale
from nachim.train.step import Stepper
from tests.train import tiny
from tests.train.tiny import BATCH, LENGTH, fresh, loss, tiny_run

SEQUENCES = torch.from_numpy(tiny.batches(0, BATCH // LENGTH))


def test_it_finds_the_noise_that_was_put_in() -> None:
    """A token's gradient is G plus noise of variance s^2 in each of n directions: B = n s^2 / |G|^2."""
    generator = torch.Generator().manual_seed(0)
    n, deviation, small, big = 500, 3.0, 8, 64
    true = torch.randn(n, generator=generator)
    scale = NoiseScale()
    for _ in range(400):
        tokens = true + deviation * torch.randn(big, n, generator=generator)
        norms = [tokens[:size].mean(0).square().sum().item() for size in (small, big)]
        found = scale.take(norms[0], small, norms[1], big)
    assert found == pytest.approx(n * deviation**2 / true.square().sum().item(), rel=0.1)


def test_a_gradient_without_noise_has_the_scale_0_and_pure_noise_none() -> None:
    assert NoiseScale().take(4.0, 8, 4.0, 64) == 0.0
    assert NoiseScale().take(64.0, 1, 1.0, 64) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_measures_it_from_its_first_micro_batch(precision: str) -> None:
    run = tiny_run(precision=precision, micro_batch_tokens=LENGTH)
    model = fresh(run)
    nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    norms = []
    for batch in (SEQUENCES[:1], SEQUENCES):
        grads = torch.autograd.grad(loss(model, batch), list(model.parameters()))
        norms.append(sum(g.square().sum().item() for g in grads))
    signal = (BATCH * norms[1] - LENGTH * norms[0]) / (BATCH - LENGTH)
    noise = (norms[0] - norms[1]) / (1 / LENGTH - 1 / BATCH)
    found = Stepper(run, model, loss).take(0, SEQUENCES, Guard(1.0)).noise_tokens
    assert signal > 0 and noise > 0
    rounded = {"fp32": 1e-4, "fp16": 0.03, "bf16": 0.2}  # both sizes are differences of what was rounded
    assert found == pytest.approx(noise / signal, rel=rounded[precision])


def test_a_step_of_one_micro_batch_measures_nothing() -> None:
    for micro in (None, BATCH):
        run = tiny_run(micro_batch_tokens=micro)
        assert Stepper(run, fresh(run), loss).take(0, SEQUENCES, Guard(1.0)).noise_tokens is None
