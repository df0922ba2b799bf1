"""Reading and writing at 360M parameters: the engine beside transformers, same weights, CPU milliseconds in turns.

    OMP_NUM_THREADS=1 taskset -c 1 python bench/decode.py [--dtype bfloat16] [--steps 6] [--fast] [--json]

Random weights of the Llama shape of SmolLM2-360M (32 layers of 960, 15 heads of which 5 have keys, 49,152 tokens).
Printed: the median time to read a prompt of 256 tokens, and of a step that writes one token for one request and for
eight, each after 256 tokens. transformers is called as `model(ids, past_key_values=...)`, without what `generate` adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from nachim.infer.engine import Engine
from nachim.infer.folder import opened
from nachim.infer.request import Sampling

VOCABULARY, LENGTH, BATCHES = 49_152, 256, (1, 8)


def checkpoint(dtype: torch.dtype) -> LlamaForCausalLM:
    """transformers' model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def spent(work: Callable[[], Any]) -> float:
    """CPU milliseconds of this process."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


def reading(engine: Engine, theirs: LlamaForCausalLM, rounds: int) -> dict[str, list[float]]:
    """Times to read a prompt, up to its first token."""
    found: dict[str, list[float]] = {"engine": [], "transformers": []}
    for seed in range(rounds):
        ids = torch.randint(VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(seed))
        engine.add(ids[0].tolist(), Sampling(max_tokens=1, temperature=0.0))

        def served() -> None:
            while not engine.idle:
                engine.step()

        found["engine"].append(spent(served))
        found["transformers"].append(spent(lambda ids=ids: theirs(ids, logits_to_keep=1)))
    return found


def writing(engine: Engine, theirs: LlamaForCausalLM, batch: int, steps: int) -> dict[str, list[float]]:
    """Times of single steps, one of each in turns."""
    ids = torch.randint(VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(batch))
    for row in ids.tolist():
        engine.add(row, Sampling(max_tokens=steps + 3, temperature=0.0))
    while engine.scheduler.waiting or any(held.prefilling for held in engine.scheduler.running):
        engine.step()
    cache = DynamicCache()
    last = theirs(ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    found: dict[str, list[float]] = {"engine": [], "transformers": []}

    def step() -> None:
        nonlocal last
        last = theirs(last, past_key_values=cache).logits[:, -1:].argmax(-1)

    for turn in range(steps + 1):
        times = {"engine": spent(engine.step), "transformers": spent(step)}
        for name in times if turn else ():  # the first is to warm up
            found[name].append(times[name])
    while not engine.idle:
        engine.step()
    return found


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--fast", action="store_true", help="the engine without invariance")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    theirs = checkpoint(getattr(torch, options.dtype))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        loaded = opened(folder, options.dtype)
    engine = Engine(loaded, cache_tokens=4096, prefixes=False, invariant=not options.fast)
    with torch.inference_mode():
        cases = {f"reads {LENGTH} tokens": reading(engine, theirs, 3)}
        cases |= {f"step of {batch}": writing(engine, theirs, batch, options.steps) for batch in BATCHES}
    told = {name: {side: statistics.median(times) for side, times in case.items()} for name, case in cases.items()}
    if options.json:
        print(json.dumps(told))
        return
    table = Table("case", "engine, ms", "transformers, ms", "times as fast")
    for name, row in told.items():
        ratio = row["transformers"] / row["engine"]
        table.add_row(name, f"{row['engine']:.0f}", f"{row['transformers']:.0f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
