"""Memory of a device: published tables, sums over all devices, small cases by hand, and real steps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import pytest

from nachim.budget.layout import Job, Layout
from nachim.budget.memory import FRAGMENTATION, memory
from nachim.budget.pipeline import stage_blocks
from nachim.budget.states import Held, held_by_stage, states
from nachim.spec import MLA, MLP, Attention, Decoder, LayerNorm, Learned, MoE, Pattern, SwiGLU, UserError, plain

LLAMA = Decoder(
    vocab_size=32_000,
    d_model=4096,
    n_layers=32,
    attention=Attention(n_heads=32, n_kv_heads=32, d_head=128),
    ffn=SwiGLU(d_ff=11_008),
)
SPARSE = Decoder(
    vocab_size=1024,
    d_model=64,
    n_layers=5,
    attention=MLA(n_heads=4, d_head=16, rank=32, rope_dim=8),
    ffn=Pattern(first=(SwiGLU(d_ff=96),), parts=(MoE(d_ff=32, experts=8, active=2, shared=1),)),
)
GPT = Decoder(
    vocab_size=1000,
    d_model=64,
    n_layers=4,
    attention=Attention(n_heads=4, n_kv_heads=4, d_head=16, bias="all"),
    ffn=MLP(d_ff=256, bias=True),
    norm=LayerNorm(),
    position=Learned(length=128),
    tied=True,
)
PAPER = {"precision": "bf16", "fp32_gradients": False}


def job(model: Decoder = LLAMA, seq_len: int = 128, sequences: int = 64, **fields: Any) -> Job:
    """A job of few tokens."""
    return Job(model=model, seq_len=seq_len, batch_tokens=seq_len * sequences, **fields)


def held_states(found: Any) -> int:
    """Bytes of weights, gradients, optimizer state and fp32 weights."""
    return found.weights + found.gradients + found.optimizer + found.master


@pytest.mark.parametrize(
    ("devices", "billions", "gigabytes"),
    [
        (1, 7.5, (120, 120, 120)),
        (4, 7.5, (52.5, 41.3, 30)),
        (16, 7.5, (35.6, 21.6, 7.5)),
        (64, 7.5, (31.4, 16.6, 1.88)),
        (256, 7.5, (30.4, 15.4, 0.47)),
        (1024, 7.5, (30.1, 15.1, 0.12)),
        (64, 128, (536, 284, 32)),
        (1024, 1000, (4011, 2013, 15.6)),
    ],
)
def test_zero_divides_as_published(devices: int, billions: float, gigabytes: tuple[float, ...]) -> None:
    """Table 1 of arXiv 1910.02054: stages 1, 2 and 3, decimal GB, as it rounds them."""
    for zero, expected in zip((1, 2, 3), gigabytes, strict=True):
        found = states(Held(matrices=billions * 1e9), job(**PAPER), Layout(dp=devices, zero=zero))
        total = found.weights + found.gradients + found.optimizer + found.master
        assert total / 1e9 == pytest.approx(expected, rel=0.03 if expected < 1 else 0.01)


@pytest.mark.parametrize("model", [LLAMA, GPT, SPARSE])
def test_adam_takes_sixteen_bytes_a_parameter(model: Decoder) -> None:
    """arXiv 1910.02054, sec. 3.1; eighteen where gradients are summed in fp32; sixteen in plain fp32."""
    full = {"sequences": 2}  # more micro-batches than one: gradients stand throughout
    assert held_states(memory(job(model, **full, **PAPER), Layout())) == 16 * model.params_total
    assert held_states(memory(job(model, **full), Layout())) == 18 * model.params_total
    assert held_states(memory(job(model, **full, precision="fp32"), Layout())) == 16 * model.params_total


def test_seven_billion_with_zero_3_is_cut_by_the_devices() -> None:
    found = memory(job(**PAPER), Layout(dp=64, zero=3))
    assert held_states(found) == pytest.approx(16 * LLAMA.params_total / 64, abs=4)


def test_optimizers_keep_what_their_rules_need() -> None:
    """For block matrices Muon one momentum, 8-bit AdamW two bytes and two scales for 256 values; AdamW for the rest."""
    blocks = sum(layer.matmul_params(4096) for layer in LLAMA.blocks[0].layers) * 32
    tables, vectors = 2 * 32_000 * 4096, 65 * 4096
    assert blocks + tables + vectors == LLAMA.params_total
    found = {name: memory(job(optimizer=name), Layout()).optimizer for name in ("adamw", "muon", "adamw8bit")}
    assert found["adamw"] == 8 * LLAMA.params_total
    assert found["muon"] == 4 * blocks + 8 * (tables + vectors)
    assert found["adamw8bit"] == 2 * blocks * 260 // 256 + 8 * (tables + vectors)
    free = memory(job(optimizer="schedule-free", precision="fp32"), Layout())
    assert (free.optimizer, free.master) == (found["adamw"], 4 * LLAMA.params_total)


@pytest.mark.parametrize("model", [LLAMA, GPT, SPARSE])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2), (4, 4)])
def test_devices_of_one_replica_hold_the_model_once(model: Decoder, tp: int, pp: int) -> None:
    """Over all stages and tensor-parallel devices: every cut parameter once, vectors and uncut matrices on each."""
    layout = Layout(tp=tp, pp=pp)
    stages = stage_blocks(model, layout)
    held = [held_by_stage(model, blocks, layout, i == 0, i == pp - 1) for i, blocks in enumerate(stages)]
    whole = sum(
        (1 - 1 / tp) * matrix.params
        for block in model.blocks
        for layer in block.layers
        for matrix in layer.matrices(model.d_model)
        if matrix.split is None
    )
    vectors = sum(stage.vectors for stage in held) * (1 - 1 / tp)
    positions = model.position.params(model.d_model) * (1 - 1 / tp)
    copy = model.vocab_size * model.d_model / tp if model.tied and pp > 1 else 0
    assert sum(stage.total for stage in held) - whole - vectors - positions - copy == pytest.approx(
        model.params_total / tp
    )


def test_experts_are_dealt_out_and_sharded_over_fewer_copies() -> None:
    """SPARSE by hand: 4 layers of 8 experts of 3 x 64 x 32; on 8 replicas of which 4 share the experts."""
    experts = 4 * 8 * 3 * 64 * 32
    rest = SPARSE.params_total - experts
    layout = Layout(dp=8, ep=4)
    assert memory(job(SPARSE, precision="fp32"), layout).weights == 4 * (rest + experts // 4)
    assert memory(job(SPARSE, precision="fp32"), replace(layout, zero=1)).optimizer == 8 * (rest + experts) // 8
    cut = memory(job(SPARSE, precision="fp32"), replace(layout, zero=3))
    assert cut.weights == pytest.approx(4 * (rest / 8 + experts / 4 / 2), abs=1)


def test_fullest_stage_is_found() -> None:
    """The first holds most micro-batches; the last, where the vocabulary outweighs them."""
    deep = plain(d_model=64, n_layers=8, d_head=16, vocab_size=64)
    wide = plain(d_model=64, n_layers=8, d_head=16, vocab_size=50_000)
    layout = Layout(pp=4)
    assert (memory(job(deep), layout).stage, memory(job(deep), layout).logits) == (0, 0)
    last = memory(job(wide), layout)
    assert (last.stage, last.moment, last.logits) == (3, "loss", 12 * 128 * 50_000)


def test_schedules_hold_activations_in_the_published_shares() -> None:
    """Of 1F1B's: all 64 micro-batches for 4, 1 + 3 / 8 interleaved, the same; the head's input is the last per cent."""
    deep = plain(d_model=64, n_layers=64, d_head=16, vocab_size=64)
    layouts = [Layout(pp=4, schedule=schedule) for schedule in ("1f1b", "gpipe", "zero-bubble")]
    layouts.append(Layout(pp=4, schedule="interleaved", virtual=2))
    simple, gpipe, zero_bubble, interleaved = (memory(job(deep), layout).activations for layout in layouts)
    assert gpipe / simple == pytest.approx(64 / 4, rel=0.01)
    assert zero_bubble / simple == pytest.approx(1, rel=0.01)
    assert interleaved / simple == pytest.approx(1 + 3 / 8, rel=0.01)


def test_each_way_of_saving_saves() -> None:
    """Recomputation, tensor, sequence and context parallelism, ZeRO and offloading each lower the total."""
    ways = [Layout(dp=2, recompute=recompute) for recompute in ("none", "selective", "full")]
    ways += [Layout(dp=2, recompute="full", zero=zero) for zero in (1, 2, 3)]
    ways += [Layout(dp=2, recompute="full", zero=3, offload=True)]
    long = job(seq_len=4096, sequences=8)
    totals = [memory(long, layout).total for layout in ways]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    for wider in (Layout(tp=8), Layout(dp=4, cp=4, zero=1), Layout(tp=8, sequence_parallel=True)):
        narrower = replace(wider, tp=8 if wider.sequence_parallel else 1, cp=1, sequence_parallel=False)
        assert memory(long, wider).total < memory(long, narrower).total


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_offloading_moves_to_the_host_and_loses_nothing(recompute: Literal["none", "full"]) -> None:
    """Optimizer state, fp32 weights, and the activations of all layers but two."""
    at_home = memory(job(seq_len=4096), Layout(dp=2, zero=1, recompute=recompute))
    away = memory(job(seq_len=4096), Layout(dp=2, zero=1, recompute=recompute, offload=True))
    assert (away.optimizer, away.master, away.weights) == (0, 0, at_home.weights)
    layers = at_home.host + at_home.activations - away.activations
    assert away.host == pytest.approx(at_home.optimizer + at_home.master + layers, rel=1e-6)


def test_parts_add_up_and_gaps_are_of_what_moves() -> None:
    found = memory(job(seq_len=2048), Layout(dp=8, zero=3))
    values = found.as_dict()
    parts = ("weights", "gradients", "optimizer", "master", "activations", "logits", "buffers", "fragmentation")
    assert sum(values[name] for name in parts) == values["total"] == found.total
    moving = found.activations + found.logits + found.buffers
    assert found.fragmentation == pytest.approx(FRAGMENTATION * moving, abs=2)
    assert json.loads(json.dumps(values)) == values
    assert memory(job(seq_len=2048), Layout(dp=8, zero=3), "cpu").fragmentation == 0


def test_one_device_that_takes_a_batch_at_once_has_no_gradients_in_the_forward_pass() -> None:
    wordy = replace(GPT, vocab_size=16_000)
    once = memory(job(wordy, sequences=8), Layout(micro_batch=8))
    twice = memory(job(wordy, sequences=16), Layout(micro_batch=8))
    assert (once.moment, once.gradients) == ("loss", 0)
    assert (twice.moment, twice.gradients) == ("loss", 4 * wordy.params_total)
    assert twice.activations == once.activations


@pytest.mark.parametrize(
    ("model", "layout", "said"),
    [
        (SPARSE, Layout(dp=3, ep=3), "must divide the model's experts=8"),
        (SPARSE, Layout(pp=8), "only 5 layers"),
        (GPT, Layout(pp=2, virtual=3, schedule="interleaved"), "only 4 layers"),
    ],
)
def test_impossible_layouts_are_refused(model: Decoder, layout: Layout, said: str) -> None:
    with pytest.raises(UserError, match=said):
        memory(job(model), layout)
