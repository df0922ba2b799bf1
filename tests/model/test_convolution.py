"""The short causal convolution: torch's own, documents apart, in pieces, and its gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from nachim.model.convolution import Convolution
from nachim.model.frame import Frame

CPU = torch.device("cpu")


def drawn(channels: int, width: int, bias: bool = True) -> Convolution:
    """A convolution with random weights."""
    torch.manual_seed(0)
    module = Convolution(channels, width, bias)
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    return module


def frame(x_BTC: torch.Tensor, documents: list[list[int]] | None = None, start: int = 0) -> Frame:
    """The frame of `x_BTC` after `start` tokens."""
    return Frame(x_BTC.shape[:2], CPU, start, None if documents is None else torch.tensor(documents))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 11])
def test_it_is_a_convolution_with_a_group_a_channel(bias, width, length):
    module, x_BTC = drawn(6, width, bias), torch.randn(2, length, 6)
    padded_BCS = F.pad(x_BTC.transpose(1, 2), (width - 1, 0))
    wanted_BCT = F.conv1d(padded_BCS, module.kernel[:, None], module.bias, groups=6)
    torch.testing.assert_close(module(x_BTC, frame(x_BTC)), wanted_BCT.transpose(1, 2))


def test_documents_do_not_see_each_other():
    module, x_BTC = drawn(5, 4), torch.randn(2, 9, 5)
    documents = [[0, 0, 0, 1, 0, 0, 2, 2, 2], [-1, -1, 0, 0, 0, 0, 0, 0, 0]]
    whole_BTC = module(x_BTC, frame(x_BTC, documents))
    for row, cuts in ((0, (0, 3, 4, 6, 9)), (1, (0, 2, 9))):
        for begin, end in itertools.pairwise(cuts):
            alone_BTC = x_BTC[row : row + 1, begin:end]
            torch.testing.assert_close(whole_BTC[row : row + 1, begin:end], module(alone_BTC, frame(alone_BTC)))


@pytest.mark.parametrize("pieces", [(10,), (1,) * 10, (4, 1, 5), (1, 2, 7), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize("documents", [None, [[0, 0, 1, 0, 0, 0, 2, 2, 2, 3], [-1] * 3 + [0] * 7]])
def test_a_text_in_pieces_gives_what_it_gives_whole(pieces, documents):
    module, x_BTC = drawn(5, 4), torch.randn(2, 10, 5)
    whole_BTC, memory, found, start = module(x_BTC, frame(x_BTC, documents)), {}, [], 0
    for length in pieces:
        piece_BTC = x_BTC[:, start : start + length]
        seen = None if documents is None else [row[: start + length] for row in documents]
        found.append(module(piece_BTC, frame(piece_BTC, seen, start), memory))
        start += length
        assert memory["convolution"].shape == (2, 3, 5)
    torch.testing.assert_close(torch.cat(found, 1), whole_BTC)


def test_two_convolutions_share_a_memory_under_two_names():
    module, x_BTC, memory = drawn(5, 3), torch.randn(1, 4, 5), {}
    module(x_BTC, frame(x_BTC), memory, "keys")
    module(-x_BTC, frame(x_BTC), memory, "values")
    torch.testing.assert_close(memory["keys"], x_BTC[:, 2:])
    torch.testing.assert_close(memory["values"], -x_BTC[:, 2:])


@pytest.mark.parametrize("documents", [None, [[0, 0, 1, 1, 1, 1]] * 2])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_finite_differences(bias, documents):
    module, x_BTC = drawn(3, 3, bias).double(), torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def work(x_BTC: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            module, dict(zip(names, weights, strict=True)), (x_BTC, frame(x_BTC, documents))
        )

    assert torch.autograd.gradcheck(work, (x_BTC, *module.parameters()))


def test_it_works_in_the_precision_of_its_input():
    module, x_BTC = drawn(4, 3), torch.randn(1, 5, 4)
    y_BTC = module(x_BTC.bfloat16(), frame(x_BTC))
    assert y_BTC.dtype == torch.bfloat16
    torch.testing.assert_close(y_BTC.float(), module(x_BTC, frame(x_BTC)), atol=0.05, rtol=0.05)


def test_a_kernel_is_drawn_as_torch_draws_a_convolution():
    module = drawn(4000, 4)
    module.draw(torch.Generator().manual_seed(1))
    reference = torch.nn.Conv1d(4000, 4000, 4, groups=4000).weight
    assert module.kernel.abs().max() <= 0.5
    assert module.kernel.std().item() == pytest.approx(reference.std().item(), rel=0.03)
