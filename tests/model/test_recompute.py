"""Recomputation and offloading change no bit: of losses, of gradients, of what routers count, for every part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nachim.model import DecoderModule, recompute
from nachim.model.recompute import Passage
from nachim.model.router import RouterModule
from nachim.spec import MTP, Decoder, MixtureOfDepths, MoE, Parallel, PostNorm, SandwichNorm
from tests.model.contract import drawn
from tests.model.test_every_part import BASE, DECODERS

T = 18
BALANCED = MoE(d_ff=8, experts=4, active=2, shared=1, bias_step=0.01, balance_loss=0.1, z_loss=0.1)
SPECS = DECODERS | {
    "experts with losses": replace(BASE, ffn=BALANCED),
    "experts with losses, further tokens": replace(BASE, ffn=BALANCED, mtp=MTP(depth=2)),
    "some tokens pass": replace(BASE, n_layers=4, depth=MixtureOfDepths(capacity=0.5)),
    "parallel": replace(BASE, residual=Parallel(shared=True)),
    "norms after": replace(BASE, residual=PostNorm()),
    "norms around": replace(BASE, residual=SandwichNorm()),
}
DOCUMENTS = torch.tensor([[4] * 5 + [1] + [4] * (T - 6), [0] * 9 + [-1] * (T - 9)])


def taken(model: DecoderModule) -> dict[str, Tensor]:
    """Loss, gradients and what routers hold after two passes in training, the second on packed documents."""
    generator = torch.Generator().manual_seed(1)
    model.train()
    found: dict[str, Tensor] = {}
    for number, documents_BT in enumerate((None, DOCUMENTS)):
        ids_BT = torch.randint(model.spec.vocab_size, (2, T + 1), generator=generator)
        loss = model.loss(ids_BT[:, :-1], ids_BT[:, 1:], documents_BT)
        loss.backward()
        found[f"loss {number}"] = loss.detach()
    found |= {name: weight.grad for name, weight in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, RouterModule):
            found[f"{name}.load"] = module.load.clone()
        if hasattr(module, "auxiliary"):
            assert module.auxiliary is None, name
    return found


def same(spec: Decoder, passages: list[Passage], dtype: torch.dtype = torch.float32) -> None:
    """Hold each of `passages` against none."""
    model = drawn(spec).to(dtype)
    expected = taken(model)
    for passage in passages:
        model.zero_grad(set_to_none=True)
        for module in model.routers:
            if isinstance(module, RouterModule):
                module.load.zero_()
        model.passage = passage
        for name, value in taken(model).items():
            assert torch.equal(value, expected[name]), (passage, name)


def passages(spec: Decoder) -> list[Passage]:
    """All made again in pairs, selectively, and of each something."""
    count = spec.n_layers + (0 if spec.mtp is None else spec.mtp.depth)
    mixed = (("full", "selective", "none") * count)[:count]
    return [
        Passage(("full",) * count, every=2),
        Passage(("selective",) * count),
        Passage(mixed, offload=True),
    ]


@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_equal_to_the_last_bit(name: str) -> None:
    same(SPECS[name], passages(SPECS[name]))


@pytest.mark.parametrize("name", ["hybrid", "experts with losses, further tokens", "headed state space"])
def test_in_bf16_too(name: str) -> None:
    same(SPECS[name], passages(SPECS[name]), torch.bfloat16)


def test_what_is_offloaded_comes_back_and_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a host that is another memory: its copies are what the backward pass reads, and no weight is among them."""
    went: list[Tensor] = []

    def to_host(held: Tensor) -> Tensor:
        went.append(held)
        return held.clone()

    monkeypatch.setattr(recompute, "to_host", to_host)
    spec = SPECS["experts with losses"]
    same(spec, [Passage(("none",) * 2, offload=True)])
    went.clear()
    model = drawn(spec).train()
    model.passage = Passage(("none",) * 2, offload=True)
    ids_BT = torch.randint(spec.vocab_size, (2, T))
    model.loss(ids_BT, ids_BT)
    assert len(went) > 20
    assert not {held.data_ptr() for held in went} & {weight.data_ptr() for weight in model.blocks.parameters()}
    went.clear()
    model.passage = Passage(("full",) * 2, offload=True)
    model.loss(ids_BT, ids_BT).backward()
    assert [held.nbytes for held in went if len(held)] == [4 * 2 * T * spec.d_model] * 2, "the input of each block"


def test_a_pass_without_gradients_makes_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("recomputed")

    monkeypatch.setattr(recompute, "passed", refused)
    model = drawn(BASE)
    model.passage = Passage(("full",) * 2)
    ids_BT = torch.randint(BASE.vocab_size, (2, T))
    with torch.no_grad():
        model(ids_BT)
    with pytest.raises(AssertionError, match="recomputed"):
        model(ids_BT)
