"""Rows that attention takes together: as many keys as their own number says, and no more than a few too many."""

from __future__ import annotations

from dataclasses import replace

import torch

from nachim.infer.rows import Filled, Row, Rows, span
from nachim.infer.sequence import Sequence
from nachim.infer.store import Store
from nachim.spec import Attention, SwiGLU
from tests.infer.tiny import PLAIN
from tests.model.contract import drawn


def test_spans_grow_with_keys_and_little_is_filled_up():
    spans = [span(keys) for keys in range(1, 9000)]
    assert spans == sorted(spans)
    for keys, wide in enumerate(spans, 1):
        assert keys <= wide < keys + max(64, keys / 8)
        assert wide % 16 == 0
        assert span(wide) == wide


def test_what_fills_up_is_seen_by_nobody():
    frame = Filled([3, 64], 64, torch.device("cpu"))
    assert frame.allowed()[:, 0, 0].sum(1).tolist() == [3, 64]
    assert frame.allowed()[0, 0, 0, :3].all()


def test_rows_are_taken_together_by_their_spans_and_written_to_their_own_slots():
    spec = replace(PLAIN, attention=Attention(n_heads=2, n_kv_heads=1, d_head=8), ffn=SwiGLU(d_ff=16), mtp=None)
    store = Store(spec, 512, 8, torch.float32, torch.device("cpu"))
    rows = []
    for number, place in enumerate((5, 63, 64, 100, 127)):
        sequence = Sequence(number, 0, [0] * (place + 1), 1, (0, 0, 0))
        sequence.tables = {None: [store.pools[None].take() for _ in range(place // 8 + 1)]}
        rows.append(Row(sequence, place, 0))
    frame = Rows(store, rows, torch.device("cpu"))
    groups = frame.groups(None, together=True)
    assert [(group.begin, group.end, group.frame.S) for group in groups] == [(0, 2, 64), (2, 5, 128)]
    assert [len(set(row.tolist())) for row in groups[1].slots.view(3, 128)] == [65, 101, 128]
    assert frame.last(None).tolist() == [
        store.slots(row.sequence, None, row.place, row.place + 1).item() for row in rows
    ]
    assert [group.frame.S for group in frame.groups(None, together=False)] == [6, 64, 65, 101, 128]


def test_in_bf16_a_cache_gives_the_bits_of_a_whole_pass():
    attention = Attention(n_heads=4, n_kv_heads=4, d_head=32)
    spec = replace(PLAIN, d_model=64, attention=attention, ffn=SwiGLU(d_ff=96), mtp=None)
    model = drawn(spec).bfloat16()
    ids_BT = torch.randint(spec.vocab_size, (2, 83), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache, whole_BTV = model.start(), model(ids_BT)
        parts = [model(part, cache=cache) for part in ids_BT.split([37, *[1] * 46], 1)]
    assert torch.equal(torch.cat(parts, 1), whole_BTV)
