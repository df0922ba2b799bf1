"""Collectives against closed forms."""

from __future__ import annotations

import dataclasses

import pytest

from nachim.budget.collective import WIRE, Group, all_gather, all_reduce, all_to_all, group, reduce_scatter, send
from nachim.budget.device import DEVICES, parse_cluster
from nachim.spec import Cluster, UserError

DEVICE = dataclasses.replace(
    DEVICES["H100"],
    link_bandwidth=400e9 / WIRE,
    link_latency=2e-6,
    network_bandwidth=50e9 / WIRE,
    network_latency=7e-6,
)
SIZE = 1e9


def ranks(count: int, stride: int = 1) -> Group:
    return group(Cluster(device=DEVICE, count=count * stride), count, stride)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_a_ring_all_reduce_moves_twice_its_bytes_less_one_part(n):
    """nccl-tests, doc/PERFORMANCE.md: t = S / B x 2 (n - 1) / n, and 2 (n - 1) latencies."""
    assert all_reduce(SIZE, ranks(n)) == pytest.approx(SIZE / 400e9 * 2 * (n - 1) / n + 2 * (n - 1) * 2e-6)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_gather_and_scatter_are_the_halves_of_an_all_reduce(n):
    assert all_gather(SIZE, ranks(n)) == reduce_scatter(SIZE, ranks(n)) == all_reduce(SIZE, ranks(n)) / 2


@pytest.mark.parametrize("nodes", [2, 5, 16])
def test_across_nodes_every_device_sends_its_part_over_its_own_adapter(nodes):
    inside = SIZE / 400e9 * 7 / 8 + 7 * 2e-6
    across = SIZE / 8 / 50e9 * (nodes - 1) / nodes + (nodes - 1) * 7e-6
    assert all_gather(SIZE, ranks(8 * nodes)) == pytest.approx(inside + across)


def test_devices_of_different_nodes_meet_over_the_network_alone():
    assert ranks(4, stride=8).local == 1
    assert all_gather(SIZE, ranks(4, stride=8)) == pytest.approx(SIZE / 50e9 * 3 / 4 + 3 * 7e-6)
    assert ranks(8, stride=2) == Group(DEVICE, 8, 4)


def test_all_to_all_sends_every_other_device_its_part():
    """nccl-tests: (n - 1) / n of the bytes inside a node; beyond it what leaves goes over the network."""
    assert all_to_all(SIZE, ranks(8)) == pytest.approx(SIZE / 400e9 * 7 / 8 + 7 * 2e-6)
    expected = SIZE / 16 * 7 / 400e9 + 7 * 2e-6 + SIZE / 16 * 8 / 50e9 + 8 * 7e-6
    assert all_to_all(SIZE, ranks(16)) == pytest.approx(expected)


def test_sending_is_a_latency_and_the_bytes():
    assert send(SIZE, ranks(2)) == pytest.approx(2e-6 + SIZE / 400e9)
    assert send(SIZE, ranks(2, stride=8)) == pytest.approx(7e-6 + SIZE / 50e9)


def test_one_device_waits_for_nobody():
    alone = group(parse_cluster("Xeon-8480+"), 1)
    assert all_reduce(SIZE, alone) == all_gather(SIZE, alone) == all_to_all(SIZE, alone) == send(SIZE, alone) == 0


def test_what_has_no_link_cannot_work_together():
    with pytest.raises(UserError, match="RTX-4090 has no network_bandwidth, so at most 8"):
        group(parse_cluster("16xRTX-4090"), 16)
    linkless = dataclasses.replace(DEVICE, link_bandwidth=None)
    with pytest.raises(UserError, match="has no link_bandwidth: 2 of them"):
        group(Cluster(device=linkless, count=2), 2)
