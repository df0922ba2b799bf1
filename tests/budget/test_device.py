"""The table of devices, and the texts that name them."""

from __future__ import annotations

import pytest

from nachim.budget.device import ALIASES, DEVICES, device_named, parse_cluster
from nachim.spec import UserError

# Ratios that the architectures fix: tensor-core FLOP a cycle in bf16 and fp8, and H200's chip being H100's.
FP8_OVER_BF16 = {"H100", "H100-PCIe", "H200", "B200", "MI300X", "L40S", "RTX-4090", "RTX-5090"}


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_every_device_is_plausible_and_says_where_its_numbers_are_from(device):
    assert len(device.sources) >= 3
    assert device.fp32_flops < device.bf16_flops
    assert 0.4 < device.sustained < 0.9
    assert device.watts > 300
    assert device.dollars_per_hour is not None or device.kind == "cpu"
    assert (device.node_devices > 1) == (device.link_bandwidth is not None)
    # The ridge of a roofline: from a few FLOP a byte on a CPU with AMX off to some hundreds.
    assert 50 < device.bf16_flops / device.memory_bandwidth < 1000


@pytest.mark.parametrize("name", sorted(FP8_OVER_BF16))
def test_fp8_runs_at_twice_the_rate_of_bf16(name):
    assert DEVICES[name].fp8_flops / DEVICES[name].bf16_flops == pytest.approx(2, rel=0.02)


def test_what_the_data_sheets_say():
    a100, h100, h200 = DEVICES["A100-80GB"], DEVICES["H100"], DEVICES["H200"]
    assert (
        a100.bf16_flops == 108 * 4 * 256 * 2 * 1.41e9 // 1e12 * 1e12 + 1e12
    )  # 108 SM x 4 x 256 FMA at 1.41 GHz: 311.9
    assert h100.bf16_flops == pytest.approx(132 * 4 * 512 * 2 * 1.83e9, rel=1e-3)  # glennklockwood.com: peak-FLOPS
    assert h200.bf16_flops == h100.bf16_flops
    assert (h100.memory_bandwidth, h200.memory_bandwidth) == (3.35e12, 4.8e12)
    assert a100.fp8_flops is None
    with pytest.raises(UserError, match="A100-80GB has no units for fp8"):
        a100.peak("fp8")


@pytest.mark.parametrize(
    ("text", "name"), [("h200", "H200"), (" A100 ", "A100-80GB"), ("rtx 4090", "RTX-4090"), ("mi300x", "MI300X")]
)
def test_names_in_any_case(text, name):
    assert device_named(text).name == name


def test_aliases_name_devices():
    assert set(ALIASES.values()) <= set(DEVICES)


def test_an_unknown_device_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="no device is called 'H20'; did you mean 'H200'"):
        device_named("H20")


@pytest.mark.parametrize(
    ("text", "count"), [("8xH200", 8), ("8 x h200", 8), ("64*H200", 64), ("H200", 1), ("1×H200", 1)]
)
def test_clusters(text, count):
    cluster = parse_cluster(text)
    assert (cluster.count, cluster.device.name) == (count, "H200")


def test_names_that_begin_with_digits_or_hold_an_x_are_no_counts():
    assert parse_cluster("2xMI300X").device.name == "MI300X"
    assert parse_cluster("Xeon-8480+").count == 1


@pytest.mark.parametrize("text", ["", "  ", "0xH200", "8xH20", "x"])
def test_what_is_no_cluster_is_refused(text):
    with pytest.raises(UserError):
        parse_cluster(text)
