"""What a generation's text has kept of human text: bits per byte, diversity, entropy, and the tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nachim.data.prepared import Prepared
from nachim.data.shards import Shard, read_shard
from nachim.evaluate.diversity import Ids, Tail, distinct, entropy, first_tokens

DISTINCT = (1, 2, 3, 4)
TAIL = (1, 2)
SHARE = 0.1
"""Of human text that its tail has."""


@dataclass(frozen=True)
class Measured:
    """A generation: `bpb` of held-out human text under its weights, and of what it wrote, cut to as many tokens as the
    human text has: distinct-n, the mass of the human tail and what human text has not (by n), entropies in nat/token.

    `law` is the entropy of its own distribution, measured on what it drew. `documents` came, `dropped` of them by
    reason; `cut` is the share of those kept that did not end by themselves.
    """

    bpb: float
    distinct: Mapping[str, float]
    tail: Mapping[str, float]
    unseen: Mapping[str, float]
    entropy: Mapping[str, float]
    law: float
    documents: int
    dropped: Mapping[str, int]
    cut: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


class Human:
    """Human text as the measure: its `tokens`, its own figures, and its tails, with what held-out text has of them."""

    def __init__(self, documents: Sequence[Ids], held: Sequence[Ids], encode: Any) -> None:
        self.tokens = sum(map(len, documents))
        self.tails = [Tail.of(documents, n, SHARE) for n in TAIL]
        self.figures = {**_various(documents), **self._tails(held)}
        self._encode = encode

    @classmethod
    def of(cls, prepared: Prepared) -> Human:
        """Both splits of a prepared corpus."""

        def documents(tokens: Any, starts: Any) -> list[Ids]:
            return np.split(np.asarray(tokens, dtype=np.int64), starts[1:])

        return cls(
            documents(prepared.train, prepared.train_documents),
            documents(prepared.validation, prepared.validation_documents),
            lambda text: np.append(prepared.tokenizer.encode(text).ids, prepared.train[-1]),
        )

    def measured(self, bpb: float, shards: Sequence[Shard]) -> Measured:
        """What a generation wrote, tokenized as the next one reads it, beside human text."""
        rows = [row for shard in shards for row in read_shard(shard.path)]
        documents = first_tokens([self._encode(row["text"]) for row in rows], self.tokens)
        reasons: dict[str, int] = {}
        for shard in shards:
            for reason, count in shard.ledger.dropped.items():
                reasons[reason] = reasons.get(reason, 0) + count.rows
        return Measured(
            bpb=bpb,
            **_various(documents),
            **self._tails(documents),
            law=sum(row["nats"] for row in rows) / sum(row["tokens"] for row in rows),
            documents=sum(shard.ledger.came.rows for shard in shards),
            dropped=reasons,
            cut=sum(row["ended"] == "length" for row in rows) / len(rows),
        )

    def _tails(self, documents: Sequence[Ids]) -> dict[str, Mapping[str, float]]:
        return {
            "tail": {str(tail.n): tail.mass(documents) for tail in self.tails},
            "unseen": {str(tail.n): tail.unseen(documents) for tail in self.tails},
        }


def _various(documents: Sequence[Ids]) -> dict[str, Mapping[str, float]]:
    return {
        "distinct": {str(n): distinct(documents, n) for n in DISTINCT},
        "entropy": {str(n): entropy(documents, n) for n in TAIL},
    }
