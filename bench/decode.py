"""Reading and writing at 360M parameters: the engine beside transformers and llama.cpp, CPU milliseconds in turns.

    OMP_NUM_THREADS=1 python bench/decode.py [--weights bfloat16] [--length 257] [--turns 5] [--steps 4] [--json]
    OMP_NUM_THREADS=1 python bench/decode.py --weights int4 --llama    # needs pip install xllamacpp

The Llama shape of SmolLM2-360M (32 layers of 960, 15 heads of which 5 have keys, 49,152 tokens), or, `--layers 4
--vocabulary 8192`, 47M. Weights are drawn for one layer; every layer has a copy. The engine has them in `--weights`
bits; transformers in bf16 (in fp32 beside fp32), llama.cpp in q4_0, its table in q8_0. Printed: the median time to
read a prompt of `--length` tokens, and of a step that writes one token for one request and for eight after as many.
transformers is called as `model(ids, past_key_values=...)`, without what `generate` adds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nachim.infer.engine import Engine
from nachim.infer.folder import Loaded
from nachim.infer.quantize.rounding import chosen, rounded
from nachim.infer.request import Sampling
from nachim.model import DecoderModule
from nachim.model.quantized.linear import put
from nachim.spec import NF4, Attention, Decoder, Int4, Int8, RMSNorm, SwiGLU
from nachim.spec.quantize import Scheme

MOST, READINGS = 512, 2
"""Tokens of a prompt with what is written, at most; times that one is read."""
SHAPE = {"width": 960, "heads": 15, "keys": 5, "inner": 2560}
SCHEMES: dict[str, Scheme] = {"int8": Int8(), "int4": Int4(group=64), "nf4": NF4()}
Times = dict[str, list[float]]


def drawn(module: nn.Module) -> None:
    """Matrices from the normal law, gains of 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            values = torch.randn(1 << 20, generator=generator) * weight.shape[-1] ** -0.5
            for part in weight.view(-1).split(len(values)):
                part.copy_(values[: len(part)] if weight.ndim > 1 else torch.ones(len(part)))


def alike(layers: nn.ModuleList) -> None:
    """Each layer a copy of the first."""
    for number in range(1, len(layers)):
        layers[number] = copy.deepcopy(layers[0])


def theirs_of(layers: int, vocabulary: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """transformers' model."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=SHAPE["width"],
        intermediate_size=SHAPE["inner"],
        num_hidden_layers=1,
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["keys"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    with no_init_weights():
        model = LlamaForCausalLM(config).to(dtype).eval()
    drawn(model)
    held = model.model.layers
    for number in range(1, layers):
        held.append(copy.deepcopy(held[0]))
        held[number].self_attn.layer_idx = number
    config.num_hidden_layers = layers
    return model


def ours_of(layers: int, vocabulary: int, dtype: torch.dtype, scheme: Scheme | None) -> Loaded:
    """Our model, its matrices rounded to nearest where there is a scheme."""
    attention = Attention(n_heads=SHAPE["heads"], n_kv_heads=SHAPE["keys"], d_head=SHAPE["width"] // SHAPE["heads"])
    spec = Decoder(
        vocab_size=vocabulary,
        d_model=SHAPE["width"],
        n_layers=layers,
        attention=attention,
        ffn=SwiGLU(d_ff=SHAPE["inner"]),
        norm=RMSNorm(eps=1e-5),
        tied=True,
    )
    with torch.device("meta"):
        model = DecoderModule(spec).to(dtype)
    rest, model.blocks = model.blocks, nn.ModuleList(model.blocks[:1])
    model.to_empty(device="cpu").eval()
    model.head.weight = model.embedding.weight
    drawn(model)
    if scheme is not None:
        put(model, rounded(model, chosen(model, scheme), scheme))
    model.blocks.extend(rest[1:])
    alike(model.blocks)
    return Loaded(model, None, frozenset(), MOST)


def spent(work: Callable[[], Any]) -> float:
    """CPU milliseconds of this process."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


class Bench:
    """The sides, which take turns."""

    def __init__(self, engine: Engine, theirs: LlamaForCausalLM, llama: Any, options: argparse.Namespace) -> None:
        self.engine, self.theirs, self.llama = engine, theirs, llama
        self.turns, self.steps, self.length = options.turns, options.steps, options.length

    def ids(self, seed: int) -> torch.Tensor:
        """A prompt [1, length]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(256, self.theirs.config.vocab_size, (1, self.length), generator=generator)

    def taken(self, sides: Callable[[int], dict[str, Callable[[], Any]]], turns: int) -> Times:
        """Times of the sides of each turn; the first turn is to warm up."""
        found: Times = {}
        for turn in range(turns + 1):
            for name, work in sides(turn).items():
                found.setdefault(name, []).append(spent(work))
        return {name: times[1:] for name, times in found.items()}

    def reading(self) -> Times:
        """Times to read a prompt, up to its first token."""

        def sides(turn: int) -> dict[str, Callable[[], Any]]:
            ids = self.ids(turn)
            ours = lambda: self.engine.generate(ids.tolist(), max_tokens=1, temperature=0.0)  # noqa: E731
            found = {"engine": ours, "transformers": lambda: self.theirs(ids, logits_to_keep=1)}
            return found | ({"llama.cpp": lambda: self.llama.answers(ids.tolist(), 1, False)} if self.llama else {})

        return self.taken(sides, READINGS)

    def writing(self, batch: int) -> Times:
        """Times of a step, the mean of as many as a turn has."""
        ids, cache = self.ids(READINGS), DynamicCache()  # the last one that was read: the engine has it
        count = self.steps * (self.turns + 2)
        numbers = [self.engine.add(row, Sampling(max_tokens=count, temperature=0.0)) for row in ids.tolist() * batch]
        while self.engine.scheduler.waiting or any(held.prefilling for held in self.engine.scheduler.running):
            self.engine.step()
        last = self.theirs(ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1).repeat(batch, 1)
        cache.batch_repeat_interleave(batch)

        def ours() -> None:
            for _ in range(self.steps):
                self.engine.step()

        def step() -> None:
            nonlocal last
            for _ in range(self.steps):
                last = self.theirs(last, past_key_values=cache).logits[:, -1:].argmax(-1)

        sides: dict[str, Callable[[], Any]] = {"engine": ours, "transformers": step}
        if self.llama:
            self.llama.answers(ids.tolist() * batch, 1)
            sides["llama.cpp"] = lambda: self.llama.answers(ids.tolist() * batch, self.steps)
        found = self.taken(lambda turn: sides, self.turns)
        for number in numbers:
            self.engine.abort(number)
        return {name: [value / self.steps for value in times] for name, times in found.items()}


def asked() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="bfloat16", choices=("bfloat16", "float32", *SCHEMES))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--length", type=int, default=257, help="tokens of a prompt")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--fast", action="store_true", help="the engine without invariance")
    parser.add_argument("--llama", action="store_true", help="llama.cpp's q4_0 beside them")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def prepared(options: argparse.Namespace, folder: Path) -> Bench:
    """Everything that is measured, opened."""
    dtype = torch.float32 if options.weights == "float32" else torch.bfloat16
    theirs = theirs_of(options.layers, options.vocabulary, dtype)
    loaded, llama = ours_of(options.layers, options.vocabulary, dtype, SCHEMES.get(options.weights)), None
    if options.llama:
        from bench._llama import Llama, written

        shape = {**SHAPE, "layers": options.layers, "vocabulary": options.vocabulary}
        llama = Llama(written(folder / "q4_0.gguf", **shape), 8, MOST)
    engine = Engine(loaded, cache_tokens=9 * MOST, invariant=not options.fast)
    return Bench(engine, theirs, llama, options)


def main() -> None:
    """Measure, and print a table or one JSON object."""
    options = asked()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepared(options, Path(folder))
        with torch.inference_mode():
            cases = {f"reads {options.length} tokens": bench.reading()}
            cases |= {f"step of {batch}": bench.writing(batch) for batch in (1, 8)}
    told = {name: {side: statistics.median(times) for side, times in case.items()} for name, case in cases.items()}
    if options.json:
        print(json.dumps({"weights": options.weights, "load": os.getloadavg()[0], "milliseconds": told}))
        return
    names = list(next(iter(told.values())))
    table = Table("case", *(f"{name}, ms" for name in names), *(f"times {name}'s speed" for name in names[1:]))
    for case, row in told.items():
        ratios = (f"{row[name] / row['engine']:.2f}" for name in names[1:])
        table.add_row(case, *(f"{row[name]:.1f}" for name in names), *ratios)
    Console().print(table)
    Console().print(
        f"{options.weights}, {torch.get_num_threads()} thread, load of the machine {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
