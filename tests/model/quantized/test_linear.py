"""Products by codes against products by what they stand for, and rows that do not depend on their neighbours."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from nachim.model.kernels import library
from nachim.model.quantized import linear
from nachim.model.quantized.grid import Coded, nearest
from nachim.model.quantized.linear import LowBitLinear, LowBitStack, matrices
from nachim.spec import MLA, Int4, Int8
from tests.model.quantized.low import DENSE, SCHEMES, SPARSE, model_of

ROUNDING = 2.0**-7
"""Of bf16, twice: of weights or scales, and of the result; as a share of the largest result."""


def drawn(outputs: int, inputs: int) -> torch.Tensor:
    return 0.05 * torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_product_is_that_of_the_decoded_matrix(scheme, rows):
    coded, bias = nearest(drawn(48, 128), scheme), torch.randn(48)
    x = torch.randn(2, rows, 128)
    wanted = F.linear(x, coded.decode(), bias)
    torch.testing.assert_close(LowBitLinear(coded, bias, torch.float32)(x), wanted)
    layer = LowBitLinear(coded, bias.bfloat16(), torch.bfloat16)
    assert layer.by_kernel == (isinstance(scheme, Int8 | Int4) or library() is not None)
    error = (layer(x.bfloat16()).float() - F.linear(x.bfloat16().float(), coded.decode(), bias)).abs().max()
    assert error <= ROUNDING * wanted.abs().max()


@pytest.mark.parametrize(
    ("scheme", "outputs", "inputs"), [(Int8(), 48, 72), (Int4(group=16), 48, 64), (Int4(group=32), 24, 64)]
)
def test_shapes_that_no_kernel_takes_are_decoded(scheme, outputs, inputs):
    coded = nearest(drawn(outputs, inputs), scheme)
    layer, x = LowBitLinear(coded, None, torch.bfloat16), torch.randn(3, inputs).bfloat16()
    assert not layer.by_kernel
    assert torch.equal(layer(x), F.linear(x, coded.decode().bfloat16()))


@pytest.mark.parametrize("scheme", [Int8(), Int4(group=32)], ids=str)
@pytest.mark.parametrize("trusted", [True, False])
def test_a_row_has_the_same_bits_among_any_others(scheme, trusted, monkeypatch):
    if not trusted:
        monkeypatch.setattr(linear, "steady", lambda product, inputs: False)
    layer = LowBitLinear(nearest(drawn(96, 160), scheme), None, torch.bfloat16)
    assert layer.by_kernel
    assert layer.steady == trusted
    x_RI = torch.randn(70, 160).bfloat16()
    whole = layer(x_RI)
    for rows in (1, 2, 3, 7, 16, 17, 40):
        assert torch.equal(layer(x_RI[-rows:]), whole[-rows:])


def test_a_kernel_that_is_not_steady_is_found_out():
    class Unsteady(linear.Int8Kernel):
        def forward(self, x_RI):
            return super().forward(x_RI) + len(x_RI) % 2

    coded = nearest(drawn(16, 32), Int8())
    assert not linear.steady(Unsteady(coded), 32)
    assert linear.steady(linear.Int8Kernel(coded), 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_divided_where_columns_were_multiplied(dtype):
    plain, divisor_I = nearest(drawn(32, 64), Int8()), torch.linspace(0.5, 2, 64).to(dtype).float()
    layer = LowBitLinear(Coded(plain.grid, plain.codes_OI, divisor_I), None, dtype)
    x = torch.randn(4, 64).to(dtype)
    wanted = LowBitLinear(plain, None, dtype)(x / divisor_I.to(dtype))
    assert torch.equal(layer(x), wanted)


def test_experts_each_take_their_rows():
    coded = [nearest(one, Int4(group=32)) for one in drawn(96, 64).view(3, 32, 64)]
    bias, load_X, x_RI = torch.randn(3, 32), torch.tensor([2, 0, 3]), torch.randn(5, 64)
    found = LowBitStack(coded, bias, torch.float32)(x_RI, load_X)
    for row, expert in enumerate((0, 0, 2, 2, 2)):
        torch.testing.assert_close(found[row], coded[expert].decode() @ x_RI[row] + bias[expert])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_smaller_by_what_was_promised(dtype):
    """torch's kernel has its tables of scale and zero in bf16, so that a group has one byte more than in the file."""
    scheme = Int4(group=128)
    layer = LowBitLinear(nearest(drawn(64, 512), scheme), None, dtype)
    held = sum(buffer.nbytes for buffer in layer.buffers())
    assert held == scheme.bytes(64, 512) + (64 * 4 if isinstance(layer.product, linear.Int4Kernel) else 0)
    assert held < 0.28 * 64 * 512 * 2


def test_routers_heads_and_what_is_not_only_multiplied_by_stay():
    names = {name.split(".", 2)[2] for name in matrices(model_of(SPARSE))}
    experts = {f"ffn.{each}.{part}.weight" for each in ("experts", "shared") for part in ("gate_up", "down")}
    assert names == {"attention.qkv.weight", "attention.out.weight"} | experts
    latent = MLA(n_heads=2, d_head=8, rank=16, rope_dim=4)
    assert not any("kv_up" in name for name in matrices(model_of(dataclasses.replace(DENSE, attention=latent))))
