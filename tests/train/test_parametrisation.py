"""Each weight's learning rate, eps and decay are the published ones, and what they promise holds: updates of
activations that do not depend on width (the coordinate check of arXiv 2203.03466, sec. D.1) or depth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import AdamW, Attention, CompleteP, Decoder, Muon, MuP, Parametrisation, Run, Standard, SwiGLU
from nachim.train.optimizer import build_optimizer
from nachim.train.step import Stepper
from tests.train.tiny import Kill, differing, fresh, go, kill_at, loss, tiny_run, weights

COMPLETEP = CompleteP(base_width=4, base_head=8, base_depth=1)
"""The tiny run's model is 4 times as wide and twice as deep."""
HEAD, VOCABULARY, LENGTH = 16, 64, 32


def parametrised(part: Parametrisation, **train: object) -> Run:
    """The tiny run in a parametrisation."""
    run = tiny_run(**train)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, parametrisation=part))


def values(optimizer: AdamW, part: Parametrisation) -> dict[str, tuple[float, float | None, float]]:
    """(lr, eps, weight decay) that each weight of the tiny model is given; every weight in exactly one group."""
    run = parametrised(part, optimizer=optimizer)
    stepper = Stepper(run, fresh(run), loss)
    stepper.optimizer.set_lr(optimizer.lr)
    groups = stepper.optimizer.param_groups
    found = {id(w): (g["lr"], g.get("eps"), g["weight_decay"]) for g in groups for w in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(stepper.masters.weights)
    return {name: found[id(weight)] for name, weight in stepper.masters.named().items()}


@pytest.mark.parametrize(("part", "deeper"), [(COMPLETEP, 2), (MuP(base_width=4, base_head=8), 1)])
def test_adamw_is_given_the_published_table(part, deeper):
    """arXiv 2505.01618, Table 1, at m_N = 4 and m_L = 2 (alpha = 1); its muP column at m_N = 4."""
    base = AdamW(lr=0.01, eps=1e-6, weight_decay=0.3)
    for name, (lr, eps, decay) in values(base, part).items():
        block, gain = name.startswith("blocks."), name.endswith("norm.weight")
        assert lr == pytest.approx(0.01 / 4 if block and not gain else 0.01), name
        assert eps == pytest.approx(1e-6 / 4 / deeper if block else 1e-6), name
        assert decay == pytest.approx(0.0 if gain else 0.3 * 4 if block else 0.3), name


def test_muon_keeps_the_root_of_the_width_and_leaves_the_rest_to_adamw():
    base = Muon(lr=0.01, eps=1e-6, weight_decay=0.3)
    given, adamw = values(base, COMPLETEP), values(AdamW(lr=0.01, eps=1e-6, weight_decay=0.3), COMPLETEP)
    for name, row in given.items():
        muon = name.startswith("blocks.") and not name.endswith("norm.weight")
        assert row == (pytest.approx(0.01 / 2), None, pytest.approx(0.3 * 2)) if muon else row == adamw[name], name


def test_the_state_that_is_saved_is_that_of_a_run_without_a_parametrisation():
    saved = []
    for part in (Standard(), COMPLETEP):
        run = parametrised(part)
        groups = Stepper(run, fresh(run), loss).optimizer.state_dict()["adamw"]["param_groups"]
        saved.append({key for group in groups for key in group})
    assert saved[0] == saved[1] == set(torch.optim.AdamW([nn.Parameter(torch.ones(1))]).param_groups[0])


@pytest.mark.parametrize("optimizer", [AdamW(lr=0.01), Muon(lr=0.01)], ids=["adamw", "muon"])
def test_training_at_the_base_is_the_standard_bit_for_bit(optimizer, tmp_path):
    go(parametrised(Standard(), optimizer=optimizer), tmp_path / "standard")
    for part in (MuP(base_width=16, base_head=8), CompleteP(base_width=16, base_head=8, base_depth=2)):
        out = tmp_path / type(part).__name__
        go(parametrised(part, optimizer=optimizer), out)
        assert not differing(weights(tmp_path / "standard"), weights(out))
    go(parametrised(COMPLETEP, optimizer=optimizer), tmp_path / "away")
    assert differing(weights(tmp_path / "standard"), weights(tmp_path / "away"))


@pytest.mark.parametrize("optimizer", [AdamW(lr=0.01), Muon(lr=0.01)], ids=["adamw", "muon"])
def test_resume_is_exact(optimizer, tmp_path):
    run = parametrised(COMPLETEP, optimizer=optimizer)
    go(run, tmp_path / "whole")
    with pytest.raises(Kill):
        go(run, tmp_path / "cut", on_step=kill_at(3), checkpoint_seconds=-1.0)
    go(run, tmp_path / "cut")
    assert not differing(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def updates(spec: Decoder, optimizer: AdamW, seed: int, steps: int = 4) -> dict[str, float]:
    """Mean size of what `steps` steps change in the last block's projections, in the stream and in the logits."""
    model = build(spec, spec.d_model)
    initialise(model, seed)
    moved = build_optimizer(optimizer, dict(model.named_parameters()), spec)
    moved.set_lr(optimizer.lr)
    ids_BT = torch.randint(VOCABULARY, (4, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    seen: dict[str, Tensor] = {}
    last = model.blocks[-1]
    for name, module in {"qkv": last.attention.qkv, "ffn": last.ffn, "stream": last, "logits": model.head}.items():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.detach()}))
    model(ids_BT[:, :-1])
    first = dict(seen)
    for _ in range(steps):
        model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
        moved.step()
        moved.zero_grad()
    model(ids_BT[:, :-1])
    return {name: (seen[name] - first[name]).abs().mean().item() for name in first}


def slopes(part: Parametrisation, optimizer: AdamW, shapes: list[tuple[int, int]]) -> dict[str, float]:
    """The power of the shape (its width, or its depth) that the size of updates follows, over two seeds."""
    sizes = []
    for width, layers in shapes:
        heads = Attention(n_heads=width // HEAD, n_kv_heads=width // HEAD, d_head=HEAD, qk_norm=True)
        fields = {"vocab_size": VOCABULARY, "d_model": width, "n_layers": layers, "attention": heads}
        spec = Decoder(**fields, ffn=SwiGLU(d_ff=2 * width), parametrisation=part)
        sizes.append([updates(spec, optimizer, seed) for seed in range(2)])
    scale = np.log([width * layers for width, layers in shapes])
    return {
        name: float(np.polyfit(scale, [np.mean([np.log(seed[name]) for seed in row]) for row in sizes], 1)[0])
        for name in sizes[0][0]
    }


@pytest.mark.parametrize("optimizer", [AdamW(lr=2**-7), Muon(lr=2**-7)], ids=["adamw", "muon"])
def test_the_size_of_updates_does_not_follow_width_under_mup_as_it_does_without(optimizer):
    shapes = [(32, 2), (64, 2), (128, 2), (256, 2)]
    with_mup = slopes(MuP(base_width=32, base_head=HEAD), optimizer, shapes)
    without = slopes(Standard(), optimizer, shapes)
    # The logits' part that is not aligned still falls as width^-1/2 after four steps from a head of zeros.
    band = 0.1 if type(optimizer) is AdamW else 0.2
    assert all(abs(slope) < (0.3 if name == "logits" else band) for name, slope in with_mup.items()), with_mup
    assert all(slope > 0.35 for slope in without.values()), without


@pytest.mark.parametrize("optimizer", [AdamW(lr=2**-7), Muon(lr=2**-7)], ids=["adamw", "muon"])
def test_the_size_of_updates_does_not_follow_depth_under_completep_as_it_does_without(optimizer):
    shapes = [(32, 4), (32, 8), (32, 16)]
    with_completep = slopes(CompleteP(base_width=32, base_head=HEAD, base_depth=2), optimizer, shapes)
    without = slopes(Standard(), optimizer, shapes)
    assert all(abs(slope) < 0.2 for slope in with_completep.values()), with_completep
    assert without["stream"] > 0.4, without
