"""Layers on stages, and micro-batches in flight, against closed forms and schedules walked by hand."""

from __future__ import annotations

import pytest

from nachim.budget.layout import Layout
from nachim.budget.pipeline import in_flight, stage_blocks
from nachim.spec import Attention, Decoder, MoE, Pattern, SwiGLU, UserError, plain

MODEL = plain(d_model=64, n_layers=24, d_head=16, vocab_size=512)


def most_held(orders: list[str]) -> int:
    """The most forward passes that were open at once in one stage's order of F and B."""
    open_, most = 0, 0
    for letter in orders:
        open_ += 1 if letter == "F" else -1
        most = max(most, open_)
    return most


def one_f_one_b(stage: int, stages: int, micro: int) -> list[str]:
    """The order of one stage: a warm-up of forward passes, then one of each in turn, then the backward passes left."""
    warm = min(stages - stage - 1, micro)
    return ["F"] * warm + ["F", "B"] * (micro - warm) + ["B"] * warm


@pytest.mark.parametrize(("stages", "micro"), [(2, 8), (4, 2), (4, 16), (8, 8)])
def test_one_f_one_b_holds_what_its_order_opens(stages: int, micro: int) -> None:
    layout = Layout(pp=stages)
    for stage in range(stages):
        assert in_flight(layout, stage, micro) == most_held(one_f_one_b(stage, stages, micro))


def test_gpipe_holds_all_of_them() -> None:
    assert [in_flight(Layout(pp=4, schedule="gpipe"), stage, 32) for stage in range(4)] == [32] * 4


@pytest.mark.parametrize(("stages", "virtual"), [(2, 2), (4, 2), (8, 3), (12, 2)])
def test_interleaving_holds_more_by_the_published_share(stages: int, virtual: int) -> None:
    """1 + (p - 1) / (p m) times 1F1B's first stage, m chunks a stage (arXiv 2205.05198, sec. 4.2.3)."""
    layout = Layout(pp=stages, schedule="interleaved", virtual=virtual)
    assert in_flight(layout, 0, 64) == pytest.approx(stages * (1 + (stages - 1) / (stages * virtual)))


def test_zero_bubble_takes_no_more_than_the_first_stage_of_1f1b_on_any_stage() -> None:
    """arXiv 2401.10241, sec. 2.1."""
    layout = Layout(pp=8, schedule="zero-bubble")
    assert {in_flight(layout, stage, 64) for stage in range(8)} == {in_flight(Layout(pp=8), 0, 64)} == {8}
    assert in_flight(layout, 0, 3) == 3


def test_layers_are_dealt_out_evenly_and_none_is_lost() -> None:
    for pp, virtual in ((1, 1), (5, 1), (4, 3), (24, 1)):
        layout = Layout(pp=pp, virtual=virtual, schedule="interleaved" if virtual > 1 else "1f1b")
        counts = [sum(stage.values()) for stage in stage_blocks(MODEL, layout)]
        assert sum(counts) == 24 and max(counts) - min(counts) <= virtual


def test_interleaved_chunks_take_turns() -> None:
    """Layers 0..7 of two kinds on 2 stages of 2 chunks: stage 0 has layers 0, 1, 4, 5."""
    dense, sparse = SwiGLU(d_ff=32), MoE(d_ff=16, experts=4, active=1)
    model = Decoder(
        vocab_size=64,
        d_model=16,
        n_layers=8,
        attention=Attention(n_heads=2, n_kv_heads=2, d_head=8),
        ffn=Pattern(first=(dense, dense), parts=(sparse,)),
    )
    stages = stage_blocks(model, Layout(pp=2, virtual=2, schedule="interleaved"))
    assert [{type(block.ffn): times for block, times in stage.items()} for stage in stages] == [
        {SwiGLU: 2, MoE: 2},
        {MoE: 4},
    ]


def test_more_chunks_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match="only 24 layers"):
        stage_blocks(MODEL, Layout(pp=25))
