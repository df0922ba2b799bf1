"""What a model writes from nothing: documents from the end-of-text token on, in shards, the same after any kill."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nachim.data.ledger import Ledger
from nachim.data.read import EMPTY, NOT_UTF8
from nachim.data.shards import SUFFIX, Shard, digest, done, write_shard
from nachim.data.stage import Drop, Row
from nachim.data.tokenize import EOT_ID
from nachim.infer.engine import Engine
from nachim.infer.request import Completion, Sampling
from nachim.infer.text import BROKEN
from nachim.model.weights import fingerprint
from nachim.spec import UserError
from nachim.train.stopping import Stopped

DOCUMENTS = 256
"""Of a shard, all written together: what a kill costs."""


@dataclass(frozen=True)
class Writing:
    """How much is written, at least `tokens`, and how tokens are drawn; `salt` tells the draws of texts apart."""

    tokens: int
    temperature: float
    top_p: float
    salt: str


def written(
    run: Path, out: Path, how: Writing, tick: Callable[[float], None], stopping: Callable[[], bool]
) -> list[Shard]:
    """The shards under `out` of what the weights in `run` write. Of each document is kept what it was drawn with: its
    `tokens`, how it `ended`, and `nats`, its log-probability under the weights with the sign turned.

    A document that is empty, or whose bytes are no UTF-8, is dropped and counted. Raises Stopped between two shards,
    and UserError where a whole shard is dropped: more of the same would have no end.
    """
    engine: Engine | None = None
    weights, shards, total = fingerprint(run), list[Shard](), 0
    for number in itertools.count():
        path, key = out / f"{number:05}{SUFFIX}", digest(weights, asdict(how), number, DOCUMENTS)
        shard = done(path, key)
        if shard is None:
            if stopping():
                raise Stopped(None)
            engine = engine or Engine(run, most=DOCUMENTS, cache_tokens=1 << 16, prefixes=False)
            shard = _shard(engine, path, key, how, number)
        if not shard.ledger.kept.rows:
            lost = ", ".join(f"{count.rows} {reason}" for reason, count in shard.ledger.dropped.items())
            raise UserError(f"the model in {run} writes no document ({lost}): train it for longer, or lower top_p")
        shards.append(shard)
        total += int(shard.ledger.facts["tokens"])
        tick(min(1.0, total / how.tokens))
        if total >= how.tokens:
            return shards


def _shard(engine: Engine, path: Path, key: str, how: Writing, number: int) -> Shard:
    places = range(number * DOCUMENTS, (number + 1) * DOCUMENTS)
    asked = [
        engine.add(
            [EOT_ID],
            Sampling(
                max_tokens=engine.limit - 1, temperature=how.temperature, top_p=how.top_p, logprobs=True,
                seed=int(digest(how.salt, place)[:15], 16),
            ),
        )
        for place in places
    ]  # fmt: skip
    served = [engine.served[one] for one in asked]
    while not engine.idle:
        engine.step()
    ledger, rows = Ledger(), list[Row]()
    for place, one in zip(places, served, strict=True):
        rows += _kept(one.best()[0].completion(), place, ledger)
    ledger.facts["tokens"] = sum(row["tokens"] for row in rows)
    return write_shard(path, key, rows, ledger)


def _kept(found: Completion, place: int, ledger: Ledger) -> list[Row]:
    """The document as a row, counted in `ledger`; nothing where it is none."""
    row: Row = {"id": place, "text": found.text, "source": "", "tokens": len(found.tokens)}
    row |= {"ended": found.finish_reason, "nats": -sum(found.logprobs or ())}
    reason = EMPTY if not found.text.strip() else NOT_UTF8 if BROKEN in found.text else None
    size = len(found.text.encode())
    if reason:
        ledger.drop(Drop(reason), row, size)
        return []
    ledger.keep(row, size, {"ended": found.finish_reason, "tokens": len(found.tokens)})
    return [row]
