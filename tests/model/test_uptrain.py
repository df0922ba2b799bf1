"""Fewer key-value heads: the same function where the heads that are pooled agree, their mean where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nachim.model import DecoderModule, build
from nachim.model.decoder import tensors
from nachim.model.load import module_of
from nachim.model.uptrain import pooled
from nachim.spec import MTP, Attention, Decoder, GatedDeltaNet, Pattern, SwiGLU, UserError, plain
from tests.spec.examples import decoder

E, HEADS = 8, 4
OPTIONS = {
    "plain": {},
    "previous key": {"previous_key": True, "qk_norm": True},
    "biases": {"bias": "all"},
    "norm over all": {"qk_norm": True, "qk_norm_over": "all", "previous_key": True, "bias": "qkv"},
    "window and sinks": {"window": 5, "sinks": True},
}
IDS = torch.randint(300, (2, 15), generator=torch.Generator().manual_seed(0))


def drawn(spec: Decoder) -> DecoderModule:
    """A decoder with every weight away from where it starts."""
    model = build(spec, spec.d_model)
    for weight in model.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.2)
    return model


def repeated(part: Attention, weights: dict[str, torch.Tensor], n_kv_heads: int) -> dict[str, torch.Tensor]:
    """The weights of `n_kv_heads` equal heads in the place of each of the part's."""
    found, times = dict(weights), n_kv_heads // part.n_kv_heads
    for name, weight in weights.items():
        if "attention.qkv" in name:
            heads = list(weight.split(E))
            asked, others = heads[: part.n_heads], heads[part.n_heads :]
            found[name] = torch.cat([*asked, *(head for head in others for _ in range(times))])
        elif name.endswith("k_norm.weight") and part.qk_norm_over == "all":
            found[name] = torch.cat([gain for gain in weight.split(E) for _ in range(times)])
    return found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("n_kv_heads", [2, 1])
def test_equal_heads_are_one_head(n_kv_heads, options):
    small = decoder(n_kv_heads=n_kv_heads, **options)
    model = drawn(small)
    wide = decoder(n_kv_heads=HEADS, **options)
    weights = repeated(small.attention, {name: held.detach() for name, held in tensors(model).items()}, HEADS)
    spec, found = pooled(wide, weights, n_kv_heads)
    assert spec == small
    with torch.no_grad():
        wanted = module_of(wide, weights)(IDS)
        torch.testing.assert_close(module_of(spec, found)(IDS), wanted)
        torch.testing.assert_close(model.eval()(IDS), wanted)
    assert found.keys() == weights.keys()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.detach())


def test_other_heads_are_their_mean():
    spec = decoder(previous_key=True, bias="qkv", n_kv_heads=4)
    weights = {name: held.detach() for name, held in tensors(drawn(spec)).items()}
    _, found = pooled(spec, weights, 2)
    for name in ("weight", "bias"):
        before = list(weights[f"blocks.1.attention.qkv.{name}"].split(E))
        after = list(found[f"blocks.1.attention.qkv.{name}"].split(E))
        assert len(before) == 4 + 3 * 4
        assert len(after) == 4 + 3 * 2
        torch.testing.assert_close(torch.stack(after[:4]), torch.stack(before[:4]), rtol=0, atol=0)
        pairs = zip(before[4::2], before[5::2], strict=True)
        torch.testing.assert_close(torch.stack(after[4:]), torch.stack([(one + other) / 2 for one, other in pairs]))
    torch.testing.assert_close(found["blocks.1.attention.out.weight"], weights["blocks.1.attention.out.weight"])


def test_precision_stays_and_the_mean_is_taken_in_fp32():
    spec = decoder()
    weights = {name: held.detach().bfloat16() for name, held in tensors(drawn(spec)).items()}
    _, found = pooled(spec, weights, 1)
    got = found["blocks.0.attention.qkv.weight"].split(E)[HEADS]
    heads = torch.stack(weights["blocks.0.attention.qkv.weight"].split(E)[HEADS : 2 * HEADS])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, heads.float().mean(0).bfloat16(), rtol=0, atol=0)


def test_every_attention_of_a_pattern_and_of_what_looks_further():
    wide = Attention(n_heads=4, n_kv_heads=4, d_head=8, window=6)
    state = GatedDeltaNet(n_heads=2, n_key_heads=2, d_key=8, d_value=8)
    spec = Decoder(
        vocab_size=300,
        d_model=32,
        n_layers=3,
        attention=Pattern(first=(wide,), parts=(state, wide)),
        ffn=SwiGLU(d_ff=24),
        mtp=MTP(depth=1),
    )
    weights = {name: held.detach() for name, held in tensors(drawn(spec)).items()}
    found_spec, found = pooled(spec, weights, 1)
    assert [getattr(block.mixer, "n_kv_heads", None) for block in found_spec.blocks] == [1, None, 1]
    model = module_of(found_spec, found)
    assert model(IDS).isfinite().all()
    changed = [name for name in found if found[name].shape != weights[name].shape]
    assert changed == [f"{where}.attention.qkv.weight" for where in ("blocks.0", "blocks.2", "mtp.0.block")]


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (3, "Attention.n_kv_heads is 4; it cannot be pooled into 3, which must divide it"),
        (8, "Attention.n_kv_heads is 4; it cannot be pooled into 8, which must divide it"),
        (0, "Attention.n_kv_heads is 4; it cannot be pooled into 0, which must divide it"),
        (4, "no attention of this decoder has another number of key-value heads than 4"),
    ],
)
def test_heads_that_do_not_divide_are_refused(heads, said):
    spec = plain(d_model=32, n_layers=2, d_head=8, vocab_size=300)
    weights = {name: held.detach() for name, held in tensors(drawn(spec)).items()}
    with pytest.raises(UserError, match=said):
        pooled(spec, weights, heads)
