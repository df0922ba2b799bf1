"""Grids against their definitions: levels of NF4, the nearest of all values, double quantisation step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from nachim.model.quantized.codes import coded_of, shapes_of, tensors_of
from nachim.model.quantized.grid import LEVELS, Coded, fit, nearest
from nachim.spec import NF4, Int4, Int8, UserError
from tests.model.quantized.low import SCHEMES


@pytest.fixture
def weight_OI() -> torch.Tensor:
    return 0.05 * torch.randn(24, 192, generator=torch.Generator().manual_seed(1))


def test_the_levels_are_quantiles_of_the_normal_law():
    """Eight above zero and seven below, each set evenly spaced in probability (arXiv 2305.14314, eq. 4)."""
    outermost = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    above = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    wanted = np.sort(np.concatenate((above, below, [0.0]))) / above.max()
    np.testing.assert_allclose(np.array(LEVELS), wanted, atol=1e-6)
    assert all(level == float(np.float32(level)) for level in LEVELS)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_weight_is_rounded_to_the_nearest_value_of_all(weight_OI, scheme):
    weight_OI = weight_OI[:4]
    grid = fit(weight_OI, scheme)
    codes = range(-127, 128) if isinstance(scheme, Int8) else range(16)
    kind = torch.int8 if isinstance(scheme, Int8) else torch.uint8
    values = torch.stack([grid.decode(torch.full(weight_OI.shape, code, dtype=kind)) for code in codes])
    best_OI = (values - weight_OI).abs().amin(0)
    torch.testing.assert_close((grid.nearest(weight_OI) - weight_OI).abs(), best_OI, rtol=0, atol=1e-8)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_any_columns_are_rounded_as_in_the_whole(weight_OI, scheme):
    grid = fit(weight_OI, scheme)
    codes_OI, values_OI = grid.round(weight_OI), grid.nearest(weight_OI)
    for first, last in ((0, 1), (31, 33), (100, 192), (64, 96), (191, 192)):
        assert torch.equal(grid.round(weight_OI[:, first:last], first), codes_OI[:, first:last])
        assert torch.equal(grid.decode(codes_OI[:, first:last], first), values_OI[:, first:last])


@pytest.mark.parametrize(
    "scheme", [Int4(group=32), Int4(group=64, symmetric=True), NF4(group=32, double=False)], ids=str
)
def test_a_group_knows_nothing_of_the_others(weight_OI, scheme):
    apart = [fit(part, scheme).nearest(part) for part in weight_OI.split(scheme.group, 1)]
    assert torch.equal(torch.cat(apart, 1), fit(weight_OI, scheme).nearest(weight_OI))


def test_the_ends_of_a_group_are_reached(weight_OI):
    """A quarter of a step is what bf16 scales and whole zeros leave."""
    for scheme in (Int4(group=32), Int4(group=32, symmetric=True), Int8(), NF4(group=32, double=False)):
        grid = fit(weight_OI, scheme)
        groups = weight_OI.view(24, -1, scheme.width(192))
        extreme = groups.abs().amax(-1)
        at = groups.abs().argmax(-1, keepdim=True)
        found = grid.nearest(weight_OI).view(groups.shape).gather(-1, at)[..., 0].abs()
        step = extreme / 127 if isinstance(scheme, Int8) else (groups.amax(-1) - groups.amin(-1)) / 15
        assert ((found - extreme).abs() <= 0.51 * step).all()


def test_double_quantisation_step_by_step(weight_OI):
    weight_OI = weight_OI.repeat(4, 1)
    scale = fit(weight_OI, NF4(group=32)).scale_OG.flatten()
    magnitudes = weight_OI.view(96, 6, 32).abs().amax(-1).flatten()
    mean = magnitudes.mean()
    for first in range(0, len(magnitudes), 256):
        block = magnitudes[first : first + 256] - mean
        unit = block.abs().max() / 448
        for place, value in enumerate(block):
            wanted = (value / unit).to(torch.float8_e4m3fn).float() * unit + mean
            assert scale[first + place] == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_stored_tensors_come_back_and_have_the_declared_shapes_and_bytes(weight_OI, scheme):
    coded = nearest(weight_OI, scheme)
    tensors = tensors_of(coded)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes_of(scheme, 24, 192)
    assert sum(tensor.nbytes for tensor in tensors.values()) == scheme.bytes(24, 192)
    again = coded_of(tensors, scheme)
    assert torch.equal(again.codes_OI, coded.codes_OI)
    assert torch.equal(again.decode(), coded.decode())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("value", [0.0, 0.25, -0.25])
def test_weights_that_are_all_alike_keep_their_value(scheme, value):
    weight_OI = torch.full((4, 128), value)
    torch.testing.assert_close(nearest(weight_OI, scheme).decode(), weight_OI, rtol=0.01, atol=0)


def test_a_divisor_is_made_good(weight_OI):
    divisor_I = torch.linspace(0.5, 2, 192)
    grid = fit(weight_OI * divisor_I, Int8())
    coded = Coded(grid, grid.round(weight_OI * divisor_I), divisor_I)
    assert ((coded.decode() - weight_OI).abs() <= 0.51 * grid.scale_OG / divisor_I).all()
    assert torch.equal(coded_of(tensors_of(coded), Int8()).decode(), coded.decode())


def test_what_cannot_be_rounded_is_refused(weight_OI):
    with pytest.raises(UserError, match=r"Int4.group is 128, which does not divide the 192 inputs of a matrix"):
        fit(weight_OI, Int4())
    weight_OI[3, 5] = float("nan")
    with pytest.raises(UserError, match="a weight is not finite"):
        fit(weight_OI, Int8())
    with pytest.raises(UserError, match=r"Int4.group is 33; it must be even"):
        Int4(group=33)
