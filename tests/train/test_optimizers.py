"""Each optimizer against torch's, or against its paper's recursion written out, for 100 steps; its place beside others
and under a parametrisation; and runs that are killed and go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nachim.model.decoder import is_matrix, role
from nachim.spec import AdamW, AdamW8, CompleteP, Constant, Muon, Run, ScheduleFreeAdamW, UserError
from nachim.train import checkpoint
from nachim.train.guard import Guard
from nachim.train.moments import levels, quantise, restore
from nachim.train.optimizer import Together, build_optimizer, check_owners
from nachim.train.step import Stepper
from tests.spec.examples import decoder
from tests.train import tiny
from tests.train.tiny import ALWAYS, BATCH, Kill, differing, fresh, go, kill_at, loss, rows, tiny_run, weights

STEPS = 100
FIELDS = {"lr": 0.01, "beta1": 0.8, "beta2": 0.97, "eps": 1e-6, "weight_decay": 0.3}
RATES = [FIELDS["lr"] * min(1.0, (t + 1) / 10) for t in range(STEPS)]
ODD = "blocks.1.a.weight"
SHAPES = {
    "blocks.0.a.weight": (64, 64),
    ODD: (65, 67),
    "blocks.0.b.weight": (9, 20),
    "head.weight": (70, 64),
    "gain": (64,),
}
PARTS = [AdamW, Muon, AdamW8, ScheduleFreeAdamW]


def drawn(seed: int = 0) -> dict[str, Tensor]:
    """Weights of several shapes: large, of no whole blocks, small, a table, and a vector."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def gradient(at: Tensor, t: int, name: str) -> Tensor:
    """Of a bowl whose axes differ a thousandfold, with noise that follows from the step."""
    generator = torch.Generator().manual_seed(1000 * t + len(name))
    steep = torch.logspace(-3, 0, at.numel()).view(at.shape)
    noise = torch.randn(at.shape, generator=generator)
    return (at.float() * steep + 0.3 * steep * noise).to(at.dtype)


def ours(part: AdamW) -> dict[str, Tensor]:
    """The weights after 100 steps of `part`, decays as built."""
    moved = {name: nn.Parameter(w) for name, w in drawn().items()}
    optimizer = build_optimizer(part, moved, decoder())
    for t, rate in enumerate(RATES):
        for name, weight in moved.items():
            with torch.no_grad():
                weight.grad = gradient(optimizer.ahead(weight).detach(), t, name)
        optimizer.set_lr(rate)
        optimizer.step()
    return {name: weight.detach() for name, weight in moved.items()}


def theirs(part: AdamW) -> dict[str, Tensor]:
    """The same by torch's plain AdamW."""
    moved = {name: nn.Parameter(w) for name, w in drawn().items()}
    groups = [{"params": [w], "weight_decay": part.weight_decay * (w.ndim > 1)} for w in moved.values()]
    plain = torch.optim.AdamW(groups, lr=1.0, betas=(part.beta1, part.beta2), eps=part.eps, foreach=False, fused=False)
    for t, rate in enumerate(RATES):
        for name, weight in moved.items():
            weight.grad = gradient(weight.detach(), t, name)
        for group in plain.param_groups:
            group["lr"] = rate
        plain.step()
    return {name: weight.detach() for name, weight in moved.items()}


def apart(one: Tensor, other: Tensor, name: str) -> float:
    """The distance of two ends over the way from the start."""
    return float((one - other).norm() / (other - drawn()[name]).norm())


def test_adamw_is_torchs_for_100_steps() -> None:
    part = AdamW(**FIELDS)
    found, wanted = ours(part), theirs(part)
    for name in SHAPES:
        assert apart(found[name], wanted[name], name) < 1e-5, name


def test_muon_is_its_rule_written_out_for_100_steps_and_adamw_moves_the_rest() -> None:
    part = Muon(**FIELDS, momentum=0.9)
    found, rest = ours(part), theirs(part)
    for name, start in drawn().items():
        if not name.startswith("blocks."):
            assert apart(found[name], rest[name], name) < 1e-5, name
            continue
        w, m = start.double(), torch.zeros_like(start).double()
        for t, rate in enumerate(RATES):
            g = gradient(w.float(), t, name).double()
            m = 0.9 * m + 0.1 * g
            x = 0.9 * m + 0.1 * g
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
            w = w * (1 - rate * 0.3) - rate * 0.2 * max(w.shape) ** 0.5 * x
        assert apart(found[name].double(), w, name) < 1e-3, name


def test_schedule_free_is_the_papers_recursion_for_100_steps() -> None:
    """arXiv 2405.15682, algorithm 1, in fp64: three sequences, the average in what the optimizer calls the weight."""
    part = ScheduleFreeAdamW(**FIELDS)
    found = ours(part)
    for name, start in drawn().items():
        decay = part.weight_decay * (start.ndim > 1)
        x, z, v, squares = start.double(), start.double(), torch.zeros_like(start).double(), 0.0
        for t, given in enumerate(RATES, 1):
            y = (1 - part.beta1) * z + part.beta1 * x
            g = gradient(y.float(), t - 1, name).double()
            v = part.beta2 * v + (1 - part.beta2) * g**2
            rate = given * (1 - part.beta2**t) ** 0.5
            z = z - rate * g / (v.sqrt() + part.eps) - rate * decay * y
            squares += rate**2
            x = (1 - rate**2 / squares) * x + rate**2 / squares * z
        assert apart(found[name].double(), x, name) < 1e-5, name
        assert apart(z, x, name) > 0.05, "the average is not the iterate"


def by_hand(values: np.ndarray, map_: np.ndarray, signed: bool) -> np.ndarray:
    """Blocks of 256 over their largest size, each value the nearest of the map's; without a sign none falls to 0."""
    found = np.empty_like(values)
    for begin in range(0, values.size, 256):
        block = values[begin : begin + 256]
        largest = np.abs(block).max()
        if largest == 0:
            found[begin : begin + 256] = 0
            continue
        nearest = np.abs(map_[None] - block[:, None] / largest).argmin(1)
        nearest = nearest if signed else np.maximum(nearest, (block > 0).astype(int))
        found[begin : begin + 256] = map_[nearest] * largest
    return found


def papers_map(signed: bool) -> np.ndarray:
    """Dynamic tree quantisation from its bits (arXiv 2110.02861, sec. 1.3 and 2.2): after the sign zeros that count the
    exponent, a one, and a fraction linear in [0.1, 1]; without a sign its bit is one more of the fraction."""
    found = {0.0, 1.0}
    for code in range(1, 2**7):
        zeros = 7 - code.bit_length()
        bits = 6 - zeros + (not signed)
        fractions = [code - 2 ** (6 - zeros)] if signed else [2 * (code - 2 ** (6 - zeros)) + bit for bit in (0, 1)]
        for fraction in fractions:
            value = 10.0**-zeros * (0.1 + 0.9 * (fraction + 0.5) / 2**bits)
            found |= {value, -value} if signed else {value}
    return np.array(sorted(found))


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_has_the_256_values_of_its_bits(signed: bool) -> None:
    assert len(papers_map(signed)) == 256
    np.testing.assert_allclose(levels(signed).numpy(), papers_map(signed), rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_quantised_values_are_the_nearest_of_the_map_in_their_own_block(signed: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(1000, generator=generator) * torch.logspace(-9, 3, 1000)
    values[256:512] = 0
    values = values if signed else values.square()
    codes, scales = quantise(values, signed)
    assert (codes.dtype, len(codes), len(scales)) == (torch.uint8, 1000, 4)
    wanted = by_hand(values.double().numpy(), papers_map(signed), signed)
    np.testing.assert_allclose(restore(codes, scales, signed).numpy(), wanted, rtol=2e-6)
    assert signed or (restore(codes, scales, signed)[values > 0] > 0).all()
    values[0] = 1e6  # an outlier is felt in its own block alone
    codes_beside, scales_beside = quantise(values, signed)
    assert torch.equal(codes[256:], codes_beside[256:]) and torch.equal(scales[1:], scales_beside[1:])


@pytest.mark.parametrize("signed", [True, False])
def test_values_beside_every_border_fall_to_the_right_side(signed: bool) -> None:
    map_ = levels(signed)
    borders = (map_[1:] + map_[:-1]) / 2
    borders = borders if signed else torch.cat([torch.zeros(1), borders[1:]])
    codes = torch.arange(255)
    for values, wanted in ((borders, codes), (torch.nextafter(borders, torch.tensor(2.0)), codes + 1)):
        block = torch.cat([torch.ones(1), values])  # the first gives the block its scale
        assert torch.equal(quantise(block, signed)[0][1:].long(), wanted)


def test_adamw8_is_the_papers_formulas_and_near_adamw_for_100_steps() -> None:
    """Beside a plain implementation a value on the border of two codes may fall to either side: under 1 % of the way.
    From AdamW in 32 bits it stays within 5 % of the way; what is small, a table or a vector is AdamW's own."""
    part = AdamW8(**FIELDS)
    found, whole = ours(part), theirs(part)
    for name, start in drawn().items():
        if name.startswith("blocks.") and start.numel() >= 4096:
            assert 1e-4 < apart(found[name], whole[name], name) < 0.05, name
        else:
            assert apart(found[name], whole[name], name) < 1e-5, name
    w = drawn()[ODD].double().numpy().ravel()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, rate in enumerate(RATES, 1):
        g = gradient(torch.from_numpy(w).float().view(SHAPES[ODD]), t - 1, ODD).double().numpy().ravel()
        m = part.beta1 * m + (1 - part.beta1) * g
        v = part.beta2 * v + (1 - part.beta2) * g**2
        size = np.sqrt(v / (1 - part.beta2**t)) + part.eps
        w = w * (1 - rate * part.weight_decay) - rate * m / (1 - part.beta1**t) / size
        m, v = by_hand(m, papers_map(True), True), by_hand(v, papers_map(False), False)
    assert apart(found[ODD].double(), torch.from_numpy(w).view(SHAPES[ODD]), ODD) < 0.01


def test_cutting_a_weight_into_chunks_changes_nothing(monkeypatch) -> None:
    whole = ours(AdamW8(**FIELDS))
    monkeypatch.setattr(AdamW8, "CHUNK", 1024)
    assert not differing(ours(AdamW8(**FIELDS)), whole)


@pytest.mark.parametrize("size", [1e-3, 1e-4])
def test_a_row_whose_gradient_ends_is_not_thrown_far(size: float) -> None:
    """Its second moment must not fall to 0 beside the others of its block while its first has not: first / eps is huge.
    Coarse codes do not decay either, so that it drifts somewhat further than AdamW would take it."""
    ends = []
    for part in (AdamW8(lr=0.01, weight_decay=0.0), AdamW(lr=0.01, weight_decay=0.0)):
        weight, gain = nn.Parameter(torch.zeros(256, 64)), nn.Parameter(torch.ones(1))
        optimizer = build_optimizer(part, {"blocks.0.up.weight": weight, "norm.weight": gain}, decoder())
        for t in range(150):
            weight.grad, gain.grad = torch.ones(256, 64), torch.zeros(1)
            weight.grad[1::4] = size if t < 5 else 0.0  # four rows make a block
            optimizer.step()
        ends.append(weight.detach()[1::4].abs().max())
    assert ends[0] < 5 * ends[1]


@pytest.mark.parametrize("part", PARTS)
def test_every_weight_has_exactly_one_owner(part: type[AdamW]) -> None:
    run = tiny_run(optimizer=part(lr=0.01), d_model=128)
    stepper = Stepper(run, fresh(run), loss)
    owned = [id(w) for group in stepper.optimizer.param_groups for w in group["params"]]
    assert sorted(owned) == sorted(id(w) for w in stepper.masters.weights)
    members = {AdamW: ["adamw"], Muon: ["muon", "adamw"], AdamW8: ["adamw8", "adamw"]}
    assert list(stepper.optimizer.members) == members.get(part, ["schedule_free"])


def test_a_weight_with_two_owners_or_none_is_refused_by_name() -> None:
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    muon, adamw = (torch.optim.SGD([{"params": [one], "factor": 1.0}]) for _ in range(2))
    with pytest.raises(UserError, match=r"a.weight has 2 owners among muon, adamw .*exactly one"):
        check_owners(Together(muon=muon, adamw=adamw), {"a.weight": one})
    alone = Together(adamw=torch.optim.SGD([{"params": [one], "factor": 1.0}]))
    with pytest.raises(UserError, match=r"b.weight has 0 owners among adamw .*exactly one"):
        check_owners(alone, {"a.weight": one, "b.weight": two})


@pytest.mark.parametrize("part", PARTS)
def test_multipliers_of_the_parametrisation_reach_every_weight(part: type[AdamW]) -> None:
    given = CompleteP(base_width=16, base_head=8, base_depth=1)
    run = tiny_run(d_model=64)
    named = Stepper(run, fresh(run), loss).masters.named()
    optimizer = build_optimizer(part(**FIELDS), named, decoder(d_model=64, parametrisation=given))
    optimizer.set_lr(0.5)
    names = {id(w): name for name, w in named.items()}
    for member, held in optimizer.members.items():
        for group in held.param_groups:
            for weight in group["params"]:
                name = names[id(weight)]
                own = given.adamw(role(name, weight), 64, 2) if member != "muon" else given.muon(64)
                decay = 0.3 * own.weight_decay * is_matrix(name, weight)
                assert (group["lr"], group["weight_decay"]) == (0.5 * own.lr, pytest.approx(decay)), name
                assert member == "muon" or group["eps"] == pytest.approx(1e-6 * own.eps), name


@pytest.mark.parametrize(
    ("part", "precision"),
    [(AdamW8, "fp32"), (AdamW8, "bf16"), (ScheduleFreeAdamW, "fp32"), (ScheduleFreeAdamW, "bf16"), (AdamW, "fp16")],
)
def test_a_killed_run_ends_with_the_same_bits(part: type[AdamW], precision: str, tmp_path) -> None:
    run = tiny_run(
        optimizer=part(lr=0.01),
        schedule=Constant(warmup_tokens=3 * BATCH),
        precision=precision,
        d_model=128,
        micro_batch_tokens=BATCH // 2,
        times=4,
    )
    go(run, tmp_path / "whole")
    for step in (2, 5):
        with pytest.raises(Kill):
            go(run, tmp_path / "killed", checkpoint_seconds=ALWAYS, on_step=kill_at(step))
    go(run, tmp_path / "killed")
    assert not differing(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert any(row["noise_tokens"] is not None for row in rows(tmp_path / "whole"))
    one, other = (flat(state_of(run, tmp_path / name)) for name in ("killed", "whole"))
    assert one == other
    assert any(name.endswith("codes") for name in one) == (part is AdamW8)
    assert any("loss_scale" in name for name in one) == (precision == "fp16")


def state_of(run: Run, out: Path) -> dict[str, object]:
    """The optimizer's state in the newest checkpoint of `out`."""
    stepper = Stepper(run, fresh(run), loss)
    checkpoint.load(checkpoint.latest(out / "checkpoint"), stepper)
    return stepper.optimizer.state_dict()


def flat(value: object, name: str = "") -> dict[str, object]:
    """Every leaf of a nested state by its path; tensors as their precision and values."""
    if isinstance(value, Tensor):
        return {name: (value.dtype, value.tolist())}
    if not isinstance(value, dict | list):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for key, inner in pairs for path, leaf in flat(inner, f"{name}.{key}").items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_schedule_free_validates_and_keeps_is_its_average(precision: str) -> None:
    run = tiny_run(optimizer=ScheduleFreeAdamW(lr=0.05), schedule=Constant(), precision=precision)
    stepper, guard, seen = Stepper(run, fresh(run), loss), Guard(1.0), []
    batch = torch.from_numpy(tiny.batches(0, 4))

    def watched(model: nn.Module, ids_BT: Tensor) -> Tensor:
        seen.append([w.detach().clone() for w in model.parameters()])
        return loss(model, ids_BT)

    stepper.loss = watched
    for step in range(4):
        stepper.take(step, batch, guard)
    shown = [w.detach().clone() for w in stepper.model.parameters()]
    kept = stepper.masters.state().values()
    assert all(torch.equal(inside, weight.to(inside.dtype)) for inside, weight in zip(shown, kept, strict=True))
    stepper.take(4, batch, guard)
    assert not all(torch.equal(at, before) for at, before in zip(seen[-1], shown, strict=True))
