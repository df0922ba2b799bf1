"""One step: the optimizer's arithmetic, accumulation, clipping and the two precisions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.spec import AdamW
from nachim.train.guard import Guard
from nachim.train.optimizer import build_optimizer
from nachim.train.step import Stepper
from tests.spec.examples import decoder
from tests.train.tiny import BATCH, LENGTH, batches, fresh, loss, tiny_run

ADAMW = AdamW(lr=0.01, beta1=0.8, beta2=0.97, eps=1e-6, weight_decay=0.3)
SEQUENCES = torch.from_numpy(batches(0, BATCH // LENGTH))


def exact_loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Mean next-token loss in the model's own precision."""
    return F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())


def gradients(exact: bool = False, **train: object) -> dict[str, Tensor]:
    """What the optimizer of a tiny run is given in its first step, by name; `exact` computes in fp64."""
    run = tiny_run(**train)
    model = fresh(run)
    nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    stepper = Stepper(run, model.double() if exact else model, exact_loss if exact else loss)
    found: dict[str, Tensor] = {}

    def grab() -> None:
        for name, weight in zip(stepper.masters.names, stepper.masters.weights, strict=True):
            found[name] = weight.grad.clone()

    stepper.optimizer.step = grab
    stepper.take(0, SEQUENCES, Guard(1.0))
    return found


def by_hand(weight: Tensor, steps: list[Tensor], lrs: list[float], decay: float) -> Tensor:
    """AdamW in fp64, as arXiv 1711.05101, algorithm 2, states it."""
    weight = weight.double()
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for t, (gradient, lr) in enumerate(zip(steps, lrs, strict=True), 1):
        weight = weight * (1 - lr * decay)
        m = ADAMW.beta1 * m + (1 - ADAMW.beta1) * gradient.double()
        v = ADAMW.beta2 * v + (1 - ADAMW.beta2) * gradient.double() ** 2
        corrected = (v / (1 - ADAMW.beta2**t)).sqrt() + ADAMW.eps
        weight = weight - lr * m / (1 - ADAMW.beta1**t) / corrected
    return weight


def test_adamw_is_its_paper_and_torchs_plain_form():
    start = [torch.randn(5, 7), torch.randn(7), torch.randn(3, 3)]
    steps = [[torch.randn_like(w) for w in start] for _ in range(6)]
    lrs = [0.01, 0.02, 0.0, 0.03, 0.01, 0.001]
    ours, plain = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    optimizer = build_optimizer(ADAMW, {f"{i}.weight": weight for i, weight in enumerate(ours)}, decoder())
    common = {"betas": (ADAMW.beta1, ADAMW.beta2), "eps": ADAMW.eps, "foreach": False, "fused": False}
    groups = [{"params": [plain[0], plain[2]], "weight_decay": 0.3}, {"params": [plain[1]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=ADAMW.lr, **common)
    for given, lr in zip(steps, lrs, strict=True):
        for stepped, tensors in ((optimizer, ours), (reference, plain)):
            for weight, gradient in zip(tensors, given, strict=True):
                weight.grad = gradient.clone()
            for group in stepped.param_groups:
                group["lr"] = lr
            stepped.step()
    for i, weight in enumerate(start):
        decay = 0.3 if weight.ndim == 2 else 0.0
        expected = by_hand(weight, [given[i] for given in steps], lrs, decay)
        torch.testing.assert_close(ours[i].double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours[i], plain[i], rtol=1e-5, atol=1e-6)


def test_every_weight_is_in_one_group_and_gains_are_not_decayed():
    run = tiny_run()
    stepper = Stepper(run, fresh(run), loss)
    decayed, spared = stepper.optimizer.param_groups
    assert {w.ndim for w in decayed["params"]} == {2}
    assert {w.ndim for w in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    grouped = [id(w) for group in (decayed, spared) for w in group["params"]]
    assert sorted(grouped) == sorted(id(w) for w in stepper.model.parameters())


@pytest.mark.parametrize("micro", [LENGTH, 2 * LENGTH, BATCH])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(micro):
    whole = gradients(exact=True, clip=1e9)
    split = gradients(exact=True, clip=1e9, micro_batch_tokens=micro)
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-9, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_in_micro_batches_ends_where_whole_batches_end(precision):
    ends = []
    for micro in (None, LENGTH):
        run = tiny_run(steps=4, precision=precision, micro_batch_tokens=micro)
        stepper = Stepper(run, fresh(run), loss)
        stats = [stepper.take(step, SEQUENCES, Guard(1.0)) for step in range(4)]
        ends.append(([s.loss for s in stats], [s.grad_norm for s in stats]))
    close = 1e-5 if precision == "fp32" else 2e-2
    assert ends[1][0] == pytest.approx(ends[0][0], rel=close)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=close)


def test_clipping_shortens_the_gradient_and_keeps_its_direction():
    free, clipped = gradients(clip=1e9), gradients(clip=0.01)
    norm = torch.cat([g.flatten() for g in free.values()]).norm()
    assert norm > 1
    assert torch.cat([g.flatten() for g in clipped.values()]).norm() == pytest.approx(0.01, rel=1e-4)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient * (0.01 / norm), rtol=1e-4, atol=1e-9)


def test_a_gradient_within_the_clip_is_left_alone():
    wide, wider = gradients(clip=1e6), gradients(clip=1e9)
    assert all(torch.equal(wide[name], wider[name]) for name in wide)


def test_a_step_reports_what_it_was():
    run = tiny_run(clip=1e-3)
    model = fresh(run)
    stepper = Stepper(run, model, loss)
    expected = loss(model, SEQUENCES).item()
    stats = stepper.take(0, SEQUENCES, Guard(1.0))
    assert stats.loss == pytest.approx(expected, rel=1e-6)
    assert stats.lr == pytest.approx(0.01 / 3)
    assert stats.grad_norm > 1e-3, "the norm is the one before clipping"
    assert all(weight.grad is None for weight in model.parameters())


def test_in_bf16_the_model_is_the_rounded_master():
    run = tiny_run(precision="bf16", micro_batch_tokens=2 * LENGTH)
    model = fresh(run)
    before = [weight.detach().clone() for weight in model.parameters()]
    stepper = Stepper(run, model, loss)
    masters = stepper.masters
    assert all(torch.equal(master, weight) for master, weight in zip(masters.weights, before, strict=True))
    for step in range(3):
        stepper.take(step, SEQUENCES, Guard(1.0))
        for name, master, weight in zip(masters.names, masters.weights, model.parameters(), strict=True):
            assert (master.dtype, weight.dtype) == (torch.float32, torch.bfloat16)
            assert torch.equal(weight, master.bfloat16()), name
    moments = [state["exp_avg"].dtype for state in stepper.optimizer.members["adamw"].state.values()]
    assert set(moments) == {torch.float32}
    moved = [(m - b).abs().max() > 0 for m, b in zip(masters.weights, before, strict=True)]
    assert all(moved)


def test_in_bf16_gradients_are_summed_in_fp32():
    model = nn.Linear(2, 1, bias=False)
    masters = Stepper(tiny_run(precision="bf16"), model, loss).masters
    for value in (256.0, 1.0, 1.0):  # bf16 holds 8 bits: 256 + 1 is 256 there
        model.weight.grad = torch.full_like(model.weight, value)
        masters.gather_gradients()
    assert masters.weights[0].grad.tolist() == [[258.0, 258.0]]
    assert model.weight.grad is None


def test_in_fp32_the_model_is_its_own_master():
    run = tiny_run()
    model = fresh(run)
    masters = Stepper(run, model, loss).masters
    assert all(master is weight for master, weight in zip(masters.weights, model.parameters(), strict=True))
