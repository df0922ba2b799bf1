"""The search for a layout: everything divides, everything fits, and nothing faster was missed."""

from __future__ import annotations

import dataclasses

import pytest

from bench.published_runs import LLAMA3_8B, LLAMA3_70B
from nachim.budget.device import DEVICES, parse_cluster
from nachim.budget.layout import Job
from nachim.budget.memory import memory
from nachim.budget.search import BATCH_OFF, RECOMPUTE, choices, cuts, layouts, smallest, splits
from nachim.budget.time import step_time
from nachim.spec import Attention, Cluster, Decoder, MoE, UserError, plain

SMALL = plain(d_model=2048, n_layers=8, d_head=128, vocab_size=32768)
JOB = Job(model=SMALL, seq_len=2048, batch_tokens=2048 * 32)
BIG = Job(model=LLAMA3_8B, seq_len=4096, batch_tokens=4096 * 256)
SPARSE = Decoder(
    vocab_size=32768,
    d_model=1024,
    n_layers=8,
    attention=Attention(n_heads=16, n_kv_heads=4, d_head=64),
    ffn=MoE(d_ff=512, experts=16, active=2),
)


def brute(job: Job, cluster: Cluster) -> list[float]:
    """Tokens/s of every layout of the space that fits, fastest first."""
    speeds = []
    for choice in choices(job, cluster):
        for recompute in RECOMPUTE:
            layout = choice._replace(recompute=recompute).layout()
            if memory(job, layout, cluster.device.kind).total <= cluster.device.memory_bytes:
                speeds.append(step_time(job, layout, cluster).tokens_per_second)
    return sorted(speeds, reverse=True)


@pytest.mark.parametrize("gigabytes", [8, 12, 80])
@pytest.mark.parametrize("model", [SMALL, SPARSE], ids=["dense", "experts"])
def test_it_finds_what_looking_at_everything_finds(gigabytes, model):
    device = dataclasses.replace(DEVICES["H100"], memory_bytes=gigabytes * 1e9)
    cluster, job = Cluster(device=device, count=4), dataclasses.replace(JOB, model=model)
    found = [placed.time.tokens_per_second for placed in layouts(job, cluster, keep=8)]
    assert found == pytest.approx(brute(job, cluster)[:8])


@pytest.mark.parametrize("text", ["H200", "4xH200", "8xH100", "64xH100", "7xH100", "48xH200", "16xMI300X"])
def test_layouts_use_all_devices_divide_what_they_cut_and_fit(text):
    cluster = parse_cluster(text)
    job = dataclasses.replace(BIG, optimizer="adamw8bit") if cluster.count == 1 else BIG
    found = layouts(job, cluster)
    assert 1 <= len(found) <= 5
    for layout, held, time in ((each.layout, each.memory, each.time) for each in found):
        assert layout.devices == cluster.count
        assert held == memory(job, layout, cluster.device.kind)
        assert held.total <= cluster.device.memory_bytes
        assert time == step_time(job, layout, cluster)
        assert layout.tp <= cluster.device.node_devices
        assert 32 % layout.tp == 14336 % layout.tp == 128256 % layout.tp == 0
        assert 32 % (layout.pp * layout.virtual) == 0
        assert job.seq_len % (2 * layout.cp) == 0
        there = layout.micro_batches(job) * layout.dp * layout.micro_batch
        assert abs(there - job.batch) <= BATCH_OFF * job.batch
    speeds = [each.time.tokens_per_second for each in found]
    assert speeds == sorted(speeds, reverse=True)


def test_a_large_model_is_cut_and_a_small_one_is_not():
    big = layouts(dataclasses.replace(BIG, model=LLAMA3_70B), parse_cluster("64xH100"))[0].layout
    assert big.tp * big.pp > 1
    small = layouts(JOB, parse_cluster("8xH100"))[0].layout
    assert (small.dp, small.tp, small.pp) == (8, 1, 1)


def test_one_device_and_a_cpu():
    for text in ("H100", "Xeon-8480+"):
        layout = layouts(JOB, parse_cluster(text))[0].layout
        assert (layout.devices, layout.zero, layout.recompute) == (1, 0, "none")


def test_what_can_be_cut():
    assert [tp for tp in (1, 2, 4, 8, 16, 32) if cuts(LLAMA3_8B, tp)] == [1, 2, 4, 8, 16, 32]
    assert not cuts(LLAMA3_8B, 3)
    assert not cuts(LLAMA3_8B, 64)  # 32 heads
    odd = dataclasses.replace(LLAMA3_8B, vocab_size=50257)
    assert not cuts(odd, 2)
    grouped = dataclasses.replace(SPARSE, attention=Attention(n_heads=16, n_kv_heads=3 - 1, d_head=64))
    assert cuts(grouped, 4)  # two key-value heads, each held twice


def test_experts_are_dealt_out_evenly():
    job = dataclasses.replace(JOB, model=SPARSE)
    dealt = {choice.ep for choice in splits(job, parse_cluster("8xH100"))}
    assert dealt == {1, 2, 4, 8}
    assert {choice.ep for choice in splits(JOB, parse_cluster("8xH100"))} == {1}


def test_short_sequences_are_not_cut():
    assert {choice.cp for choice in splits(BIG, parse_cluster("8xH100"))} == {1}
    long = dataclasses.replace(BIG, seq_len=32768, batch_tokens=32768 * 64)
    assert {choice.cp for choice in splits(long, parse_cluster("8xH100"))} == {1, 2, 4, 8}


def test_a_model_that_fits_nowhere_is_refused_with_the_bytes_and_the_ways_out():
    job, cluster = dataclasses.replace(BIG, model=LLAMA3_70B), parse_cluster("8xH200")
    needed = smallest(job, cluster)
    with pytest.raises(UserError) as caught:
        layouts(job, cluster)
    said = str(caught.value)
    assert said.startswith("70.6 B parameters fit no layout on 8 x H200")
    assert f"{needed:,} bytes on a device, {needed - 141_000_000_000:,} more than it has" in said
    assert "16 devices" in said
    assert layouts(job, parse_cluster("16xH200"))
    assert "the 8-bit optimizer" in said
    assert layouts(dataclasses.replace(job, optimizer="adamw8bit"), cluster)
    assert "such as B200" in said
    assert layouts(job, parse_cluster("8xB200"))


def test_cards_without_a_network_are_not_told_to_grow_beyond_a_node():
    job = dataclasses.replace(BIG, model=LLAMA3_70B)
    with pytest.raises(UserError, match="fit no layout on 8 x RTX-4090") as caught:
        layouts(job, parse_cluster("8xRTX-4090"))
    assert "16 devices" not in str(caught.value)


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    odd = dataclasses.replace(JOB, batch_tokens=2048 * 3)
    with pytest.raises(UserError, match="a batch of 3 sequences of 2048 tokens cannot be dealt out to 7 devices"):
        layouts(odd, parse_cluster("7xH100"))
