"""Muon against torch's own, the closed form of what it approximates, and its place beside AdamW."""

from __future__ import annotations

import pytest
import torch

from nachim.spec import Muon
from nachim.train.loop import Stage, train
from nachim.train.muon import MuonOptimizer, orthogonal
from nachim.train.step import Stepper
from tests.train.tiny import batches, fresh, loss, tiny_run, validate


def test_update_is_torchs_muon_but_for_its_bf16() -> None:
    torch.manual_seed(0)
    shapes = [(24, 16), (24, 16), (16, 48), (16, 16)]
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    mine = MuonOptimizer(ours, lr=0.02, momentum=0.9, weight_decay=0.3)
    reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(6):
        gradients = [torch.randn(shape) for shape in shapes]
        for tensors in (ours, theirs):
            for weight, gradient in zip(tensors, gradients, strict=True):
                weight.grad = gradient.clone()
        mine.step()
        reference.step()
    for a, b, w in zip(ours, theirs, start, strict=True):
        moved = (b - w).norm()
        assert (a - b).norm() < 0.02 * moved  # bf16 keeps 8 bits; a wrong scale or momentum is off by far more


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 32), (2, 32, 8)])
def test_orthogonal_keeps_the_singular_directions_and_flattens_the_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    y = orthogonal(x)
    inner = u.mT @ y @ vh.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert ((values > 0.3) & (values < 1.3)).all()
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-4


def test_every_parameter_has_one_owner() -> None:
    run = tiny_run(optimizer=Muon(lr=0.01))
    stepper = Stepper(run, fresh(run), loss)
    owned = [id(w) for group in stepper.optimizer.param_groups for w in group["params"]]
    assert sorted(owned) == sorted(id(w) for w in stepper.masters.weights)
    named = stepper.masters.named()
    muon = {id(w) for group in stepper.optimizer.members["muon"].param_groups for w in group["params"]}
    assert muon == {id(w) for name, w in named.items() if name.startswith("blocks.") and w.ndim == 2}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_exact_with_muon(precision: str, tmp_path) -> None:
    run = tiny_run(optimizer=Muon(lr=0.01), precision=precision)
    train(run, whole := fresh(run), batches, loss, validate, tmp_path / "whole", Stage())

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, fresh(run), batches, loss, validate, tmp_path / "cut", Stage(on_step=stop, checkpoint_seconds=0.0))
    train(run, resumed := fresh(run), batches, loss, validate, tmp_path / "cut", Stage())
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
