"""A run is the same, bit for bit, whatever of its forward passes is kept; and says what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nachim.spec import Activations, Growth, UserError
from nachim.train.loop import Watch
from tests.train.tiny import ALWAYS, BATCH, Kill, differing, go, kill_at, rows, tiny_run, weights

RUN = {"precision": "bf16", "micro_batch_tokens": 16}


@pytest.mark.parametrize(
    ("activations", "said"),
    [
        (Activations(recompute="full"), "of 2 blocks 2 are made again in full and 0 selectively"),
        (Activations(recompute="full", every_blocks=2, offload=True), "in host memory"),
        (Activations(recompute="selective"), "0 are made again in full and 2 selectively"),
        (Activations(keep_bytes=6_000), "1 are made again in full and 1 selectively"),
    ],
)
def test_a_run_is_the_same(activations: Activations, said: str, tmp_path: Path) -> None:
    heard: list[str] = []
    go(tiny_run(4, **RUN), tmp_path / "plain")
    go(tiny_run(4, **RUN), tmp_path / "other", activations=activations, watch=Watch(heard.append))
    assert differing(weights(tmp_path / "plain"), weights(tmp_path / "other")) == []
    assert rows(tmp_path / "plain") == rows(tmp_path / "other")
    assert said in " ".join(heard)


def test_a_run_may_go_on_with_less_memory(tmp_path: Path) -> None:
    go(tiny_run(4, **RUN), tmp_path / "plain")
    with pytest.raises(Kill):
        go(tiny_run(4, **RUN), tmp_path / "other", checkpoint_seconds=ALWAYS, on_step=kill_at(2))
    go(tiny_run(4, **RUN), tmp_path / "other", activations=Activations(recompute="full"))
    assert differing(weights(tmp_path / "plain"), weights(tmp_path / "other")) == []


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"recompute": "full", "every_blocks": 0}, "every_blocks is 0; it must be above 0"),
        ({"every_blocks": 2}, "every_blocks is 2, which is for recompute='full'"),
        ({"keep_bytes": 0}, "keep_bytes is 0; it must be above 0"),
        ({"keep_bytes": 5, "recompute": "full"}, "leave out recompute='full'"),
        ({"recompute": "some"}, "recompute is 'some', which is not"),
        ({"keep_bytes": 100}, "keep_bytes is 100; with all made again blocks keep 1024"),
    ],
)
def test_bad_input_is_one_sentence(fields: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        go(tiny_run(2, **RUN), tmp_path, activations=Activations(**fields))


def test_the_bytes_hold_for_the_largest_batch(tmp_path: Path) -> None:
    """A batch that grows fourfold: what is kept of the last one fits."""
    run = tiny_run(8, growth=Growth(begin_tokens=BATCH, power=1.0))
    assert run.train.largest_batch > 2 * BATCH
    heard: list[str] = []
    go(run, tmp_path, activations=Activations(keep_bytes=100_000), watch=Watch(heard.append))
    kept = float(next(text for text in heard if "keep" in text).split("keep ")[1].split(" MB")[0])
    assert 0 < kept <= 0.1
