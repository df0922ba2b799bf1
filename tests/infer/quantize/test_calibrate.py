"""What matrices read is what a plain pass gives them, and later blocks read what changed ones before give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nachim.infer.quantize import calibrate as module
from nachim.infer.quantize.calibrate import calibrate, watching
from nachim.infer.quantize.method import quantised
from nachim.model.frame import Frame
from nachim.model.quantized.grid import nearest
from nachim.spec import Attention, Decoder, Int4, MoE, SwiGLU, UserError
from tests.model.contract import drawn

PLAIN = Decoder(
    vocab_size=61,
    d_model=16,
    n_layers=2,
    attention=Attention(n_heads=2, n_kv_heads=1, d_head=8),
    ffn=SwiGLU(d_ff=24),
)
EXPERTS = replace(PLAIN, ffn=MoE(experts=5, active=2, d_ff=8))
NAMES = ["attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"]
SCHEME = Int4(group=8)


def text(sequences: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(61, (sequences, 20), generator=torch.Generator().manual_seed(seed))


def test_what_is_seen_is_what_the_matrices_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of two, against the inputs of one whole pass."""
    monkeypatch.setattr(module, "ROWS", 2)
    model, read, sights = drawn(PLAIN), {}, {}
    calibrate(model, text().numpy(), lambda layer, block, sight: sights.update({layer: sight}))
    for name, one in model.named_modules():
        if isinstance(one, torch.nn.Linear) and name.startswith("blocks."):
            one.register_forward_pre_hook(lambda _, inputs, name=name: read.update({name: inputs[0].flatten(0, 1)}))
    model(text())
    for layer in range(2):
        assert sorted(sights[layer]) == sorted(NAMES)
        for name, (seen,) in sights[layer].items():
            x = read[f"blocks.{layer}.{name}"].double()
            torch.testing.assert_close(seen.moments_II, x.mT @ x, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(seen.magnitude_I, x.abs().sum(0), rtol=1e-5, atol=1e-5)
            assert seen.rows == 60


def test_experts_see_their_own_tokens() -> None:
    model = drawn(EXPERTS)
    block, frame = model.blocks[0], Frame((3, 20), torch.device("cpu"))
    with watching(block) as sight:
        block(model.embed(text(), frame), frame)
    assert sum(seen.rows for seen in sight["ffn.experts.gate_up"]) == 2 * 60
    assert [seen.rows for seen in sight["ffn.experts.gate_up"]] == [seen.rows for seen in sight["ffn.experts.down"]]
    assert sight["ffn.experts.down"][0].moments_II.shape == (8, 8)


def test_later_blocks_read_what_changed_ones_give() -> None:
    model, sights = drawn(PLAIN), []

    def change(layer: int, block: torch.nn.Module, sight: dict) -> None:
        sights.append(sight)
        if layer == 0:
            block.ffn.down.weight.mul_(3)
            block.attention.out.weight.mul_(0)

    calibrate(model, text().numpy(), change)
    again: list[dict] = []
    calibrate(model, text().numpy(), lambda layer, block, sight: again.append(sight))
    torch.testing.assert_close(again[1]["attention.qkv"][0].moments_II, sights[1]["attention.qkv"][0].moments_II)
    assert not torch.allclose(again[0]["ffn.down"][0].moments_II, sights[0]["ffn.down"][0].moments_II)


def test_progress_is_told_and_hooks_are_gone() -> None:
    model, told = drawn(PLAIN), []
    calibrate(model, text().numpy(), lambda *_: None, lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_a_model_that_is_not_finite_is_refused_by_name() -> None:
    model = drawn(PLAIN)
    with torch.no_grad():
        model.blocks[0].ffn.gate_up.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"blocks\.0\.ffn\.down reads values that are not finite"):
        calibrate(model, text().numpy(), lambda *_: None)


@pytest.mark.parametrize("spec", [PLAIN, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_model_becomes_its_codes_and_gives_nearly_what_it_gave(spec: Decoder, method: str) -> None:
    """Matrices are the decoded codes, also those of experts no token reached; only they and AWQ's gains changed."""
    model, plain = drawn(spec), drawn(spec)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    plain.load_state_dict(model.state_dict())
    names = [name for name in before if name.startswith("blocks.") and before[name].ndim > 1]
    names = [name for name in names if "router" not in name]
    ids = text(2 if spec is EXPERTS else 24)
    logits = model(ids).detach()
    coded = quantised(model, names, SCHEME, method, ids.numpy())
    assert list(coded) == names
    for name, each in coded.items():
        decoded = torch.stack([one.decode() for one in each])
        weight = model.get_parameter(name)
        torch.testing.assert_close(decoded.view_as(weight), weight.detach())
        rounded = plain.get_parameter(name).data
        for matrix in rounded if rounded.ndim == 3 else rounded[None]:
            matrix.copy_(nearest(matrix, SCHEME).decode())
    others = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    others -= set(names)
    assert all("norm" in name or "router" in name for name in others) and bool(others) == (method == "awq")
    if spec is PLAIN:
        assert (model(ids) - logits).square().mean() < (plain(ids) - logits).square().mean()


def test_matrices_that_no_block_holds_are_rounded_to_nearest() -> None:
    model = drawn(PLAIN)
    head = model.head.weight.detach().clone()
    (coded,) = quantised(model, ["head.weight"], SCHEME, "gptq", text().numpy())["head.weight"]
    assert torch.equal(coded.codes_OI, nearest(head, SCHEME).codes_OI)
    assert torch.equal(model.head.weight, coded.decode())
