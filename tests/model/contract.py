"""What every decoder must keep, whatever its parts: costs as declared, and one answer however its tokens arrive."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from nachim.model import DecoderModule, build
from nachim.model.cache import documents_of
from nachim.model.decoder import initialise
from nachim.spec import Decoder

T = 18


def drawn(spec: Decoder) -> DecoderModule:
    """A decoder whose vectors are away from where they start, and whose head says something."""
    model = build(spec, spec.d_model)
    initialise(model, 0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim < 2:
                weight.add_(0.1 * torch.randn_like(weight))
    nn.init.normal_(model.head.weight, std=spec.d_model**-0.5)
    return model.eval()


def close(one: Tensor, other: Tensor, what: str) -> None:
    """Hold two logits against each other, to rounding."""
    torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4, msg=lambda found: f"{what}: {found}")


def hold(spec: Decoder) -> None:
    """Every clause of the contract."""
    model = drawn(spec)
    ids_BT = torch.randint(spec.vocab_size, (2, T))
    with torch.inference_mode():
        whole_BTV = model(ids_BT)
        hold_costs(spec, model)
        hold_cache(spec, model, ids_BT, whole_BTV)
        hold_documents(model, ids_BT)
        hold_padding(model, ids_BT)
        hold_causality(model, ids_BT, whole_BTV)
    hold_gradients(model, ids_BT)
    hold_precision(spec, model, ids_BT)


def hold_costs(spec: Decoder, model: DecoderModule) -> None:
    """Declared parameters are the counted ones."""
    assert sum(weight.numel() for weight in model.parameters()) == spec.params_total


def hold_cache(spec: Decoder, model: DecoderModule, ids_BT: Tensor, whole_BTV: Tensor) -> None:
    """Token by token, and in chunks, give what all at once gives; the cache has the declared bytes."""
    for cuts in ([1] * T, [7, 1, 1, 5, T - 14]):
        cache = model.start()
        parts = [model(part_BT, cache=cache) for part_BT in ids_BT.split(cuts, 1)]
        close(torch.cat(parts, 1), whole_BTV, f"read in pieces of {cuts}")
        assert cache.nbytes == len(ids_BT) * spec.cache_bytes(T, value_bytes=4)
    forked = cache.select(torch.tensor([1, 1, 0]))
    next_B1 = torch.tensor([[3], [3], [5]])
    close(model(next_B1, cache=forked)[0], model(torch.cat((ids_BT[1:], next_B1[:1]), 1))[0, -1:], "a forked cache")


@torch.inference_mode()
def hold_precision(spec: Decoder, model: DecoderModule, ids_BT: Tensor) -> None:
    """In bf16, which this moves the model to, the cache has the declared bytes too: states that add up stay fp32."""
    model.eval().to(torch.bfloat16)
    cache = model.start()
    for part_BT in ids_BT.split([7, 1, T - 8], 1):
        assert model(part_BT, cache=cache).isfinite().all()
    assert cache.nbytes == len(ids_BT) * spec.cache_bytes(T, value_bytes=2)


def hold_documents(model: DecoderModule, ids_BT: Tensor) -> None:
    """A packed document gives what it gives alone, with and without a cache that ends inside it."""
    documents_BT = torch.tensor([[4] * 5 + [1] * 1 + [4] * (T - 6), [0] * 9 + [3] * (T - 9)])
    packed_BTV = model(ids_BT, documents_BT)
    cache = model.start()
    parts = zip(ids_BT.split([7, 4, T - 11], 1), documents_BT.split([7, 4, T - 11], 1), strict=True)
    close(torch.cat([model(*part, cache=cache) for part in parts], 1), packed_BTV, "packed, in pieces")
    for row, edges in enumerate(([0, 5, 6, T], [0, 9, T])):
        for begin, end in itertools.pairwise(edges):
            alone = model(ids_BT[row : row + 1, begin:end])
            close(packed_BTV[row : row + 1, begin:end], alone, f"row {row}, tokens {begin} to {end}, packed")


def hold_padding(model: DecoderModule, ids_BT: Tensor) -> None:
    """Padding on the left changes nothing, and decoding goes on after it."""
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :6] = 0
    cache = model.start()
    padded_BTV = model(ids_BT[:, :-1], documents_of(mask_BT[:, :-1]), cache=cache)
    assert padded_BTV.isfinite().all()
    last_BTV = model(ids_BT[:, -1:], cache=cache)
    alone = model(ids_BT[:1, 6:])
    close(torch.cat((padded_BTV[:1, 6:], last_BTV[:1]), 1), alone, "padded on the left")
    close(torch.cat((padded_BTV[1:], last_BTV[1:]), 1), model(ids_BT[1:]), "beside a padded row")


def hold_causality(model: DecoderModule, ids_BT: Tensor, whole_BTV: Tensor) -> None:
    """A later token changes nothing before it."""
    changed = ids_BT.clone()
    changed[:, 9] = (changed[:, 9] + 1) % model.spec.vocab_size
    after = model(changed)
    close(after[:, :9], whole_BTV[:, :9], "tokens before a changed one")
    assert (after[:, 9] - whole_BTV[:, 9]).abs().max() > 0


def hold_gradients(model: DecoderModule, ids_BT: Tensor) -> None:
    """Every parameter that training owns gets a finite gradient, somewhere not zero."""
    model.train()
    model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, f"{name} has no gradient"
        assert weight.grad.isfinite().all(), f"{name} has a gradient that is not finite"
        assert weight.grad.abs().max() > 0, f"{name} has a gradient of zero"
