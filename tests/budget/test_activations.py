"""What layers keep for the backward pass: against the published formula, against autograd, and counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nachim.budget.activations import CAPACITY, kept, logit_bytes
from nachim.budget.layout import Job, Layout
from nachim.budget.shape import shape
from nachim.model import build
from nachim.model.decoder import DecoderModule
from nachim.model.frame import Frame
from nachim.model.position import turns
from nachim.spec import MLP, Attention, Decoder, LayerNorm, Learned, MoE, SwiGLU
from tests.plainly import plainly

H, A, S, B = 1024, 16, 512, 3
GPT = Decoder(
    vocab_size=1000,
    d_model=H,
    n_layers=2,
    attention=Attention(n_heads=A, n_kv_heads=A, d_head=H // A, bias="all"),
    ffn=MLP(d_ff=4 * H, bias=True),
    norm=LayerNorm(),
    position=Learned(length=S),
)
GPT_JOB = Job(model=GPT, seq_len=S, batch_tokens=S * B)
MASKS, TURNED, ROWS = 2, 4, 2
"""Bytes a token and channel by which the published count and ours differ: dropout masks (theirs), and, ours, queries
and keys once more after the rotation, and the heads' output once more as rows."""


def layer(job: Job, **layout: object) -> float:
    """Bytes of one layer, without the kernel's sums (one a head)."""
    block = job.model.blocks[0]
    sums = job.model.attention.n_heads * 2 * B * S / layout.get("tp", 1)
    return kept(block, job, Layout(micro_batch=B, **layout), "cuda").stored - sums


@pytest.mark.parametrize("t", [1, 2, 4, 8])
def test_transformer_layer_keeps_what_was_published(t: int) -> None:
    """s b h (10 + 24 / t) without the score matrix, which the kernel does not keep (arXiv 2205.05198, eq. 2)."""
    theirs = S * B * H * ((10 - MASKS) + (24 + TURNED + ROWS) / t)
    assert layer(GPT_JOB, tp=t) == pytest.approx(theirs)


@pytest.mark.parametrize("t", [2, 8])
def test_sequence_parallelism_cuts_all_of_it(t: int) -> None:
    """s b h 34 / t (arXiv 2205.05198, eq. 4)."""
    theirs = S * B * H * (34 - MASKS + TURNED + ROWS) / t
    assert layer(GPT_JOB, tp=t, sequence_parallel=True) == pytest.approx(theirs)


def test_full_recomputation_keeps_the_input() -> None:
    """2 s b h (arXiv 2205.05198, table 2)."""
    found = kept(GPT.blocks[0], GPT_JOB, Layout(micro_batch=B, recompute="full"), "cuda")
    everything = kept(GPT.blocks[0], GPT_JOB, Layout(micro_batch=B), "cuda")
    assert found.stored == 2 * S * B * H
    assert found.stored + found.remade == everything.stored


def test_selective_recomputation_lies_between_and_loses_nothing() -> None:
    found = kept(GPT.blocks[0], GPT_JOB, Layout(micro_batch=B, recompute="selective"), "cuda")
    everything = kept(GPT.blocks[0], GPT_JOB, Layout(micro_batch=B), "cuda").stored
    assert 2 * S * B * H < found.stored < everything
    assert found.stored + found.remade == everything


def test_context_parallelism_cuts_the_tokens() -> None:
    block = GPT.blocks[0]
    whole = kept(block, GPT_JOB, Layout(micro_batch=B), "cuda")
    assert kept(block, GPT_JOB, Layout(micro_batch=B, cp=4), "cuda").stored == whole.stored / 4


def by_autograd(module: torch.nn.Module, x: Tensor, run: object) -> int:
    """Bytes of all storages that a forward pass of `module` keeps, its parameters left out."""
    own = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with plainly(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("width", [32, 128])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("previous_key", [True, False])
def test_what_is_declared_is_what_autograd_keeps(width: int, precision: str, previous_key: bool) -> None:
    """A block of the family on a CPU, within 3 %: sums of norms are left out, and bf16 keys counted before the norm."""
    spec = shape(width, 64)
    spec = replace(spec, attention=replace(spec.attention, previous_key=previous_key))
    tokens, rows = 64, 2
    decoder = build(spec, width)
    assert isinstance(decoder, DecoderModule)
    decoder.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    x_BTD = torch.randn(rows, tokens, width).to(decoder.head.weight.dtype).requires_grad_()
    frame, head = Frame((rows, tokens), x_BTD.device), spec.attention.d_head
    counted = by_autograd(decoder.blocks[0], x_BTD, lambda x: decoder.blocks[0](x, frame))
    angles = turns(spec.position, head, tokens, x_BTD.dtype, x_BTD.device)
    counted -= sum(angle.untyped_storage().nbytes() for angle in angles)  # shared by all layers
    job = Job(model=spec, seq_len=tokens, batch_tokens=rows * tokens, precision=precision)
    declared = kept(spec.blocks[0], job, Layout(micro_batch=rows), "cpu").stored
    assert declared == pytest.approx(counted, rel=0.03)


def test_experts_of_other_devices_make_room_for_more_than_the_mean() -> None:
    """d = 8, two experts of width 4 a token, four in all: by hand, with and without dealing them out."""
    attention = Attention(n_heads=1, n_kv_heads=1, d_head=8)
    moe = MoE(d_ff=4, experts=4, active=2)
    sparse = Decoder(vocab_size=16, d_model=8, n_layers=1, attention=attention, ffn=moe)
    dense = replace(sparse, ffn=SwiGLU(d_ff=4))
    jobs = [Job(model=model, seq_len=10, batch_tokens=10) for model in (sparse, dense)]
    base = kept(dense.blocks[0], jobs[1], Layout(), "cuda").stored - 10 * 2 * 4 * 4  # without the widths of its FFN
    routed = 2 * (8 + 8 + 4 * 4)  # of each expert: gathered, scattered, gates, ups, activations, products
    router = 2 * 4
    alone = kept(sparse.blocks[0], jobs[0], Layout(), "cuda").stored
    assert alone == base + 10 * 2 * (routed + router)
    dealt = kept(sparse.blocks[0], jobs[0], Layout(dp=2, ep=2), "cuda").stored
    assert dealt - alone == pytest.approx((CAPACITY - 1) * 10 * 2 * routed)


def test_logits_are_fp32_three_times_and_cut_with_the_vocabulary() -> None:
    assert logit_bytes(GPT_JOB, Layout(), 1) == 12 * S * 1000
    assert logit_bytes(GPT_JOB, Layout(tp=4, cp=2), 1) == 12 * S * 1000 / 8
    assert logit_bytes(GPT_JOB, Layout(), 5) == 4 * 7 * S * 1000  # GPipe: the log-probabilities of all
