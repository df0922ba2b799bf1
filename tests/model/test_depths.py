"""Mixture of depths: the best tokens of a sequence in training, the same ones by a causal rule when reading."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nachim.model import DecoderModule, build
from nachim.model.block import BlockModule
from nachim.model.decoder import initialise
from nachim.model.depths import RoutedBlock
from nachim.model.frame import Frame
from nachim.spec import (
    ALiBi,
    Decoder,
    Mamba,
    MixtureOfDepths,
    MoE,
    MRoPE,
    NoPosition,
    Parallel,
    Pattern,
    PostNorm,
    RoPE,
    UserError,
)
from tests.model.contract import close, drawn, hold_causality, hold_documents, hold_gradients, hold_padding
from tests.spec.examples import decoder
from tests.train.tiny import differing, go, rows, tiny_run, weights

HALF = MixtureOfDepths(capacity=0.5, every=2)
BASE = replace(decoder(n_kv_heads=2), depth=HALF)
T = 18
DECODERS = {
    "rotary": BASE,
    "window": replace(BASE, attention=replace(BASE.attention, window=3)),
    "previous key": replace(BASE, attention=replace(BASE.attention, previous_key=True)),
    "ALiBi": replace(BASE, position=ALiBi()),
    "every block": replace(BASE, depth=replace(HALF, every=1), position=NoPosition()),
    "parallel": replace(BASE, residual=Parallel()),
    "norms after": replace(BASE, residual=PostNorm()),
    "experts": replace(BASE, ffn=MoE(d_ff=8, experts=4, active=2)),
    "state space": replace(
        BASE, attention=Pattern(parts=(BASE.attention, Mamba(d_inner=24, d_state=5, dt_rank=3, d_conv=3)))
    ),
}


def chosen(block: RoutedBlock, x_BTD: Tensor) -> list[list[int]]:
    """The tokens of each sequence whose score is above 0."""
    scores = (x_BTD @ block.router.weight[0]).tolist()
    return [[t for t, score in enumerate(row) if score > 0] for row in scores]


def plain(block: RoutedBlock, spec: Decoder) -> BlockModule:
    """A block that works on every token, with the same weights."""
    found = BlockModule(spec, spec.blocks[-1])
    found.load_state_dict({name: held for name, held in block.state_dict().items() if name != "router.weight"})
    return found


def by_hand(block: RoutedBlock, spec: Decoder, x_TD: Tensor, index: list[int]) -> Tensor:
    """One sequence in which the tokens `index` alone are worked on, at their positions."""
    inside = x_TD[index][None]
    frame = Frame((1, len(index)), x_TD.device, positions=torch.tensor(index)[None])
    worked = plain(block, spec)(inside, frame)[0]
    found = list(x_TD)
    for place, token in enumerate(index):
        score = block.router.weight[0] @ x_TD[token]
        found[token] = x_TD[token] + score * (worked[place] - x_TD[token])
    return torch.stack(found)


@pytest.mark.parametrize("position", [RoPE(theta=30.0), NoPosition()], ids=["rotary", "none"])
def test_training_works_on_the_best_of_each_sequence(position):
    spec = replace(BASE, position=position)
    block, x_BTD = drawn(spec).train().blocks[1], torch.randn(2, 8, spec.d_model, requires_grad=True)
    scores = x_BTD @ block.router.weight[0]
    best = [sorted(sorted(range(8), key=lambda t, row=row: -row[t])[:4]) for row in scores.tolist()]
    expected = torch.stack([by_hand(block, spec, x_TD, index) for x_TD, index in zip(x_BTD, best, strict=True)])
    found = block(x_BTD, Frame((2, 8), x_BTD.device))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    inputs = (x_BTD, block.router.weight)
    gradients = [torch.autograd.grad(answer.square().sum(), inputs, retain_graph=True) for answer in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    targets = torch.tensor([[float(t in index) for t in range(8)] for index in best])
    entropy = -(targets * scores.sigmoid().log() + (1 - targets) * (1 - scores.sigmoid()).log()).mean()
    torch.testing.assert_close(block.auxiliary, HALF.causal_loss * entropy)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "without gradients"])
def test_any_other_pass_works_on_scores_above_0(train):
    block, x_BTD = drawn(BASE).train(train).blocks[1], torch.randn(3, 8, BASE.d_model)
    x_BTD[2] *= -torch.sign(x_BTD[2] @ block.router.weight[0])[:, None]  # no token of this sequence
    found = [by_hand(block, BASE, *each) for each in zip(x_BTD[:2], chosen(block, x_BTD), strict=False)]
    with torch.no_grad():
        answer_BTD = block(x_BTD, Frame((3, 8), x_BTD.device))
    torch.testing.assert_close(answer_BTD[:2], torch.stack(found), rtol=1e-5, atol=1e-5)
    assert torch.equal(answer_BTD[2], x_BTD[2])
    assert block.auxiliary is None


@pytest.mark.parametrize("spec", DECODERS.values(), ids=DECODERS)
def test_decoding_gives_what_the_causal_rule_gives_at_once(spec):
    model, ids_BT = drawn(spec), torch.randint(spec.vocab_size, (2, T))
    with torch.inference_mode():
        whole_BTV = model(ids_BT)
        for cuts in ([1] * T, [7, 1, 1, 5, T - 14]):
            cache = model.start()
            parts = [model(part_BT, cache=cache) for part_BT in ids_BT.split(cuts, 1)]
            close(torch.cat(parts, 1), whole_BTV, f"read in pieces of {cuts}")
        forked = cache.select(torch.tensor([1, 1, 0]))
        next_B1 = torch.tensor([[3], [3], [5]])
        after = model(torch.cat((ids_BT[1:], next_B1[:1]), 1))[0, -1:]
        close(model(next_B1, cache=forked)[0], after, "a forked cache")
        assert len(cache.layers[1]["rows"].caches) == 2, "forking leaves the first cache alone"
        hold_documents(model, ids_BT)
        hold_padding(model, ids_BT)
        hold_causality(model, ids_BT, whole_BTV)
    hold_gradients(model, ids_BT)


def test_the_cache_holds_keys_and_values_of_the_tokens_worked_on():
    model, ids_BT = drawn(BASE), torch.randint(300, (2, T))
    seen: list[Tensor] = []
    model.blocks[1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    cache = model.start()
    with torch.inference_mode():
        model(ids_BT, cache=cache)
        worked_on = [len(index) for index in chosen(model.blocks[1], seen[0])]
    assert len(set(worked_on)) == 2, "sequences that differ"
    per_token = BASE.attention.cache_bytes(1, 4)
    assert cache.nbytes == per_token * (2 * T + sum(worked_on))
    assert 2 * BASE.cache_bytes(T, 4) == per_token * (2 * T + 2 * T // 2)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("capacity", [0.125, 0.5])
def test_declared_costs_are_the_counted_ones(capacity, every):
    spec = replace(BASE, depth=MixtureOfDepths(capacity=capacity, every=every))
    model, ids_BT = build(spec, spec.d_model), torch.zeros(2, 16, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(ids_BT, ids_BT).backward()
    declared = spec.flops_per_token(16) + spec.head_flops_per_token
    assert counter.get_total_flops() == declared * ids_BT.numel()
    assert sum(weight.numel() for weight in model.parameters()) == spec.params_total


def test_a_capacity_of_all_is_the_plain_block():
    model = build(replace(BASE, depth=MixtureOfDepths(capacity=1.0)), BASE.d_model)
    assert not any(isinstance(block, RoutedBlock) for block in model.blocks)


def trained(causal_loss: float) -> DecoderModule:
    """A drawn decoder whose head says something, with this factor."""
    model = build(replace(BASE, depth=replace(HALF, causal_loss=causal_loss)), BASE.d_model)
    initialise(model, 0)
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


def test_the_causal_loss_reaches_the_gradient_and_leaves_the_value_alone():
    ids_BT, found = torch.randint(300, (2, 9)), []
    for factor in (0.0, 0.5):
        model = trained(factor)
        loss = model.loss(ids_BT[:, :-1], ids_BT[:, 1:])
        loss.backward()
        found.append((loss.item(), model.blocks[1].router.weight.grad))
    assert found[0][0] == found[1][0]
    assert found[0][1].abs().max() > 0, "the router learns from the tokens it chose"
    model.zero_grad()
    model(ids_BT[:, :-1])
    (added,) = torch.autograd.grad(model.blocks[1].auxiliary, model.blocks[1].router.weight)
    torch.testing.assert_close(found[1][1], found[0][1] + added, rtol=1e-4, atol=1e-6)


def test_training_brings_the_causal_choice_to_the_share():
    spec = replace(BASE, depth=MixtureOfDepths(capacity=0.25, every=1, causal_loss=1.0))
    model = build(spec, spec.d_model)
    initialise(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        ids_BT = torch.randint(30, (4, 17), generator=generator)
        model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    cache = model.start()
    with torch.inference_mode():
        model(torch.randint(30, (8, 16), generator=generator), cache=cache)
    shares = [sum(row.length for row in layer["rows"].caches) / (8 * 16) for layer in cache.layers]
    assert all(0.15 < share < 0.35 for share in shares), shares


def test_padding_takes_no_ones_place_in_training():
    block, x_BTD = drawn(BASE).train().blocks[1], torch.randn(1, 8, BASE.d_model)
    with torch.no_grad():
        x_BTD[0, :3] = 9 * block.router.weight[0]  # the highest scores of all
    documents_BT = torch.tensor([[-1] * 3 + [0] * 5])
    padded = block(x_BTD, Frame((1, 8), x_BTD.device, documents_BS=documents_BT))
    assert torch.equal(padded[0, :3], x_BTD[0, :3])
    changed = (padded[0] != x_BTD[0]).any(-1)
    assert int(changed.sum()) == 4


def test_positions_of_three_axes_are_those_of_the_whole_sequence():
    spec = replace(BASE, position=MRoPE(sections=(2, 1, 1)))
    model, ids_BT = drawn(spec), torch.randint(300, (2, 6))
    same = torch.arange(6).expand(3, 2, 6)
    with torch.inference_mode():
        close(model(ids_BT, positions=same), model(ids_BT), "t = h = w")
        assert (model(ids_BT, positions=same * 3) - model(ids_BT)).abs().max() > 1e-3


def test_a_run_trains_and_ends_with_the_same_bits(tmp_path):
    run = tiny_run(3)
    run = replace(run, model=replace(run.model, depth=HALF))
    found = [go(run, tmp_path / name)["validation"] for name in ("one", "two")]
    assert found[0] == found[1]
    assert not differing(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


def test_a_module_in_bf16_answers_in_bf16():
    model = drawn(BASE).to(torch.bfloat16)
    ids_BT = torch.randint(300, (2, 9))
    assert model(ids_BT).dtype == torch.bfloat16
    assert model.train().loss(ids_BT[:, :-1], ids_BT[:, 1:]).isfinite()
    assert F.softmax(model(ids_BT).float(), -1).isfinite().all()


def test_a_negative_factor_is_refused():
    with pytest.raises(UserError, match=r"MixtureOfDepths.causal_loss is -1.0; it must not be negative"):
        MixtureOfDepths(causal_loss=-1)
