"""Products that are given few numbers of rows, and rows that get the same bits from all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nachim.infer.invariant import FEW, Linears, Reordered, filled, normed, steady


def test_oneDNN_is_given_few_numbers_of_rows():
    sizes = [filled(rows) for rows in range(1, 400)]
    assert sizes == sorted(sizes)
    assert len(set(sizes[:200])) <= 27
    for rows, size in enumerate(sizes, 1):
        assert rows <= size <= 1.25 * rows
        assert filled(size) == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_fills_up_changes_no_row(dtype):
    weight, bias = torch.randn(40, 24).to(dtype), torch.randn(40).to(dtype)
    fewest = steady((40, 24), dtype, torch.get_num_threads())
    product, x_RD = Reordered(weight, fewest), torch.randn(67, 24).to(dtype)
    whole = product(x_RD, bias)
    torch.testing.assert_close(whole, F.linear(x_RD, weight, bias))
    for rows in (1, 3, 9, 17, 35, 66):
        assert torch.equal(product(x_RD[-rows:], bias), whole[-rows:])
    assert torch.equal(product(x_RD[None], bias), whole[None])
    assert product(x_RD[:0]).shape == (0, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("invariant", [False, True])
def test_packed_layers_multiply_as_unpacked_ones(dtype, invariant):
    layer = nn.Linear(1024, 512).to(dtype)
    linears = Linears(invariant)
    linears.pack(layer.weight)
    product = linears.of(layer)
    for rows in (1, FEW[0], 70):
        x_RD = torch.randn(rows, 1024).to(dtype)
        torch.testing.assert_close(product(x_RD), layer(x_RD))
        torch.testing.assert_close(linears(x_RD, layer.weight, layer.bias), layer(x_RD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [24, 100, 960, 5000])
def test_norms_are_torchs_bit_for_bit(dtype, width):
    norm = nn.RMSNorm(width, eps=1e-5, dtype=dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        for rows in (1, 7, 40):
            x_RD = 3 * torch.randn(rows, width).to(dtype)
            assert torch.equal(normed(norm)(x_RD), norm(x_RD))
