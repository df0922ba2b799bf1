"""What is measured of this machine: present, positive, and of the right size."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch

from nachim.spec import UserError
from nachim.train import machine, measure, rates
from nachim.train.machine import measure_machine


@pytest.fixture
def quick(monkeypatch):
    """Measurements that are made once, on the smallest sizes."""
    monkeypatch.setitem(machine.SQUARES, "cpu", ((32, 32, 32), (64, 64, 64)))
    monkeypatch.setitem(measure.SKINNY, "cpu", ((64, 8, 32),))
    for module, name in ((machine, "SECONDS"), (measure, "RATE_SECONDS"), (measure, "BANDWIDTH_SECONDS")):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(rates, "TRY_SECONDS", 0.0)
    monkeypatch.setattr(measure, "BLOCK", 2**16)
    monkeypatch.setattr(measure, "LARGEST_FILE", 2**18)
    monkeypatch.setattr(measure, "array_bytes", lambda kind: 2**20)
    monkeypatch.setattr(measure, "measure_link", lambda kind: measure.Link(1e9, 1e-5))


def test_a_machine_is_measured_and_torch_keeps_its_threads(quick):
    before = torch.get_num_threads()
    found = measure_machine()
    assert torch.get_num_threads() == before
    assert found.cores == rates.cores() and found.name
    assert min(found.fp32_one_thread, found.fp32_all, found.bf16_one_thread, found.bf16_all) > 0


def test_the_fastest_try_counts_and_kinds_of_work_take_turns(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def work(name, times):
        def call():
            calls.append(name)
            now[0] += next(times)

        return call

    slow = work("slow", iter([3.0, 3.0, 9.0, 3.0, 2.5, 9.0]))
    fast = work("fast", iter([1.0, 1.0, 7.0, 1.0, 0.5, 9.0]))
    assert rates.fastest([slow, fast], "cpu", 8.5) == [3.0, 1.0]
    assert calls == ["slow"] * 2 + ["fast"] * 2 + ["slow", "fast"] * 2


def test_rates_are_flop_of_the_product_over_its_seconds(monkeypatch):
    monkeypatch.setattr(rates, "fastest", lambda works, device, seconds: [2.0] * len(works))
    found = rates.matmul_rates([(4, 8, 16)], ("fp32", "bf16"), "cpu", 0.0)
    assert found == {((4, 8, 16), "fp32"): 2 * 4 * 8 * 16 / 2.0, ((4, 8, 16), "bf16"): 2 * 4 * 8 * 16 / 2.0}


def test_products_too_large_for_a_slow_machine_are_left_out_but_never_the_smallest(monkeypatch):
    monkeypatch.setattr(rates, "_timed", lambda work, repeats, device: 1.0)
    monkeypatch.setattr(rates, "fastest", lambda works, device, seconds: [1.0] * len(works))
    found = rates.matmul_rates([(64, 64, 64), (8, 8, 8)], ("fp32",), "cpu", 0.0)
    assert list(found) == [((8, 8, 8), "fp32")]


def test_bandwidth_counts_each_array_once(monkeypatch):
    monkeypatch.setattr(rates, "fastest", lambda works, device, seconds: [1.0, 2.0])
    assert rates.memory_bandwidth(rates.arrays(4096, "cpu"), "cpu", 0.0) == 2 * 4096


def test_the_streamed_work_is_copy_and_triad(monkeypatch):
    def run(works, device, seconds):
        for work in works:
            work()
        return [1.0, 1.0]

    monkeypatch.setattr(rates, "fastest", run)
    abc = rates.arrays(64, "cpu")
    abc[2].fill_(2.0)
    rates.memory_bandwidth(abc, "cpu", 0.0)
    assert abc[0].tolist() == [7.0] * 16


def test_a_device_is_measured(quick, tmp_path):
    said = []
    found = measure.measure_device(tmp_path, "cpu", said.append)
    device = found.device
    threads = sorted({1, rates.cores()})
    assert device.kind == "cpu" and device.watts is None and device.dollars_per_hour is None
    assert {case[0] for case in found.matmul} == set(threads) == set(found.bandwidth)
    assert device.fp32_flops == max(
        rate for (count, _, name), rate in found.matmul.items() if (count, name) == (threads[-1], "fp32")
    )
    assert device.link_bandwidth == 1e9 and found.disk_write > 0 and found.disk_read > 0
    assert 2**26 < device.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert "torch" in device.sources[0] and len(said) == 2 * len(threads) + 2
    assert list(tmp_path.iterdir()) == []
    assert type(device).from_json(json.loads(json.dumps(device.to_json()))) == device


def test_a_type_without_units_is_not_a_peak():
    assert measure.units(3.0, 2.0) == 3.0
    assert measure.units(1.0, 2.0) is None
    assert measure.units(None, 2.0) is None


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=r"cannot write .*choose a writable folder"):
        measure.disk_bandwidth(file)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_are_linked(monkeypatch):
    link = measure.measure_link("cpu")
    assert link is not None and link.bandwidth > 0 and 0 < link.latency < 10
