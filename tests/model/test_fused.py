"""One-pass functions against the operations they stand for, in fp64; the same bits on any number of threads."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from nachim.model import build, fused
from nachim.model.attention import AttentionModule
from nachim.model.decoder import initialise
from nachim.model.frame import Frame
from nachim.model.fused import CrossEntropy, Gate, Norm
from nachim.model.position import PositionModule, RoPEModule
from nachim.spec import Attention, Decoder, RoPE, SwiGLU
from tests.plainly import plainly

pytestmark = pytest.mark.skipif(fused.library() is None, reason="this machine has no compiler")


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(function, *inputs):
    """The result, and the gradients of its product with what was drawn, by every input that is a number."""
    inputs = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    sum((y.flatten() * drawn(y.numel(), seed=9).to(y)).sum() for y in results).backward()
    return [y.detach() for y in results] + [x.grad for x in inputs if isinstance(x, torch.Tensor)]


def check(found, wanted, rtol=2e-5):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=rtol * float(other.abs().max()))


@pytest.mark.parametrize("shape", [(1, 3), (3, 7), (2, 65, 40), (130, 256)])
def test_a_norm_and_its_gradients(shape):
    x, gain = drawn(*shape), drawn(shape[-1], seed=1)
    found = gradients(lambda x, g: Norm.apply(x, g, 1e-6), x, gain)
    wanted = gradients(lambda x, g: F.rms_norm(x, g.shape, g, 1e-6), x.double(), gain.double())
    check(found, wanted)


def test_a_norm_reads_what_does_not_stand_in_one_piece():
    x, gain = drawn(5, 4, 16), drawn(16, seed=1)
    found = gradients(lambda x, g: Norm.apply(x.transpose(0, 1), g, 1e-6), x, gain)
    check(found, gradients(lambda x, g: F.rms_norm(x.transpose(0, 1), (16,), g, 1e-6), x.double(), gain.double()))


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_a_gate_and_its_gradients(scale):
    def plain(x):
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    x = drawn(3, 70, 26, scale=scale)
    check(gradients(Gate.apply, x), gradients(plain, x.double()))


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("position", [None, RoPE()])
@pytest.mark.parametrize("packed", [False, True])
def test_heads_are_those_of_torchs_operations(previous, norm, position, packed):
    part = Attention(n_heads=4, n_kv_heads=2, d_head=6, qk_norm=norm, previous_key=previous)
    module = AttentionModule(part, 24)
    place = build(position, 24) if position else PositionModule()
    documents = torch.tensor([0] * 3 + [1] * 40 + [2] * 27).repeat(2, 1) if packed else None
    frame = Frame((2, 70), torch.device("cpu"), 0, documents)
    gains = [drawn(6, seed=2), drawn(6, seed=3)] if norm else []

    def heads(qkv, *gains):
        for name, gain in zip(("q_norm", "k_norm"), gains, strict=False):
            del getattr(module, name).weight
            getattr(module, name).weight = gain
        fuses = module._fuses(qkv, place)
        assert fuses == (qkv.dtype == torch.float32)
        return module._fused(qkv, frame, place) if fuses else module._heads(qkv, frame, place, None)

    qkv = drawn(2, 70, sum(module.rows) * 6)
    check(gradients(heads, qkv, *gains), gradients(heads, qkv.double(), *(gain.double() for gain in gains)))


def test_what_a_position_does_of_its_own_is_done():
    class Doubled(RoPEModule):
        def turn(self, x_BHTE, frame):
            return 2 * x_BHTE

    module = AttentionModule(Attention(n_heads=2, n_kv_heads=2, d_head=4), 8)
    qkv = drawn(1, 3, 24).requires_grad_()
    assert module._fuses(qkv, build(RoPE(), 8))
    assert not module._fuses(qkv, Doubled(RoPE()))
    assert not module._fuses(qkv, build(RoPE(dim=2), 8))
    with torch.no_grad():
        assert not module._fuses(qkv, build(RoPE(), 8))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_cross_entropy_and_its_gradients(scale):
    x, weight = drawn(130, 8, scale=scale), drawn(50, 8, seed=1)
    targets = torch.randint(50, (130,), generator=torch.Generator().manual_seed(2))
    targets[::7] = -100
    found = gradients(lambda x, w: CrossEntropy.apply(x, w, targets), x, weight)
    wanted = gradients(
        lambda x, w: F.cross_entropy(x @ w.mT, targets, ignore_index=-100, reduction="sum"), x.double(), weight.double()
    )
    check(found, wanted)


def test_a_target_that_is_no_word_is_refused():
    with pytest.raises(IndexError, match="no word of 5"):
        CrossEntropy.apply(drawn(2, 3), drawn(5, 3), torch.tensor([1, 5]))


def test_what_is_no_number_stays_none():
    logits = CrossEntropy.apply(torch.full((2, 3), float("nan")), drawn(5, 3), torch.tensor([1, 2]))
    assert logits.isnan()
    assert Gate.apply(torch.full((1, 2), float("nan"))).isnan().all()


def decoder(**other):
    spec = Decoder(
        vocab_size=40,
        d_model=16,
        n_layers=2,
        attention=Attention(n_heads=2, n_kv_heads=2, d_head=8, qk_norm=True, previous_key=True),
        ffn=SwiGLU(d_ff=32),
        **other,
    )
    model = build(spec, 16)
    initialise(model, 0)
    torch.nn.init.normal_(model.head.weight, std=0.2)
    return model


def trained(model, ids_BT):
    model.zero_grad()
    loss = model.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    loss.backward()
    return [loss.detach(), *(w.grad.clone() for w in model.parameters())]


def test_a_decoders_gradients_are_those_of_torchs_operations():
    model, ids_BT = decoder(), torch.randint(40, (3, 66), generator=torch.Generator().manual_seed(1))
    found = trained(model, ids_BT)
    check(found, trained(copy.deepcopy(model).double(), ids_BT))
    with plainly():
        check(found, trained(model, ids_BT), rtol=1e-4)


def test_threads_do_not_show():
    module = AttentionModule(Attention(n_heads=2, n_kv_heads=2, d_head=8, qk_norm=True, previous_key=True), 16)
    frame, place, gain = Frame((3, 130), torch.device("cpu")), build(RoPE(), 16), drawn(40, seed=1)
    logits, targets = drawn(390, 40), torch.arange(390) % 40

    def everything():
        module.zero_grad()
        found = gradients(lambda x, g: Norm.apply(x, g, 1e-6), drawn(390, 40), gain)
        found += gradients(Gate.apply, drawn(390, 40)) + gradients(module._fused, drawn(3, 130, 64), frame, place)
        share = logits.clone()
        fused._call("cross_entropy", share, targets, nats := torch.empty(390), 390, 40)
        return [*found, *(norm.weight.grad for norm in (module.q_norm, module.k_norm)), share, nats]

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_a_compiler_torch_computes(tmp_path):
    fused.library.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.warns(UserWarning, match="no-such-compiler.*install g\\+\\+"):
            assert not fused.ready(drawn(2))
    fused.library.cache_clear()
    assert fused.ready(drawn(2))
    assert not fused.ready(drawn(2).double())
    assert not fused.ready(drawn(2).bfloat16())


def test_heads_wider_than_the_function_knows_are_torchs():
    module = AttentionModule(Attention(n_heads=1, n_kv_heads=1, d_head=fused.WIDEST + 2), 8)
    assert not module._fuses(drawn(1, 3, 3 * (fused.WIDEST + 2)), build(RoPE(), 8))
