"""Our kernels against the sums they stand for; rows that depend on nothing beside them; machines without a compiler."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nachim.model import kernels
from nachim.model.kernels import CodedKernel, DenseKernel, NormKernel
from nachim.model.quantized.grid import nearest
from nachim.model.quantized.linear import Int4Kernel, LowBitLinear, own
from nachim.spec import NF4, Int4, UserError

ROUNDING = 2.0**-8
"""Of bf16, of the result; as a share of the largest."""
needed = pytest.mark.skipif(kernels.library() is None, reason="this CPU multiplies no bf16, or has no compiler")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@needed
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 2), (37, 64), (300, 34)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_dense_product_is_the_sum_in_fp32(outputs, inputs, biased):
    weight, bias = drawn(outputs, inputs), drawn(outputs, seed=1) if biased else None
    kernel = DenseKernel(weight)
    for rows in (*range(1, 10), 21):
        x = drawn(rows, inputs, seed=rows)
        wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        torch.testing.assert_close(kernel(x, bias).double(), wanted, rtol=ROUNDING, atol=1e-5)
    assert kernel(drawn(2, 3, inputs)).shape == (2, 3, outputs)


@needed
@pytest.mark.parametrize("threads", [1, 2])
def test_a_dense_row_has_the_same_bits_among_any_others(threads):
    kernel, x = DenseKernel(drawn(70, 96)), drawn(40, 96, seed=1)
    before = torch.get_num_threads()
    whole = kernel(x)
    try:
        torch.set_num_threads(threads)
        for rows in (1, 2, 3, 5, 8, 9, 16, 31):
            assert torch.equal(kernel(x[-rows:]), whole[-rows:])
    finally:
        torch.set_num_threads(before)


@needed
@pytest.mark.parametrize(
    "scheme",
    [Int4(group=32), Int4(group=64), Int4(group=64, symmetric=True), NF4(group=64), NF4(group=32, double=False)],
    ids=str,
)
@pytest.mark.parametrize("outputs", [16, 80])
def test_a_coded_product_is_that_of_what_codes_stand_for(scheme, outputs):
    coded = nearest(0.05 * drawn(outputs, 192).float(), scheme)
    kernel, x = own(coded), drawn(33, 192, seed=1)
    decoded = coded.decode()
    # of NF4 the magnitudes of groups are rounded to bf16 too; of others the rows to 16 bits
    atol = 0.01 if isinstance(scheme, NF4) else 1e-4
    torch.testing.assert_close(kernel(x).double(), x.double() @ decoded.double().T, rtol=ROUNDING, atol=atol)
    for rows in (*range(1, 10), 17):
        assert torch.equal(kernel(x[-rows:]), kernel(x)[-rows:])


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [24, 100, 960])
def test_a_norm_is_torchs_to_rounding_whatever_its_lanes(dtype, width):
    norm = torch.nn.RMSNorm(width, eps=1e-5, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(drawn(width))
        x = drawn(5, 3, width, seed=1).to(dtype)
        for lanes in (8, 16):
            torch.testing.assert_close(NormKernel(norm, lanes)(x), norm(x))
        across = x.transpose(0, 1)
        assert torch.equal(NormKernel(norm, 8)(across), norm(across))


@needed
def test_what_no_kernel_takes_is_told_apart():
    assert DenseKernel.takes(drawn(8, 4))
    assert not DenseKernel.takes(drawn(8, 4).float())
    assert not DenseKernel.takes(drawn(8, 5))
    assert not CodedKernel.takes(torch.zeros(24, 64), 32)
    assert not CodedKernel.takes(torch.zeros(32, 64), 16)
    with pytest.raises(TypeError, match="bfloat16"):
        DenseKernel(drawn(8, 4))(torch.zeros(1, 4))


@needed
def test_weights_of_the_cpu_are_refused_elsewhere():
    kernel = own(nearest(0.05 * drawn(16, 64).float(), Int4(group=32)))
    with pytest.raises(UserError, match="packed for the CPU"):
        kernel(drawn(1, 64).to("meta"))


@pytest.mark.skipif(not kernels.fits(), reason="nothing would be compiled")
@pytest.mark.parametrize(("compiler", "told"), [("no-such-compiler", "no-such-compiler"), ("false", "false")])
def test_without_a_compiler_torch_multiplies(compiler, told, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"{told}.*install g\\+\\+"):
            layer = LowBitLinear(nearest(0.05 * drawn(32, 64).float(), Int4(group=32)), None, torch.bfloat16)
        assert isinstance(layer.product, Int4Kernel)
        assert not DenseKernel.takes(drawn(8, 4))
        assert not list(tmp_path.rglob("*.so"))
    finally:
        kernels.library.cache_clear()
