"""fp16 with a loss scale that follows the run, products in fp8; gradients clipped by norm in every precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nachim.spec import Activations
from nachim.train import checkpoint
from nachim.train.guard import Diverged, Guard
from nachim.train.precision import LossScale, Masters
from nachim.train.step import Stepper
from tests.train import tiny
from tests.train.tiny import ALWAYS, BATCH, LENGTH, Kill, differing, fresh, go, kill_at, loss, rows, tiny_run, weights

SEQUENCES = torch.from_numpy(tiny.batches(0, BATCH // LENGTH))


def stepper_of(**train: object) -> Stepper:
    """A tiny run's, its head drawn so that gradients reach every weight."""
    run = tiny_run(**train)
    model = fresh(run)
    nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return Stepper(run, model, loss)


def gradients(stepper: Stepper, batch: Tensor = SEQUENCES) -> list[Tensor]:
    """What the optimizer is given in the next step."""
    found: list[Tensor] = []
    stepper.optimizer.step = lambda: found.extend(w.grad.clone() for w in stepper.masters.weights)
    stepper.take(0, batch, Guard(1.0))
    return found


@pytest.mark.parametrize("micro", [None, LENGTH])
def test_fp16_gradients_are_those_of_fp32_whatever_the_scale(micro: int | None) -> None:
    exact = gradients(stepper_of(clip=1e9))
    scaled = gradients(stepper_of(clip=1e9, precision="fp16", micro_batch_tokens=micro))
    for one, other in zip(scaled, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


def test_a_scale_keeps_small_gradients_from_vanishing() -> None:
    def faint(model: nn.Module, ids_BT: Tensor) -> Tensor:
        return loss(model, ids_BT) * 1e-6

    found = {}
    for scale in (1.0, LossScale.FIRST):
        stepper = stepper_of(clip=1e9, precision="fp16")
        stepper.loss, stepper.scale.value = faint, scale
        found[scale] = torch.cat([g.flatten() for g in gradients(stepper)])
    exact = torch.cat([g.flatten() for g in gradients(stepper_of(clip=1e9))]) * 1e-6
    assert (found[1.0] - exact).norm() > 0.2 * exact.norm()
    assert (found[LossScale.FIRST] - exact).norm() < 0.01 * exact.norm()


def test_a_step_that_overflows_changes_nothing_but_the_scale() -> None:
    stepper, guard = stepper_of(precision="fp16"), Guard(1.0)
    stepper.take(0, SEQUENCES, guard)
    before = {name: weight.clone() for name, weight in stepper.masters.state().items()}
    moments = [held["exp_avg"].clone() for held in stepper.optimizer.members["adamw"].state.values()]
    stepper.scale.value = 2.0**40
    stats = stepper.take(1, SEQUENCES, guard)
    assert (stats.grad_norm, stats.lr, math.isfinite(stats.loss)) == (math.inf, 0.0, True)
    assert (stepper.scale.value, stepper.scale.good) == (2.0**39, 0)
    assert not differing(stepper.masters.state(), before)
    now = [held["exp_avg"] for held in stepper.optimizer.members["adamw"].state.values()]
    assert all(torch.equal(one, other) for one, other in zip(now, moments, strict=True))
    assert all(weight.grad is None for weight in stepper.model.parameters())
    taken = [stepper.take(2 + i, SEQUENCES, guard) for i in range(30)]
    assert math.isfinite(taken[-1].grad_norm) and taken[-1].loss < stats.loss
    assert stepper.scale.value < 2.0**39


def test_the_scale_doubles_after_as_many_good_steps_and_starts_counting_again(monkeypatch) -> None:
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    scale = LossScale()
    seen = []
    for overflow in (False, False, True, False, False, False, False, False, False, True):
        scale.follow(overflow)
        seen.append(math.log2(scale.value / LossScale.FIRST))
    assert seen == [0, 0, -1, -1, -1, 0, 0, 0, 1, 0]


def test_gradients_that_overflow_without_a_scale_end_the_run() -> None:
    def steep(model: nn.Module, ids_BT: Tensor) -> Tensor:
        return loss(model, ids_BT) * 1e12

    stepper, guard = stepper_of(precision="fp16"), Guard(1.0)
    stepper.loss = steep
    with pytest.raises(Diverged, match=r"stopped at step 16: gradients overflow fp16 .*: train in bf16"):
        for step in range(100):
            stepper.take(step, SEQUENCES, guard)


def test_a_loss_that_is_not_finite_is_no_matter_of_scale() -> None:
    stepper = stepper_of(precision="fp16")
    stepper.loss = lambda model, ids_BT: loss(model, ids_BT) * math.nan
    with pytest.raises(Diverged, match="not both finite"):
        stepper.take(0, SEQUENCES, Guard(1.0))
    assert stepper.scale.value == LossScale.FIRST


def test_a_killed_fp16_run_goes_on_with_its_scale(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(LossScale, "FIRST", 2.0**24)
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    run = tiny_run(12, precision="fp16")
    go(run, tmp_path / "whole")
    with pytest.raises(Kill):
        go(run, tmp_path / "killed", checkpoint_seconds=ALWAYS, on_step=kill_at(8))
    go(run, tmp_path / "killed")
    assert not differing(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    skipped = [row["step"] for row in rows(tmp_path / "whole") if math.isinf(row["grad_norm"])]
    assert len(skipped) > 2, "the scale met its limit again after it had grown"
    ends = []
    for name in ("killed", "whole"):
        stepper = Stepper(run, fresh(run), loss)
        checkpoint.load(checkpoint.latest(tmp_path / name / "checkpoint"), stepper)
        ends.append(stepper.scale.state_dict())
    assert ends[0] == ends[1]
    assert ends[0]["value"] < 2.0**24


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_clipping_by_norm_keeps_the_direction(precision: str) -> None:
    """Also beside a loss scale: the norm is that of the true gradients."""
    free = torch.cat([g.flatten() for g in gradients(stepper_of(precision=precision, clip=1e9))])
    short = torch.cat([g.flatten() for g in gradients(stepper_of(precision=precision, clip=0.01))])
    assert free.norm() > 1
    assert short.norm().item() == pytest.approx(0.01, rel=1e-4)
    torch.testing.assert_close(short / short.norm(), free / free.norm(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("precision", "error"), [("fp16", 0.01), ("fp8", 0.05)])
def test_a_short_precision_learns_as_fp32_does(precision: str, error: float) -> None:
    ends = {}
    for each in ("fp32", precision):
        stepper = stepper_of(steps=30, precision=each)
        ends[each] = [stepper.take(step, SEQUENCES, Guard(1.0)).loss for step in range(30)]
    assert ends["fp32"][-1] < ends["fp32"][0] - 1
    assert ends[precision] == pytest.approx(ends["fp32"], rel=error)
    assert ends[precision] != ends["fp32"]


def test_a_killed_fp8_run_goes_on_to_the_same_bits_whatever_is_made_again(tmp_path) -> None:
    run = tiny_run(6, precision="fp8")
    go(run, tmp_path / "whole")
    with pytest.raises(Kill):
        go(run, tmp_path / "killed", checkpoint_seconds=ALWAYS, on_step=kill_at(3))
    go(run, tmp_path / "killed", activations=Activations(recompute="selective"))
    assert not differing(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    go(tiny_run(6, precision="bf16"), tmp_path / "bf16")
    assert differing(weights(tmp_path / "bf16"), weights(tmp_path / "whole"))


def test_masters_apart_in_fp32_are_published_as_seen() -> None:
    model = nn.Linear(3, 2, bias=False)
    masters = Masters(model, "fp32", apart=True)
    start = model.weight.detach().clone()
    masters.publish(lambda weight: weight + 1)
    assert torch.equal(model.weight, start + 1) and torch.equal(masters.weights[0], start)
    masters.publish()
    assert torch.equal(model.weight, start)
