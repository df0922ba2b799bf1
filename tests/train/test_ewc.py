"""Fisher information against its closed form, the penalty against differences and autograd, and runs that resume."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nachim.spec import EWC, ScheduleFreeAdamW, UserError
from nachim.train import ewc
from nachim.train.ewc import Penalty, fisher, open_penalty
from nachim.train.guard import Guard
from nachim.train.loop import Stage, train
from nachim.train.step import Stepper
from tests.train import tiny
from tests.train.tiny import ALWAYS, BATCH, NEVER, Kill, batches, differing, fresh, kill_at, rows, tiny_run, weights


class Regression(nn.Module):
    """Softmax regression on fixed inputs, one for each token: its Fisher information is known."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Embedding(5, 3).requires_grad_(False)
        self.head = nn.Linear(3, 4, bias=False)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.head(self.inputs(ids_BT))


def test_the_fisher_of_softmax_regression_is_its_closed_form():
    model, count = Regression(), 800
    ids = np.random.default_rng(0).integers(0, 5, (count, 7))
    found = fisher(model, ids, seed=1)
    read = torch.from_numpy(ids[:, :-1]).flatten()
    p_NV = model(read).softmax(-1).detach()
    exact_VD = torch.einsum("nv,nd->vd", p_NV * (1 - p_NV), model.inputs(read) ** 2) / len(read)
    assert list(found) == ["head.weight"]
    error_VD = found["head.weight"] / exact_VD - 1
    assert error_VD.abs().max() < 5 * (2.5 / count) ** 0.5
    assert error_VD.abs().max() > 0.001  # it is an estimate, not the formula again
    assert torch.equal(fisher(model, ids, seed=1)["head.weight"], found["head.weight"])
    assert not torch.equal(fisher(model, ids, seed=2)["head.weight"], found["head.weight"])


def test_a_decoder_s_fisher_is_the_square_of_its_tokens_gradients_together():
    model, ids = fresh(tiny_run()), batches(0, 3)
    found = fisher(model, ids, seed=4)
    draws, total = torch.Generator().manual_seed(4), {name: 0.0 for name in found}
    for row in ids:
        log_p_TV = model(torch.from_numpy(row[None, :-1]))[0].log_softmax(-1)
        drawn = torch.multinomial(log_p_TV.detach().exp(), 1, generator=draws)[:, 0]
        by_token = [
            torch.autograd.grad(log_p_TV[t, label], list(model.parameters()), retain_graph=True)
            for t, label in enumerate(drawn)
        ]
        for name, *gradients in zip(found, *by_token, strict=True):
            total[name] = total[name] + sum(gradients) ** 2
    for name, value in found.items():
        torch.testing.assert_close(value, total[name] / ids[:, 1:].size, rtol=1e-4, atol=1e-9)


def held(model: nn.Module, strength: float = 2.0) -> Penalty:
    """A penalty of random information around weights a little aside of the model's."""
    draws = torch.Generator().manual_seed(3)
    named = dict(model.named_parameters())
    information = {name: torch.rand(one.shape, generator=draws) for name, one in named.items()}
    anchors = {name: one.detach() + 0.1 * torch.randn(one.shape, generator=draws) for name, one in named.items()}
    return Penalty(strength, information, anchors)


def as_a_loss(penalty: Penalty):
    """The tiny loss with the penalty written out as a term of it."""

    def loss(model: nn.Module, ids_BT: torch.Tensor) -> torch.Tensor:
        terms = [
            (penalty.information[name] * (one.float() - penalty.anchors[name]) ** 2).sum()
            for name, one in model.named_parameters()
        ]
        return tiny.loss(model, ids_BT) + penalty.strength / 2 * sum(terms)

    return loss


def test_the_pull_is_the_slope_of_the_penalty():
    draws = torch.Generator().manual_seed(0)
    here, anchor, information = torch.rand(3, 2, 3, generator=draws, dtype=torch.float64)
    penalty = Penalty(0.7, {"w": information}, {"w": anchor})
    here.grad = torch.ones_like(here)
    value = penalty.pull({"w": here})
    assert value == pytest.approx(0.35 * float((information * (here - anchor) ** 2).sum()))
    for place in np.ndindex(*here.shape):
        step = torch.zeros_like(here)
        step[place] = 1e-4
        rise = penalty.pull({"w": here + step}) - penalty.pull({"w": here - step})
        assert float(here.grad[place]) - 1 == pytest.approx(rise / 2e-4, rel=1e-6)


@pytest.mark.parametrize(
    "fields",
    [{}, {"micro_batch_tokens": BATCH // 2}, {"optimizer": ScheduleFreeAdamW(lr=0.01)}],
    ids=["whole", "micro", "ahead"],
)
def test_steps_are_those_of_a_loss_with_the_penalty_in_it(fields):
    run = tiny_run(clip=100.0, **fields)
    penalty = held(fresh(run))
    one, other = Stepper(run, fresh(run), tiny.loss, penalty), Stepper(run, fresh(run), as_a_loss(penalty))
    for step in range(4):
        x_BT = torch.from_numpy(batches(4 * step, 4))
        mine, theirs = (stepper.take(step, x_BT, Guard(0.01)) for stepper in (one, other))
        assert mine.loss + mine.penalty == pytest.approx(theirs.loss, rel=1e-5)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
    for name, weight in one.masters.named().items():
        torch.testing.assert_close(weight, other.masters.named()[name], rtol=1e-3, atol=2e-5)


def test_the_noise_scale_is_that_of_the_text_alone():
    run = tiny_run(micro_batch_tokens=BATCH // 2)
    x_BT = torch.from_numpy(batches(0, 4))
    told = [
        Stepper(run, fresh(run), tiny.loss, penalty).take(0, x_BT, Guard(0.01))
        for penalty in (None, held(fresh(run), 100.0))
    ]
    assert told[0].noise_tokens == pytest.approx(told[1].noise_tokens, rel=1e-5)
    assert told[1].grad_norm > 2 * told[0].grad_norm


def test_in_bf16_a_weight_is_held_that_bf16_does_not_see_move():
    model = fresh(tiny_run())
    anchors = {name: one.detach().clone() for name, one in model.named_parameters()}
    penalty = Penalty(1.0, {name: torch.ones_like(one) for name, one in anchors.items()}, anchors)
    stepper = Stepper(tiny_run(precision="bf16"), model, tiny.loss, penalty)
    with torch.no_grad():
        torch._foreach_mul_(stepper.masters.weights, 1 + 2.0**-12)
    expected = sum(float((one * 2.0**-12).square().sum()) for one in anchors.values()) / 2
    assert stepper._pull() == pytest.approx(expected, rel=1e-2)


def test_a_run_that_was_killed_is_held_as_before(tmp_path):
    run = tiny_run(6, times=2)

    def go(out, **stage):
        model = fresh(run)
        return train(run, model, batches, tiny.loss, tiny.validate, out, Stage(**stage), held(fresh(run)))

    go(tmp_path / "whole", checkpoint_seconds=NEVER)
    for step in (2, 5):
        with pytest.raises(Kill):
            go(tmp_path / "broken", checkpoint_seconds=ALWAYS, on_step=kill_at(step))
    go(tmp_path / "broken", checkpoint_seconds=NEVER)
    assert not differing(weights(tmp_path / "broken"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert all(row["penalty"] > 0 for row in rows(tmp_path / "whole"))


def test_what_is_written_is_what_is_opened(tmp_path):
    model = fresh(tiny_run())
    information = fisher(model, batches(0, 2))
    named = dict(model.named_parameters())
    mark = ewc.save(tmp_path, information, named, {"sequences": 2})
    told = json.loads((tmp_path / "fisher.json").read_text())
    assert told == {"fingerprint": mark, "sequences": 2}
    part = EWC(folder=str(tmp_path), strength=3.0, fingerprint=mark)
    opened = open_penalty(part, model, "cpu")
    assert opened.strength == 3.0
    assert not differing(dict(opened.information), information)
    assert not differing(dict(opened.anchors), {name: one.detach() for name, one in named.items()})


def test_what_cannot_hold_the_run_is_refused(tmp_path):
    model = fresh(tiny_run())
    ewc.save(tmp_path, fisher(model, batches(0, 1)), dict(model.named_parameters()), {})
    part = EWC(folder=str(tmp_path), strength=1.0)
    with pytest.raises(UserError, match=r"which has no fisher.safetensors: `nachim fisher` writes it"):
        open_penalty(replace(part, folder=str(tmp_path / "nowhere")), model, "cpu")
    with pytest.raises(UserError, match=r"EWC.fingerprint is ab12, and .* has"):
        open_penalty(replace(part, fingerprint="ab12"), model, "cpu")
    with pytest.raises(UserError, match="is of another model than the run's"):
        open_penalty(part, fresh(tiny_run(d_model=8)), "cpu")
    path = tmp_path / "fisher.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be read"):
        open_penalty(part, model, "cpu")


def test_noise_on_all_weights_moves_the_distribution_by_half_the_trace():
    """For noise of variance s the mean of KL(p, p moved) is s / 2 * the trace of F, for small s."""
    model, ids = fresh(tiny_run()).double(), batches(0, 60)
    trace = sum(float(one.sum()) for one in fisher(model, ids).values())
    read = torch.from_numpy(ids[:, :-1])
    weights = list(model.parameters())
    draws, moved = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        kept = [weight.clone() for weight in weights]
        before = model(read).log_softmax(-1)
        for _ in range(40):
            for weight, one in zip(weights, kept, strict=True):
                weight.copy_(one + 1e-3 * torch.randn(one.shape, generator=draws, dtype=one.dtype))
            moved.append(float((before.exp() * (before - model(read).log_softmax(-1))).sum(-1).mean()))
    assert np.mean(moved) == pytest.approx(1e-6 / 2 * trace, rel=0.1)
