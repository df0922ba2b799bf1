"""Every fast form of attention is the plain one, in values and gradients, and none stands in memory as a square."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma_2
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss

from nachim.model import attend as kernels
from nachim.model.attend import Rule, attend, flex, plain_attention
from nachim.model.build import build
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import ALiBi

B, H, K, E = 2, 4, 2, 8
RULES = {
    "plain": (Rule(), False),
    "scale": (Rule(scale=0.7), False),
    "window": (Rule(window=5), False),
    "window of one": (Rule(window=1), False),
    "wide window": (Rule(window=11), False),
    "cap": (Rule(softcap=0.8), False),
    "sinks": (Rule(), True),
    "window sinks scale": (Rule(window=3, scale=0.4), True),
    "all": (Rule(window=5, scale=0.4, softcap=0.8), True),
}
DOCUMENTS = torch.tensor([[3] * 4 + [0] * 9 + [1] * 1 + [2] * 100, [-1] * 6 + [5] * 108])


class Distance(PositionModule):
    """A learned bias a head on the distance between tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.slope_H = nn.Parameter(torch.linspace(-0.3, 0.4, H))

    def bias(self, frame: Frame, keys: int, n_heads: int) -> Tensor:
        """Slope times distance."""
        query_T1 = torch.arange(frame.start, frame.S)[:, None]
        key_S = torch.arange(frame.S - keys, frame.S)
        return (self.slope_H[:n_heads, None, None] * (query_T1 - key_S))[None]


def inputs(new: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys, values and sinks."""
    shapes = (B, H, new, E), (B, K, keys, E), (B, K, keys, E), (H,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def allowed(documents: Tensor | None, new: int, keys: int, total: int, window: int | None) -> Tensor:
    """Who sees whom, one pair at a time."""
    found = torch.zeros(B, 1, new, keys, dtype=torch.bool)
    for row in range(B):
        for query in range(total - new, total):
            for key in range(total - keys, query + 1):
                near = window is None or query - key < window
                same = documents is None or documents[row, query] == documents[row, key]
                found[row, 0, query - (total - new), key - (total - keys)] = near and same
    return found


def hold(fast: Tensor, plain: Tensor, leaves: list[Tensor]) -> None:
    """Equal in values and in the gradient of every leaf."""
    torch.testing.assert_close(fast, plain)
    weight = torch.randn_like(plain)
    pair = [torch.autograd.grad(y, leaves, weight, retain_graph=True) for y in (fast, plain)]
    for one, other in zip(*pair, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize(("new", "past"), [(19, 0), (9, 10), (1, 18)], ids=["train", "prefill", "decode"])
@pytest.mark.parametrize(("rule", "sinks"), RULES.values(), ids=RULES)
def test_every_form_is_the_plain_one(rule, sinks, new, past, biased, packed, monkeypatch):
    total = new + past
    keys = total if rule.window is None else min(total, new + rule.window - 1)
    documents = DOCUMENTS[:, :total] if packed else None
    q, k, v, s = inputs(new, keys)
    position = Distance().double() if biased else PositionModule()
    frame = Frame((B, new), q.device, past, documents)
    leaves = [q, k, v, *([s] if sinks else []), *position.parameters()]
    may = allowed(documents, new, keys, total, rule.window)
    plain = plain_attention(q, k, v, may, position.bias(frame, keys, H), rule, s if sinks else None)
    for chunk in (kernels.CHUNK, 4):
        monkeypatch.setattr(kernels, "CHUNK", chunk)
        frame = Frame((B, new), q.device, past, documents)
        hold(attend(q, k, v, frame, position, rule, s if sinks else None), plain, leaves)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize(("new", "past"), [(19, 0), (9, 10)], ids=["train", "prefill"])
@pytest.mark.parametrize(("rule", "sinks"), RULES.values(), ids=RULES)
def test_flex_attention_is_the_plain_form(rule, sinks, new, past, packed):
    total = new + past
    keys = total if rule.window is None else min(total, new + rule.window - 1)
    documents = DOCUMENTS[:, :total] if packed else None
    q, k, v, s = (leaf.detach() for leaf in inputs(new, keys))  # on a CPU it has no backward pass
    may = allowed(documents, new, keys, total, rule.window)
    plain = plain_attention(q, k, v, may, None, rule, s if sinks else None)
    fast = flex(q, k, v, Frame((B, new), q.device, past, documents), rule, s if sinks else None)
    torch.testing.assert_close(fast, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize(("rule", "sinks"), RULES.values(), ids=RULES)
def test_on_a_gpu_every_form_is_the_plain_one(rule, sinks, packed):
    new = 200
    documents = torch.arange(new).expand(B, new) // 70 if packed else None
    q, k, v, s = (torch.randn(B, heads, new, 16, device="cuda", requires_grad=True) for heads in (H, K, K, 1))
    s = s[0, 0, :H, 0].detach().requires_grad_()
    frame = Frame((B, new), q.device, 0, None if documents is None else documents.cuda())
    may = frame.allowed(rule.window, new)
    fast = attend(q, k, v, frame, PositionModule(), rule, s if sinks else None)
    plain = plain_attention(q, k, v, may, None, rule, s if sinks else None)
    with torch.backends.cuda.flags(fp32_precision="ieee"):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)
    leaves = [q, k, v, *([s] if sinks else [])]
    pair = [torch.autograd.grad(y, leaves, torch.ones_like(plain)) for y in (fast, plain)]
    for one, other in zip(*pair, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_caps_and_sinks_are_those_of_transformers():
    q, k, v, s = inputs(13, 13, torch.float32)
    mask = torch.zeros(13, 13).masked_fill(torch.ones(13, 13, dtype=torch.bool).triu(1), float("-inf"))[None, None]
    module = SimpleNamespace(num_key_value_groups=H // K, training=False, sinks=s, head_dim=E)
    frame, position = Frame((B, 13), q.device), PositionModule()
    theirs, _ = gemma_2(module, q, k, v, mask, scaling=0.3, softcap=0.9)
    ours = attend(q, k, v, frame, position, Rule(scale=0.3, softcap=0.9))
    torch.testing.assert_close(ours.transpose(1, 2), theirs)
    theirs, _ = gpt_oss(module, q, k, v, mask, scaling=0.3)
    torch.testing.assert_close(attend(q, k, v, frame, position, Rule(scale=0.3), s).transpose(1, 2), theirs)


@pytest.mark.parametrize("chunk", [128, 2])
def test_gradients_are_finite_differences(chunk, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    position, rule = Distance().double(), Rule(window=3, softcap=1.3)
    frame = Frame((1, 5), torch.device("cpu"), 0, torch.tensor([[-1, 2, 2, 2, 2]]))
    leaves = [torch.randn(1, heads, 5, 2, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1)]
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k, v, s: attend(q, k, v, frame, position, rule, s), (*leaves, sinks))


class Largest(TorchDispatchMode):
    """Remembers the most values that any tensor made inside it has."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Call `func` and look at what it gives."""
        made = func(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.itemsize for leaf in tree_leaves(made) if torch.is_tensor(leaf)
        ]
        self.values = max(self.values, *sizes, 0)
        return made


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize(("rule", "sinks"), RULES.values(), ids=RULES)
def test_no_tensor_is_a_square(rule, sinks, biased, packed, monkeypatch):
    """Twice the tokens make the largest tensor of a forward and backward pass at most twice as large."""
    monkeypatch.setattr(kernels, "CHUNK", 8)
    largest = []
    for tokens in (64, 128):
        position = Distance() if biased else PositionModule()
        q, k, v, s = inputs(tokens, tokens, torch.float32)
        documents = torch.zeros(B, tokens, dtype=torch.int64) if packed else None
        with Largest() as seen:
            y = attend(q, k, v, Frame((B, tokens), q.device, 0, documents), position, rule, s if sinks else None)
            y.sum().backward()
        largest.append(seen.values)
    assert largest[1] <= 2 * largest[0]
    assert largest[1] < B * H * 128 * 128 / 4


def test_a_window_costs_what_it_admits():
    """Counted FLOP grow with the tokens, and are at most those of the window and a chunk before every token."""
    counts = []
    for tokens in (1024, 2048):
        q, k, v, _ = inputs(tokens, tokens, torch.float32)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            attend(q, k, v, Frame((B, tokens), q.device), PositionModule(), Rule(window=64)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] < 2.1 * counts[0]
    forward = 4 * B * H * 2048 * E * (64 + kernels.CHUNK)
    assert 0 < counts[1] <= 3.5 * forward


@pytest.mark.parametrize(("part", "rule"), [(ALiBi(), Rule()), (ALiBi(factor=0.5), Rule(scale=0.7))], ids=str)
def test_a_bias_that_is_a_channel_is_the_bias(part, rule, monkeypatch):
    q, k, v, _ = inputs(19, 19)
    position = build(part, E)
    bias = position.bias(Frame((B, 19), q.device), 19, H)
    plain = plain_attention(q, k, v, None, bias, rule)
    hold(attend(q, k, v, Frame((B, 19), q.device), position, rule), plain, [q, k, v])
    monkeypatch.setattr(kernels, "RAMP", 0)
    hold(attend(q, k, v, Frame((B, 19), q.device), position, rule), plain, [q, k, v])


def test_a_channel_is_as_exact_as_a_mask_over_the_tokens_it_is_used_for(monkeypatch):
    """Both in fp32, against scores in float64."""
    T = kernels.RAMP
    q, k, v, _ = (leaf.detach().float() for leaf in inputs(T, T, torch.float64))
    position, frame = build(ALiBi(), E), Frame((B, T), q.device)
    exact = plain_attention(q.double(), k.double(), v.double(), None, position.bias(frame, T, H).double())
    ramp = attend(q, k, v, frame, position, Rule())
    monkeypatch.setattr(kernels, "RAMP", 0)
    mask = attend(q, k, v, frame, position, Rule())
    errors = [(found.double() - exact).abs().max().item() for found in (ramp, mask)]
    assert errors[0] < 1e-5 and errors[1] < 1e-5, errors
