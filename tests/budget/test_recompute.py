"""What is made again: the cheapest that fits, against every choice there is, and what a step then holds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from nachim.budget.activations import CHUNK_LOGITS, WHOLE_LOGITS, Kept, kept, logit_bytes
from nachim.budget.layout import Job, Layout
from nachim.budget.memory import memory
from nachim.budget.recompute import GRADES, fullest, grades, groups, passages, work_again
from nachim.budget.shape import shape
from nachim.model import loss
from nachim.spec import MTP, Activations, Decoder, GeGLU, Mamba, MoE, Pattern, SwiGLU, UserError

MAMBA = Mamba(d_inner=64, dt_rank=4)
MIXED = replace(
    shape(32, 64),
    n_layers=5,
    attention=Pattern(first=(MAMBA,), parts=(shape(32, 64).attention, MAMBA)),
    ffn=Pattern(first=(GeGLU(d_ff=64),), parts=(SwiGLU(d_ff=80), MoE(d_ff=16, experts=4, active=2))),
)
LAYOUT = Layout(micro_batch=2)


def job(model: Decoder, seq_len: int = 64) -> Job:
    """Two sequences at a time."""
    return Job(model=model, seq_len=seq_len, batch_tokens=2 * seq_len)


def bytes_of(model: Decoder, chosen: tuple[str, ...]) -> float:
    """What the blocks keep."""
    pairs = zip(model.trained_blocks, chosen, strict=True)
    return sum(kept(block, job(model), LAYOUT, "cpu", grade).stored for block, grade in pairs)


def work_of(model: Decoder, chosen: tuple[str, ...]) -> float:
    """What making it again costs."""
    return sum(work_again(block, model, 64, grade) for block, grade in zip(model.trained_blocks, chosen, strict=True))


def test_recomputation_keeps_within_the_bytes_at_nearly_the_least_work() -> None:
    """Against all 243 choices: never over the bytes, and over the least work by less than that of one block."""
    table = [(bytes_of(MIXED, one), work_of(MIXED, one)) for one in itertools.product(GRADES, repeat=5)]
    everything, nothing = bytes_of(MIXED, ("none",) * 5), bytes_of(MIXED, ("full",) * 5)
    one = max(work_again(block, MIXED, 64, "full") for block in MIXED.blocks)
    for share in (0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99):
        most = round(nothing + share * (everything - nothing))
        chosen = grades(job(MIXED), LAYOUT, Activations(keep_bytes=most), "cpu", MIXED.blocks)
        assert bytes_of(MIXED, chosen) <= most
        assert work_of(MIXED, chosen) < min(work for held, work in table if held <= most) + one


def test_room_for_all_makes_nothing_again_and_too_little_is_refused() -> None:
    least, most = (round(bytes_of(MIXED, (grade,) * 5)) for grade in ("full", "none"))
    assert grades(job(MIXED), LAYOUT, Activations(keep_bytes=most), "cpu", MIXED.blocks) == ("none",) * 5
    assert grades(job(MIXED), LAYOUT, Activations(keep_bytes=least), "cpu", MIXED.blocks) == ("full",) * 5
    with pytest.raises(UserError, match=f"is {least - 1}; with all made again blocks keep {least}"):
        grades(job(MIXED), LAYOUT, Activations(keep_bytes=least - 1), "cpu", MIXED.blocks)


def test_of_equal_blocks_the_first_are_made_again() -> None:
    plain = replace(shape(32, 64), n_layers=6)
    most = round(0.6 * bytes_of(plain, ("none",) * 6))
    chosen = grades(job(plain), LAYOUT, Activations(keep_bytes=most), "cpu", plain.blocks)
    assert len(set(chosen)) > 1
    assert list(chosen) == sorted(chosen, key=GRADES.index, reverse=True)


def test_modules_for_further_tokens_are_blocks_too() -> None:
    ahead = replace(MIXED, mtp=MTP(depth=2))
    assert ahead.trained_blocks == (*MIXED.blocks, MIXED.blocks[-1], MIXED.blocks[-1])
    chosen = grades(job(ahead), LAYOUT, Activations(recompute="full"), "cpu", ahead.trained_blocks)
    assert chosen == ("full",) * 7
    parts = [(part.start, part.stop) for part in passages(ahead, chosen, 3)]
    assert parts == [(0, 3), (3, 5), (5, 6), (6, 7)]  # each by itself, for something stands between them


def test_blocks_made_again_in_full_are_taken_together() -> None:
    chosen = ("full", "full", "full", "none", "selective", "selective", "full")
    found = [(grade, part.start, part.stop) for grade, part in groups(chosen, 2)]
    assert found == [
        ("full", 0, 2),
        ("full", 2, 3),
        ("none", 3, 4),
        ("selective", 4, 5),
        ("selective", 5, 6),
        ("full", 6, 7),
    ]


def test_the_backward_pass_is_fullest_where_what_is_left_and_made_again_is_most() -> None:
    """By hand: three layers that keep all, and the first of which, or two, is made again."""
    all_kept, again = Kept(10, 0, 3), Kept(1, 9, 3)
    one_by_one, in_pairs = [slice(0, 1), slice(1, 2), slice(2, 3)], [slice(0, 2), slice(2, 4)]
    assert fullest([all_kept] * 3, one_by_one) == (30, 3)
    assert fullest([again, all_kept, all_kept], one_by_one) == (21, 3)
    assert fullest([all_kept, all_kept, again], one_by_one) == (21, 12)
    assert fullest([again] * 4, in_pairs) == (2, 3 + 9 + 9 + 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_holds_less_the_more_is_made_again(precision: str) -> None:
    task = Job(model=shape(256, 64), seq_len=1024, batch_tokens=4096, precision=precision)
    ways = (Activations(), Activations(recompute="selective"), Activations(recompute="full"))
    totals = [memory(task, Layout(micro_batch=4), "cpu", way).total for way in ways]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 3
    for grade, total in zip(GRADES, totals, strict=True):
        assert memory(task, Layout(micro_batch=4, recompute=grade), "cpu").total == total
    everything = 8 * kept(task.model.blocks[0], task, Layout(micro_batch=4), "cpu", "none").stored
    between = memory(task, Layout(micro_batch=4), "cpu", Activations(keep_bytes=round(0.6 * everything)))
    assert totals[2] < between.total < totals[0]


def test_activations_go_to_the_host_of_a_gpu_and_stay_where_there_is_none() -> None:
    task = Job(model=shape(256, 64), seq_len=256, batch_tokens=1024)
    here, away = (
        memory(task, Layout(micro_batch=4), "cuda", Activations(offload=offload)) for offload in (False, True)
    )
    assert away.total < here.total and away.host > 0 == here.host
    assert memory(task, LAYOUT, "cpu", Activations(offload=True)) == memory(task, LAYOUT, "cpu", Activations())


def test_activations_of_ones_own_are_for_a_model_in_one_piece() -> None:
    with pytest.raises(UserError, match="not cut into stages"):
        memory(job(shape(256, 64)), Layout(pp=2), "cuda", Activations(recompute="full"))


def test_a_loss_of_many_logits_holds_chunks_and_the_gradients_of_the_head() -> None:
    """One row over the limit, by hand: fp32 gradients of the head, those of its input, and a chunk in three forms."""
    assert (WHOLE_LOGITS, CHUNK_LOGITS) == (loss.WHOLE, loss.CHUNK)
    tokens = 2**24 // 8192
    task = Job(model=shape(256, 8192), seq_len=tokens, batch_tokens=tokens)
    assert logit_bytes(task, Layout(), 1) == 12 * 2**24
    long = replace(task, seq_len=tokens + 1)
    assert logit_bytes(long, Layout(), 1) == 4 * 8192 * 256 + 2 * 256 * (tokens + 1) + 10 * 2**21
    assert logit_bytes(long, Layout(), 2) - logit_bytes(long, Layout(), 1) == 4 * 8192 * 256 + 2 * 256 * (tokens + 1)
