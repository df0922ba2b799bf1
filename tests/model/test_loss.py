"""The loss in chunks beside torch's own functions over all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nachim.model import build, loss
from nachim.model.decoder import initialise
from nachim.model.loss import NONE, capped, head_loss
from nachim.spec import MTP
from nachim.train.peak import peak_bytes
from tests.plainly import plainly
from tests.spec.examples import decoder

N, D, V = 37, 12, 50
Loss = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]


def at_once(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None) -> Tensor:
    """The mean of torch's cross-entropy over all logits."""
    return F.cross_entropy(capped(F.linear(x_ND, weight_VD), cap).float(), targets_N)


def drawn(dtype: torch.dtype = torch.float32, none: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A stream, a head and targets, every fifth of them unknown where that is asked for."""
    generator = torch.Generator().manual_seed(3)
    x_ND, weight_VD = (torch.randn(n, D, generator=generator).to(dtype) for n in (N, V))
    targets_N = torch.randint(V, (N,), generator=generator)
    if none:
        targets_N[::5] = NONE
    return x_ND, weight_VD, targets_N


def slopes(how: Loss, given: tuple[Tensor, Tensor, Tensor], cap: float | None = None, scale: float = 1) -> list[Tensor]:
    """The loss, and `scale` times its gradients to the stream and to the head."""
    x_ND, weight_VD = (one.clone().requires_grad_() for one in given[:2])
    found = how(x_ND, weight_VD, given[2], cap)
    (found * scale).backward()
    return [found.detach(), x_ND.grad, weight_VD.grad]


@pytest.fixture
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows at a time, which do not go into the rows evenly."""
    monkeypatch.setattr(loss, "WHOLE", 0)
    monkeypatch.setattr(loss, "CHUNK", 5 * V + 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("none", [False, True])
def test_few_logits_cost_what_torch_says_to_the_bit(dtype, cap, none):
    given = drawn(dtype, none)
    with plainly():
        for found, expected in zip(slopes(head_loss, given, cap), slopes(at_once, given, cap), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("none", [False, True])
def test_chunks_are_the_whole(in_chunks, cap, none):
    given = drawn(none=none)
    double = (given[0].double(), given[1].double(), given[2])
    truth = slopes(lambda x, w, t, cap: F.cross_entropy(capped(x @ w.T, cap), t), double, cap, scale=0.3)
    for found, expected in zip(slopes(head_loss, given, cap, scale=0.3), truth, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 2.0**12)])
def test_chunks_in_half_precision_are_as_near_to_the_truth_as_the_whole(in_chunks, monkeypatch, dtype, scale):
    given = drawn(dtype)
    double = (given[0].double(), given[1].double(), given[2])
    truth = slopes(lambda x, w, t, cap: F.cross_entropy(x @ w.T, t), double, scale=scale)
    chunked, whole = slopes(head_loss, given, scale=scale), slopes(at_once, given, scale=scale)
    assert chunked[0].dtype == torch.float32 and chunked[2].dtype == dtype
    for found, plain, expected in zip(chunked, whole, truth, strict=True):
        ours, theirs = ((one.double() - expected).norm() / expected.norm() for one in (found, plain))
        assert ours < max(1.5 * theirs, 1e-6)


def test_nothing_to_learn_costs_nothing(in_chunks):
    given = (*drawn()[:2], torch.full((N,), NONE))
    for found in slopes(head_loss, given):
        assert not found.any()


def test_a_loss_without_a_gradient_is_the_same_number(in_chunks):
    given = drawn()
    expected = slopes(head_loss, given)[0]
    with torch.no_grad():
        assert torch.equal(head_loss(*given), expected)


def test_many_logits_do_not_stand_in_memory(monkeypatch):
    wide = 40 * V
    x_ND, weight_VD, targets_N = torch.randn(400, 4), torch.randn(wide, 4), torch.randint(wide, (400,))
    monkeypatch.setattr(loss, "WHOLE", 0)
    monkeypatch.setattr(loss, "CHUNK", 10 * wide)
    chunk = 10 * wide * 4
    assert peak_bytes(lambda: slopes(head_loss, (x_ND, weight_VD, targets_N))) < 4 * chunk
    assert peak_bytes(lambda: slopes(at_once, (x_ND, weight_VD, targets_N))) > 40 * 2 * chunk


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_learns_the_same_in_chunks(monkeypatch, tied):
    """With modules that look further ahead, and a head that is the embedding, too."""
    spec = replace(decoder(), tied=tied, mtp=MTP(depth=2, weight=0.3), logit_cap=5.0)
    ids_BT = torch.randint(spec.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for limit in (loss.WHOLE, 0):
        monkeypatch.setattr(loss, "WHOLE", limit)
        monkeypatch.setattr(loss, "CHUNK", 3 * spec.vocab_size)
        model = build(spec, spec.d_model)
        initialise(model, 0)
        torch.nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
        value = model.loss(ids_BT[:, :-1], ids_BT[:, 1:])
        value.backward()
        found.append([value.detach(), *(weight.grad for weight in model.parameters())])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-6)
