"""Multi-token prediction in forecasts: what a step holds, computes and moves with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.predicted_memory import FULL, Case, steps
from nachim.budget.cost import matrix_params
from nachim.budget.device import parse_cluster
from nachim.budget.layout import Job, Layout
from nachim.budget.memory import memory
from nachim.budget.pipeline import stage_blocks
from nachim.budget.search import layouts
from nachim.budget.states import held_by_stage
from nachim.budget.step_cost import orthogonal_flops, work
from nachim.budget.time import Clock, step_time
from nachim.model import build
from nachim.model.decoder import is_matrix
from nachim.spec import MTP, Muon, SwiGLU, plain
from nachim.train.optimizer import build_optimizer
from nachim.train.peak import peak_bytes
from tests.plainly import plainly

PLAIN = plain(d_model=64, n_layers=4, d_head=16, vocab_size=96)
AHEAD = replace(PLAIN, mtp=MTP(depth=2))
CASES = {
    "plain": Case(64, 128, 4, further=2),
    "bf16, two micro-batches": Case(64, 128, 2, "muon", "bf16", 2, further=1),
    "made again": Case(64, 256, 4, activations=FULL, further=2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_real_step_holds_what_is_forecast(case: Case) -> None:
    """Within 3 % of every allocation of two steps, added up; without the modules it would be a fifth less."""
    model = case.model(512)
    made = {"optimizer": case.optimizer, "precision": case.precision}
    job = Job(model=model, seq_len=case.seq_len, batch_tokens=case.seq_len * case.rows * case.times, **made)
    with plainly():
        measured = peak_bytes(steps(case, 512))
    layout = Layout(micro_batch=case.rows)
    assert memory(job, layout, "cpu", case.activations).total == pytest.approx(measured, rel=0.03)
    alone = memory(replace(job, model=replace(model, mtp=None)), layout, "cpu", case.activations)
    assert alone.total < 0.85 * measured


def test_works_of_a_step_are_those_that_torch_counts() -> None:
    model, ids_BT = build(AHEAD, AHEAD.d_model), torch.zeros(2, 24, dtype=torch.int64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(ids_BT, ids_BT).backward()
    done = work(Job(model=AHEAD, seq_len=24, batch_tokens=48))
    assert done["matmul"] + done["mixing"] == counter.get_total_flops()
    assert done["layers"] == 6
    assert done["logits"] == 3 * 48 * 96
    weights = dict(model.named_parameters())
    tables = ("embedding.weight", "head.weight")
    matrices = [weight for name, weight in weights.items() if is_matrix(name, weight) and name not in tables]
    assert matrix_params(AHEAD) == sum(weight.numel() for weight in matrices)
    optimizer = build_optimizer(Muon(lr=0.1), weights, AHEAD)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == orthogonal_flops(AHEAD)


@pytest.mark.parametrize("tied", [False, True])
def test_the_last_stage_holds_the_modules_and_a_copy_of_the_embedding(tied: bool) -> None:
    model, layout = replace(AHEAD, tied=tied), Layout(pp=2)
    first, last = (
        held_by_stage(model, blocks, layout, index == 0, index == 1)
        for index, blocks in enumerate(stage_blocks(model, layout))
    )
    table = 96 * 64
    assert first.total + last.total == model.params_total + table
    assert last.total - first.total == model.params_total - replace(PLAIN, tied=tied).params_total + 64 + table * (
        not tied
    )
    (whole,) = stage_blocks(model, Layout())
    assert held_by_stage(model, whole, Layout(), True, True).total == replace(model, tied=tied).params_total


def test_a_module_takes_the_time_of_a_block_a_head_and_a_matrix() -> None:
    """Arithmetic alone: a step of such width is far above the roof's ridge."""
    wide = replace(plain(d_model=4096, n_layers=8, d_head=128, vocab_size=32_000), ffn=SwiGLU(d_ff=11_008))
    jobs = [Job(model=replace(wide, mtp=mtp), seq_len=2048, batch_tokens=8192) for mtp in (None, MTP(depth=2))]
    one = parse_cluster("H100")
    less, more = (step_time(job, Layout(micro_batch=4), one) for job in jobs)
    clock = Clock(jobs[0], one)
    tokens, block = 8192, wide.blocks[0]
    products = sum(layer.matmul_params(4096) for layer in block.layers) + 4096 * (2 * 4096 + 32_000)
    assert more.matmul - less.matmul == pytest.approx(2 * 6 * products * tokens / clock.rate)
    assert more.attention == pytest.approx(less.attention * 10 / 8)
    assert more.optimizer / less.optimizer == pytest.approx(jobs[1].model.params_total / wide.params_total, rel=1e-3)
    assert more.mfu == pytest.approx(less.mfu, rel=0.05)


def test_layouts_are_found_for_it() -> None:
    job = Job(model=AHEAD, seq_len=128, batch_tokens=128 * 64)
    cluster = parse_cluster("4xH100")
    placed = layouts(job, cluster, keep=200)
    assert {one.layout.pp for one in placed} >= {1, 2, 4}
    without = layouts(replace(job, model=PLAIN), cluster, keep=1)[0]
    assert placed[0].time.seconds > without.time.seconds
