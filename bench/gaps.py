"""What else a request feels of the others, and what the cache takes beside what it must.

    OMP_NUM_THREADS=1 taskset -c 1 python bench/gaps.py [--width 256] [--layers 4] [--json]

Random weights of a Llama shape. Sixteen requests generate while prompts of 4,096 tokens arrive: the CPU seconds between
two tokens of a request, with the blocks that are read beside generating sequences unlimited (but for the budget),
limited to one, and to as many layers of one as the time of the others allows; the first token with and without a prefix
that was read before; a pass over eight sequences, by cache.
Without a model: pages for 64 prompts of heavy-tailed lengths against what their tokens take, and the planner's bytes
for one sequence of every kind of layer against the pages and states that it is given.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nachim.infer import engine as engines
from nachim.infer.engine import PAGE, Engine
from nachim.infer.folder import Loaded
from nachim.infer.request import Sampling
from nachim.infer.schedule import Scheduler
from nachim.infer.sequence import Sequence
from nachim.infer.store import Store
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import MLA, RGLRU, Attention, Decoder, Mamba, Mamba2, Pattern, SwiGLU
from nachim.spec.cached import BLOCK, Cached

LONG, RUNNING, TOKENS = 4096, 16, 300
"""Tokens of the prompts that arrive, requests that generate, and tokens of each of these."""
CACHES: tuple[Cached | None, ...] = (None, "int8", "int4")
WAYS = (("as many as fit", 10**6, math.inf), ("one", 1, math.inf), ("as time allows", 1, engines.SHARE))
"""Blocks that are read beside generating requests, and the share of their time: the last is what an engine does."""


def shape(width: int, layers: int) -> Decoder:
    """Llama's block with heads of 64, two queries to a key."""
    heads = Attention(n_heads=width // 64, n_kv_heads=max(1, width // 128), d_head=64)
    return Decoder(vocab_size=8192, d_model=width, n_layers=layers, tied=True, attention=heads, ffn=SwiGLU(d_ff=688))


def drawn(spec: Decoder) -> Loaded:
    """A model of random weights without a tokenizer."""
    torch.manual_seed(0)
    model = build(spec)
    initialise(model, 0)
    return Loaded(model.eval(), None, frozenset(), None)


def gaps(loaded: Loaded, beside: int, share: float, every: int) -> dict[str, float]:
    """Seconds between tokens of requests that generate, while a long prompt arrives every so many passes.

    Beside them `beside` blocks are read in a pass, for `share` of the time that they took.
    """
    engines.SHARE = share
    draw = random.Random(1)
    engine = Engine(loaded, prefixes=False, cache_tokens=32_768, context=8192)
    engine.scheduler.beside = beside
    prompt = lambda length: [draw.randrange(8192) for _ in range(length)]  # noqa: E731
    running = {engine.add(prompt(64), Sampling(max_tokens=TOKENS, temperature=0.0)) for _ in range(RUNNING)}
    while engine.scheduler.waiting or any(held.prefilling for held in engine.scheduler.running):
        engine.step()
    found, first, asked = [], [], {}
    for turn in range(TOKENS - 20):
        if turn % every == 0:
            asked[engine.add(prompt(LONG), Sampling(max_tokens=1, temperature=0.0))] = time.process_time()
        begin = time.process_time()
        told = {chunk.request for chunk in engine.step()}
        found.append(time.process_time() - begin)
        assert running <= told
        first += [time.process_time() - asked[number] for number in told - running]
    ordered = sorted(found)
    return {
        "median": statistics.median(found),
        "p99": ordered[int(0.99 * len(ordered))],
        "most": ordered[-1],
        "first_token": statistics.median(first) if first else float("nan"),
        "prompts": len(first),
    }


def filled(spec: Decoder, cache: Cached | None, lengths: list[int]) -> Store:
    """A store whose pages hold prompts of these lengths, as the scheduler deals them out; nothing is computed."""
    room = sum(lengths) + 2 * BLOCK * len(lengths)
    store = Store(spec, room, PAGE, torch.float32, torch.device("cpu"), cache)
    scheduler = Scheduler(store.pools, PAGE, BLOCK, 512, 256, packing=store.packing)
    for number, length in enumerate(lengths):
        scheduler.add(Sequence(number, 0, [0] * length, length, scheduler.rank(0)))
    while scheduler.waiting or any(held.prefilling for held in scheduler.running):
        for held, _, end in scheduler.plan().blocks:
            scheduler.pack(held, end)
            scheduler.done(held, end)
    return store


def states(spec: Decoder) -> int:
    """Bytes of what a sequence keeps beside pages."""
    model = drawn(spec).model
    cache = model.start()
    with torch.inference_mode():
        model(torch.zeros(1, BLOCK, dtype=torch.int64), cache=cache)
    store = Store(spec, BLOCK, PAGE, torch.float32, torch.device("cpu"))
    layers = zip(store.layers, cache.layers, strict=True)
    return sum(value.nbytes for kept, layer in layers for name, value in layer.items() if name not in kept.shapes)


def kinds(width: int) -> dict[str, Decoder]:
    """A decoder of each kind of cache."""
    base = shape(width, 2)
    heads, inner = base.attention, 2 * width
    mamba2 = Mamba2(n_heads=inner // 64, d_head=64, d_state=64)
    found = {
        "grouped queries": heads,
        "window of 1,024": replace(heads, window=1024),
        "previous key": replace(heads, previous_key=True),
        "latent": MLA(n_heads=4, d_head=64, rank=128, rope_dim=32),
        "Mamba": Mamba(d_inner=inner, d_state=16, dt_rank=16),
        "Mamba-2": mamba2,
        "hybrid": Pattern(parts=(mamba2, heads)),
        "Griffin": Pattern(parts=(RGLRU(d_rnn=width, n_blocks=4), replace(heads, window=1024))),
        "local and global": Pattern(parts=(replace(heads, window=1024), heads)),
    }
    return {name: replace(base, attention=mixer) for name, mixer in found.items()}


def planned(width: int, length: int) -> dict[str, dict[str, float]]:
    """By kind of layer and cache, the planner's bytes over those that `length` tokens are given, less 1."""
    told: dict[str, dict[str, float]] = {}
    for name, spec in kinds(width).items():
        beside = states(spec)
        given = {cache: filled(spec, cache, [length]).used_bytes() + beside for cache in CACHES}
        told[name] = {str(cache): spec.cache_bytes(length, 4, cache) / size - 1 for cache, size in given.items()}
    return told


def waste(width: int) -> dict[str, dict[str, float]]:
    """By kind of layer and cache, the share of the bytes of 64 heavy-tailed prompts that their tokens do not take."""
    draw = random.Random(6)
    lengths = [min(1500, int(40 * draw.paretovariate(1.2))) for _ in range(64)]
    told: dict[str, dict[str, float]] = {}
    for name, spec in kinds(width).items():
        beside = len(lengths) * states(spec)
        given = {cache: filled(spec, cache, lengths).used_bytes() + beside for cache in CACHES}
        needed = {cache: sum(spec.cache_bytes(length, 4, cache) for length in lengths) for cache in CACHES}
        told[name] = {str(cache): 1 - needed[cache] / given[cache] for cache in CACHES}
    return told


def first_token(loaded: Loaded, cache: Cached | None, rounds: int = 5) -> dict[str, float]:
    """CPU seconds to the first token of a prompt of 640 tokens, cold and with nine tenths of it read before."""
    draw = random.Random(4)
    prompt = lambda length: [draw.randrange(8192) for _ in range(length)]  # noqa: E731
    shared, options = prompt(576), {"max_tokens": 1, "temperature": 0.0}
    warm, cold = Engine(loaded, cache=cache), Engine(loaded, cache=cache, prefixes=False)
    warm.generate([shared + prompt(64)], **options)
    taken: dict[str, list[float]] = {"cold": [], "prefix": []}
    for _ in range(rounds):
        for name, engine in (("cold", cold), ("prefix", warm)):
            asked = [shared + prompt(64)]
            begin = time.process_time()
            engine.generate(asked, **options)
            taken[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def passes(loaded: Loaded, count: int = 24) -> dict[str, float]:
    """CPU seconds of a pass over eight sequences of about 512 tokens, by cache; the caches take turns."""
    draw = random.Random(8)
    engines = {str(cache): Engine(loaded, cache=cache, prefixes=False, context=1024) for cache in CACHES}
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        for _ in range(8):
            prompt = [draw.randrange(8192) for _ in range(500)]
            engine.add(prompt, Sampling(max_tokens=count + 2, temperature=0.0))
        while any(held.prefilling for held in engine.scheduler.running + engine.scheduler.waiting):
            engine.step()
    for _ in range(count):
        for name, engine in engines.items():
            begin = time.process_time()
            engine.step()
            taken[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def tables(told: dict[str, Any]) -> None:
    """Print what was measured."""
    console = Console()
    table = Table("prompts, blocks beside", "median, ms", "p99, ms", "p99 / median", "first token, s", "prompts read")
    for name, row in told["gaps"].items():
        numbers = f"{row['median'] * 1e3:.1f}", f"{row['p99'] * 1e3:.1f}", f"{row['p99'] / row['median']:.2f}"
        table.add_row(name, *numbers, f"{row['first_token']:.2f}", str(row["prompts"]))
    console.print(table)
    for title in ("planned", "waste"):
        table = Table(title, *(str(cache) for cache in CACHES))
        for name, row in told[title].items():
            table.add_row(name, *(f"{value:+.2%}" for value in row.values()))
        console.print(table)
    for cache, taken in told["passes"].items():
        console.print(f"a pass over eight sequences of 512 tokens, cache {cache}: {taken * 1e3:.1f} ms")
    for cache, row in told["first_token"].items():
        console.print(f"first token, cache {cache}: {row['cold'] / row['prefix']:.1f} times sooner with a prefix")


def main() -> None:
    """Measure, and print tables or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    loaded = drawn(shape(options.width, options.layers))
    rows = {
        f"every {every} passes, {name}": gaps(loaded, beside, share, every)
        for every in (70, 140)
        for name, beside, share in WAYS
    }
    told = {
        "load": os.getloadavg()[0],
        "gaps": rows,
        "first_token": {str(cache): first_token(loaded, cache) for cache in CACHES},
        "passes": passes(loaded),
        "planned": planned(options.width, 4096 + 37),
        "waste": waste(options.width),
    }
    if options.json:
        print(json.dumps(told))
    else:
        tables(told)


if __name__ == "__main__":
    main()
