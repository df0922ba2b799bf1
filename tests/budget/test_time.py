"""Step times: corner cases of the roofline, bubbles, traffic, and published runs."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from bench.published_runs import LLAMA3_8B, OLMO, TITAN, rows
from nachim.budget.collective import all_reduce, group
from nachim.budget.device import parse_cluster
from nachim.budget.layout import Job, Layout
from nachim.budget.time import (
    ATTENTION,
    BANDWIDTH,
    MATMUL,
    OPTIMIZER_BYTES,
    TENSOR_HIDDEN,
    Clock,
    StepTime,
    bubble_share,
    step_time,
)
from nachim.spec import MLP, Attention, Cluster, Decoder, Mamba2, Matrix, MoE, UserError, plain

ONE, NODE = parse_cluster("H100"), parse_cluster("8xH100")
JOB = Job(model=LLAMA3_8B, seq_len=4096, batch_tokens=4096 * 32)
PLAIN = plain(d_model=1024, n_layers=8, d_head=64, vocab_size=4096)


def step(layout: Layout, cluster: Cluster, job: Job = JOB, **more: bool) -> StepTime:
    return step_time(job, layout, cluster, **more)


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 1), (4, 8), (8, 8), (64, 512)])
def test_bubbles_against_the_papers(stages, micro_batches):
    """arXiv 2104.04473: idle over ideal time is (p - 1) / m, a v-th interleaved; over the whole (p-1) / (m+p-1)."""
    one = bubble_share("1f1b", stages, micro_batches)
    assert one == bubble_share("gpipe", stages, micro_batches) == (stages - 1) / micro_batches
    assert one / (1 + one) == pytest.approx((stages - 1) / (micro_batches + stages - 1))
    assert bubble_share("interleaved", stages, micro_batches, 4) == pytest.approx(one / 4)
    assert bubble_share("zero-bubble", stages, micro_batches) == pytest.approx(one / 3)


def test_a_pipeline_without_traffic_waits_its_bubble():
    silent = dataclasses.replace(NODE.device, link_bandwidth=1e30, link_latency=0.0)
    found = step(Layout(pp=4, micro_batch=1), Cluster(device=silent, count=4))
    assert found.bubble / found.compute == pytest.approx(3 / 32)
    assert found.communication == pytest.approx(0, abs=1e-9)
    chunks = Layout(pp=4, schedule="interleaved", virtual=4)
    assert step(chunks, Cluster(device=silent, count=4)).bubble == pytest.approx(found.bubble / 4)


def test_large_matrices_run_at_the_arithmetic_rate_and_thin_ones_at_the_memory_s():
    clock, layout = Clock(JOB, ONE), Layout()
    device = ONE.device
    large = Matrix(8192, 8192)
    rate = device.bf16_flops * device.sustained * MATMUL
    assert clock.multiply(large, 8192, layout) == pytest.approx(2 * 8192**3 / rate)
    read = 2 * (8192 * 8192 + 2 * 8192)
    assert clock.multiply(large, 1, layout) == pytest.approx(read / (device.memory_bandwidth * BANDWIDTH))


def test_the_parts_of_one_device_against_arithmetic():
    found, device = step(Layout(micro_batch=4), ONE), ONE.device
    tokens = 4096 * 32
    rate = device.bf16_flops * device.sustained
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4096 * 128256
    assert found.matmul == pytest.approx(6 * weights * tokens / (rate * MATMUL))
    causal = 32 * 4 * 4096 * 4097 / 2  # two products of 2 FLOP for half of the keys, in 32 layers
    assert found.attention == pytest.approx(3.5 * causal * tokens / (rate * ATTENTION))
    held = weights + 4096 * 128256
    assert found.optimizer == pytest.approx(OPTIMIZER_BYTES["adamw"] * held / (device.memory_bandwidth * BANDWIDTH))
    assert found.communication == found.bubble == found.recompute == 0
    assert found.seconds == pytest.approx(found.matmul + found.attention + found.memory + found.optimizer)
    assert found.tokens_per_second == pytest.approx(tokens / found.seconds)


def test_both_utilisations():
    found = step(Layout(micro_batch=4), ONE)
    house = LLAMA3_8B.flops_per_token(4096) + LLAMA3_8B.head_flops_per_token
    assert found.mfu == pytest.approx(found.tokens_per_second * house / 989.4e12)
    palm = 6 * 8_030_261_248 + 12 * 32 * 32 * 128 * 4096  # arXiv 2204.02311, app. B: 6 N + 12 L H Q T
    assert found.mfu_palm == pytest.approx(found.tokens_per_second * palm / 989.4e12, rel=1e-4)


def test_no_run_beats_the_peak():
    for layout in (Layout(), Layout(micro_batch=32), Layout(recompute="full")):
        assert step(layout, ONE).mfu < ONE.device.sustained * MATMUL * 1.3  # M counts keys that causality spares


def test_recomputation_costs_up_to_a_forward_pass():
    none, some, full = (step(Layout(recompute=how), ONE) for how in ("none", "selective", "full"))
    assert none.recompute == 0 < some.recompute < full.recompute
    spared = LLAMA3_8B.head_flops_per_token / LLAMA3_8B.flops_per_token(4096)
    assert full.recompute / (none.matmul + none.attention + none.memory) == pytest.approx(1 / 3, rel=2 * spared)


def test_tensor_parallelism_sums_twice_a_part_each_way():
    """arXiv 1909.08053: two all-reduces forward and two backward in every layer, of all tokens' activations."""
    found = step(Layout(tp=8, micro_batch=1), NODE)
    once = all_reduce(4096 * 4096 * 2, group(NODE, 8))
    assert found.communication == pytest.approx(32 * 32 * 4 * once)
    cut = step(Layout(tp=8, micro_batch=1, sequence_parallel=True), NODE)
    assert cut.communication == pytest.approx(found.communication * 2.5 / 2 * (1 - TENSOR_HIDDEN))
    assert cut.memory < found.memory


def test_zero_moves_what_its_paper_says():
    """arXiv 1910.02054, sec. 7: stages 1 and 2 move as much as an all-reduce, stage 3 half as much again."""
    job = dataclasses.replace(JOB, model=PLAIN, batch_tokens=8 * JOB.seq_len, precision="fp32")
    clock = Clock(job, NODE)
    scatter, gather = clock.replicas(Layout(dp=8))
    moved = [clock.data(Layout(dp=8, zero=zero), 1, busy=0.0) for zero in (0, 1, 2, 3)]
    assert scatter == pytest.approx(gather)
    assert [each / scatter for each in moved] == pytest.approx([2, 2, 2, 3])


def test_traffic_of_replicas_hides_behind_work_but_not_all_of_it():
    clock = Clock(JOB, NODE)
    bare, hidden = (clock.data(Layout(dp=8, zero=3), 4, busy) for busy in (0.0, 1e9))
    assert 0 < hidden < bare


def test_more_devices_never_slow_a_step_but_cost_each_of_them_speed():
    found = [step(Layout(dp=dp, zero=1), NODE) for dp in (1, 2, 4, 8)]
    seconds, speeds = [each.seconds for each in found], [each.tokens_per_second for each in found]
    assert seconds == sorted(seconds, reverse=True)
    assert speeds[-1] < speeds[0]


def test_context_parallelism_costs_nothing_where_attention_is_long():
    long = dataclasses.replace(JOB, seq_len=131072, batch_tokens=131072 * 2)
    found = step(Layout(cp=8), NODE, long)
    assert found.attention > found.matmul
    assert found.attention * 8 == pytest.approx(step(Layout(), ONE, long).attention)


def test_experts_are_sent_for_and_cost_the_active_ones_alone():
    attention = Attention(n_heads=16, n_kv_heads=16, d_head=64)
    made = {"vocab_size": 4096, "d_model": 1024, "n_layers": 8, "attention": attention}
    dense = Decoder(ffn=MoE(d_ff=512, experts=2, active=2), **made)
    sparse = Decoder(ffn=MoE(d_ff=512, experts=64, active=2), **made)
    few, many = (dataclasses.replace(JOB, model=model) for model in (dense, sparse))
    times = [step(Layout(dp=8, ep=ep, micro_batch=4), NODE, many) for ep in (1, 8)]
    assert times[0].matmul == pytest.approx(step(Layout(dp=8, micro_batch=4), NODE, few).matmul, rel=0.1)
    # Fewer tokens for each expert: reading its weights takes longer than multiplying by them.
    assert step(Layout(dp=8, micro_batch=1), NODE, many).matmul > 1.2 * times[0].matmul
    assert times[1].communication > times[0].communication * 0.1
    assert times[1].optimizer <= times[0].optimizer


def test_every_mixer_and_feed_forward_has_a_time():
    for mixer, ffn in ((Mamba2(n_heads=32), None), (Attention(n_heads=16, n_kv_heads=4, d_head=64), MLP(d_ff=4096))):
        model = Decoder(vocab_size=4096, d_model=1024, n_layers=4, attention=mixer, ffn=ffn)
        found = step(Layout(dp=4, tp=2, zero=1), NODE, dataclasses.replace(JOB, model=model))
        assert found.seconds > 0
        assert found.attention > 0


def test_precisions():
    bf16, fp8, fp32 = (step(Layout(), ONE, dataclasses.replace(JOB, precision=p)) for p in ("bf16", "fp8", "fp32"))
    assert fp8.seconds < bf16.seconds < fp32.seconds
    assert fp8.seconds > bf16.seconds / 2
    with pytest.raises(UserError, match="has no units for fp8"):
        step(Layout(), parse_cluster("A100"), dataclasses.replace(JOB, precision="fp8"))


def test_optimizers_and_the_way_to_the_host():
    job = dataclasses.replace(JOB, model=PLAIN)
    adamw, small, muon = (
        step(Layout(), ONE, dataclasses.replace(job, optimizer=name)).optimizer
        for name in ("adamw", "adamw8bit", "muon")
    )
    assert small < adamw < muon
    assert step(Layout(offload=True), ONE, job).optimizer > adamw
    assert step(Layout(dp=8, zero=1), NODE, job).optimizer == pytest.approx(adamw / 8)


def test_eager_kernels_move_more():
    assert step(Layout(), ONE, fused=False).memory > 2 * step(Layout(), ONE).memory


def test_a_cpu_has_a_time():
    cluster = parse_cluster("Xeon-8480+")
    found = step(Layout(), cluster, Job(model=PLAIN, seq_len=512, batch_tokens=4096))
    assert 0 < found.mfu < 0.5


def test_published_runs_that_were_held_out():
    found = [row for row in rows() if not row.calibration]
    assert len(found) >= 12
    assert len({row.source for row in found}) >= 4
    assert statistics.median(abs(row.predicted() / row.published - 1) for row in found) <= 0.15


@pytest.mark.parametrize("source", [TITAN, OLMO])
def test_the_runs_that_everybody_quotes(source):
    """torchtitan's Llama-3-8B on eight H100 compiled, OLMo-core's 7B."""
    first = next(row for row in rows() if row.source == source and row.published in (6667, 9850))
    assert first.predicted() == pytest.approx(first.published, rel=0.15)
