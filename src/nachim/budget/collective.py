"""Seconds of collective operations on a graph of two levels: links inside a node, a network between nodes.

Every step costs a latency and every byte a time (Thakur, Rabenseifner, Gropp 2005, sec. 3); rings inside a node and
across nodes follow one another, each device on its own network adapter, as in NCCL's hierarchical schedules. For one
level they are the closed forms of nccl-tests' doc/PERFORMANCE.md: a ring all-reduce moves 2 (n - 1) / n of its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec import Cluster, Device, UserError

WIRE = 0.8
"""Share of a link's bandwidth that large transfers reach: 195 of 300 GB/s (point to point) to 235 of 300 GB/s (rings)
in nccl-tests on eight A100 with NVLink, 370 of 450 GB/s on eight H100."""


@dataclass(frozen=True)
class Group:
    """`ranks` devices that take part, `local` of them in every node."""

    device: Device
    ranks: int
    local: int

    @property
    def nodes(self) -> int:
        """Nodes that the group reaches into."""
        return -(-self.ranks // self.local)


def group(cluster: Cluster, ranks: int, stride: int = 1) -> Group:
    """The group of `ranks` devices that stand `stride` apart, nodes filled one after the other.

    Raises UserError when the devices would have to talk over a link that they do not have.
    """
    device = cluster.device
    local = max(1, min(ranks, device.node_devices // stride))
    if local > 1 and device.link_bandwidth is None:
        raise UserError(f"{device.name} has no link_bandwidth: {ranks} of them in a node cannot work together")
    if ranks > local and device.network_bandwidth is None:
        raise UserError(
            f"{device.name} has no network_bandwidth, so at most {device.node_devices} of them (one node) work together"
        )
    return Group(device, ranks, local)


def all_gather(size: float, ranks: Group) -> float:
    """Seconds until every device has all `size` bytes, of which each had its share; reduce-scatter takes the same."""
    inside = (ranks.local - 1) / ranks.local * size
    across = (ranks.nodes - 1) / ranks.nodes * size / ranks.local
    return _link(ranks.device, ranks.local - 1, inside) + _network(ranks.device, ranks.nodes - 1, across)


reduce_scatter = all_gather


def all_reduce(size: float, ranks: Group) -> float:
    """Seconds until every device has the sum of `size` bytes: reduce-scatter, then all-gather."""
    return 2 * all_gather(size, ranks)


def all_to_all(size: float, ranks: Group) -> float:
    """Seconds until each device has sent an equal part of its `size` bytes to every device, itself included."""
    part = size / ranks.ranks
    beyond = ranks.ranks - ranks.local
    return _link(ranks.device, ranks.local - 1, (ranks.local - 1) * part) + _network(
        ranks.device, beyond, beyond * part
    )


def send(size: float, ranks: Group) -> float:
    """Seconds until `size` bytes stand on the next device of a chain, over the network where it leaves a node."""
    if ranks.ranks == 1:
        return 0.0
    return _network(ranks.device, 1, size) if ranks.nodes > 1 else _link(ranks.device, 1, size)


def _link(device: Device, steps: int, size: float) -> float:
    return steps * device.link_latency + size / (WIRE * device.link_bandwidth) if steps else 0.0


def _network(device: Device, steps: int, size: float) -> float:
    return steps * device.network_latency + size / (WIRE * device.network_bandwidth) if steps else 0.0
