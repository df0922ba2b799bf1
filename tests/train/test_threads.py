"""The number of threads does not show in the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from nachim.train import exact, loop
from nachim.train.exact import EvenLayerNorm, even_norms
from nachim.train.rates import on_threads, threads_given
from tests.train import threads
from tests.train.tiny import go, tiny_run


def test_twenty_steps_on_one_thread_and_on_two_give_the_same_bits():
    """Of one process each, as MKL settles how it adds up before its first product."""
    found = []
    for count in (1, 2):
        path = os.pathsep.join(filter(None, sys.path))
        asked = {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "passive"}
        environment = os.environ | asked | {"PYTHONPATH": path}
        command = [sys.executable, threads.__file__]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    one, two = found
    assert (one.pop("threads"), two.pop("threads")) == (1, 2)
    assert len(set(one.values())) == len(threads.CASES)
    assert one == two


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_layer_norm_are_those_of_torch_on_one_thread(bias):
    plain, even = nn.LayerNorm(32, bias=bias), nn.LayerNorm(32, bias=bias)
    even_norms(nn.Sequential(even))
    assert type(even) is EvenLayerNorm and type(plain) is nn.LayerNorm
    x, grad = torch.randn(2, 600, 32)
    found = []
    for module, count in ((plain, 1), (even, 1), (even, 2), (even, 3)):
        leaf = x.clone().requires_grad_()
        with on_threads(count):
            y = module(leaf)
            found.append((y.detach(), *torch.autograd.grad(y, (leaf, *module.parameters()), grad)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    with torch.no_grad(), on_threads(2):
        assert torch.equal(even(x), found[0][0])


def test_a_machine_where_threads_show_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "products_are_even", lambda: False)
    said: list[str] = []
    go(tiny_run(2), tmp_path / "uneven", watch=loop.Watch(said.append))
    assert any("the weights depend on the number of threads" in sentence for sentence in said)
    monkeypatch.setattr(loop, "products_are_even", lambda: True)
    said.clear()
    go(tiny_run(2), tmp_path / "even", watch=loop.Watch(said.append))
    assert not said


def test_products_are_even_on_one_thread():
    with on_threads(1):
        assert exact.products_are_even()


def test_threads_are_given_by_whoever_starts_the_process(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert threads_given() is None
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with on_threads(3):
        assert threads_given() == 3
