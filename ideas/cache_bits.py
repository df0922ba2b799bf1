"""What four bits for keys and values cost: keys by channels against keys by tokens, and each of the two alone.

    OMP_NUM_THREADS=1 python ideas/cache_bits.py RUN [--windows 96] [--block 32] [--json]

RUN is a folder that was trained. Windows of validation text, as long as the run's sequences, go through the engine as
prompts, so that every token but those of the first block reads what the cache made of the blocks before. Prints the
rise of their bits per byte and how far the laws of the next token move, KL(exact, way), which is that rise for text of
the model's own; both with 95 % intervals over windows. Then what a value takes.
"""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nachim.app.ask import CACHE
from nachim.data.prepare import prepare
from nachim.infer import store
from nachim.infer.codes import by_channel, by_token, steps
from nachim.infer.engine import Engine
from nachim.infer.folder import Loaded, opened
from nachim.infer.shelf import NARROW, PLACES, Coded, Narrow
from nachim.spec import Part, Run
from nachim.spec.cached import Cached, Paged

Form = Callable[[Tensor], Tensor]
"""What four bits make of a block's values [S, K, E]."""


def as_it_is(x_SKE: Tensor) -> Tensor:
    """Not rounded again."""
    return x_SKE


def channels(x_SKE: Tensor) -> Tensor:
    """A step and an offset a channel."""
    codes, found, offset = by_channel(x_SKE)
    return (codes + offset.float()) * steps(found)


def tokens(x_SKE: Tensor) -> Tensor:
    """A step a token and head."""
    codes, found = by_token(x_SKE, 4)
    return codes * steps(found)[..., None]


def offset_tokens(x_SKE: Tensor) -> Tensor:
    """A step and an offset a token and head."""
    return channels(x_SKE.permute(2, 0, 1)).permute(1, 2, 0)


def whole_tokens(x_SKE: Tensor) -> Tensor:
    """A step and an offset a token, for all heads."""
    return offset_tokens(x_SKE.flatten(1)[:, None]).view_as(x_SKE)


def tried(form: Form) -> type[Narrow]:
    """A shelf that holds what a form makes of whole blocks, in fp32."""

    class Tried(Narrow):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.whole = torch.zeros(len(self.codes), 2 * self.page, self.heads, self.width)

        def values(self, slots: Tensor) -> Tensor:
            narrow = slots % PLACES >= NARROW
            whole = self.whole[slots // PLACES, slots % NARROW]
            return torch.where(
                narrow[:, None, None], whole, Coded.values(self, slots - slots % PLACES + slots % self.page)
            )

        def pack(self, old: list[int], new: list[int]) -> None:
            slots = torch.tensor(old)[:, None] * PLACES + torch.arange(self.page)
            self.whole[new] = form(Coded.values(self, slots.flatten())).view(len(new), -1, self.heads, self.width)

    return Tried


WAYS: dict[str, tuple[Form, Form]] = {
    "keys by channels, values by tokens": (channels, tokens),
    "keys by tokens, values by tokens": (tokens, tokens),
    "keys by tokens with offsets, values by tokens": (offset_tokens, tokens),
    "keys alone, by channels": (channels, as_it_is),
    "keys alone, by tokens": (tokens, as_it_is),
    "keys alone, by tokens with offsets": (offset_tokens, as_it_is),
    "keys alone, by tokens with offsets, all heads in one": (whole_tokens, as_it_is),
    "values alone, by tokens": (as_it_is, tokens),
}
"""What keys and values of whole blocks become, in four bits."""
PAIRS = (
    ("keys by channels, values by tokens", "keys by tokens, values by tokens"),
    ("keys by channels, values by tokens", "keys by tokens with offsets, values by tokens"),
    ("keys alone, by channels", "keys alone, by tokens"),
    ("keys alone, by channels", "keys alone, by tokens with offsets"),
    ("keys alone, by channels", "keys alone, by tokens with offsets, all heads in one"),
    ("keys alone, by tokens", "values alone, by tokens"),
)


def said(loaded: Loaded, cache: Cached | None, block: int, windows: list[list[int]]) -> Tensor:
    """Log-probabilities [windows, tokens, V] after every token but those of the first block, as the engine has them."""
    engine = Engine(loaded, cache=cache, block=block, prefixes=False, cache_tokens=4096, context=4096)
    inner, heard = engine.runner.logits, list[Tensor]()

    def listening(x_BTD: Tensor) -> Tensor:
        logits_RV = inner(x_BTD)
        heard.append(logits_RV.log_softmax(-1))
        return logits_RV

    engine.runner.logits = listening
    found = []
    for window in windows:
        heard.clear()
        engine.generate([window], max_tokens=1, temperature=0.0, prompt_logprobs=True)
        found.append(torch.cat(heard[1 : len(window) // block]))  # what follows is asked for the new token
    return torch.stack(found)


def measured(loaded: Loaded, block: int, windows: list[list[int]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By way, of each window: nat of its tokens after the first block, and KL of the exact laws from the way's, nat."""
    exact_WTV = said(loaded, None, block, windows)
    asked = torch.tensor(windows)[:, block + 1 :, None]
    kept, found = dict(store.FOUR_BITS), {}
    for name in ("exact", "int8", "int4", *WAYS):
        if name in WAYS:
            keys, values = WAYS[name]
            store.FOUR_BITS.update({"key": tried(keys), "value": tried(values), "latent": tried(keys)})
        cache = None if name == "exact" else "int8" if name == "int8" else "int4"
        told_WTV = said(loaded, cache, block, windows)
        nats_W = -told_WTV[:, :-1].gather(2, asked)[..., 0].double().sum(1)
        apart_W = (exact_WTV.double().exp() * (exact_WTV.double() - told_WTV.double())).sum((1, 2))
        found[name] = nats_W.numpy(), apart_W.numpy()
    store.FOUR_BITS.update(kept)
    return found


def mean(x_W: np.ndarray, scale: float) -> tuple[float, float]:
    """The mean over windows and half its 95 % interval, times `scale`."""
    return float(scale * x_W.mean()), float(scale * 1.96 * x_W.std(ddof=1) / len(x_W) ** 0.5)


def ratio(one_W: np.ndarray, other_W: np.ndarray) -> tuple[float, float, float]:
    """The mean of one over that of the other, with its 95 % bootstrap interval over windows."""
    draws = np.random.default_rng(0).integers(0, len(one_W), (10_000, len(one_W)))
    drawn = one_W[draws].mean(1) / other_W[draws].mean(1)
    return (float(one_W.mean() / other_W.mean()), *map(float, np.percentile(drawn, (2.5, 97.5))))


def bits(width: int) -> dict[str, list[float]]:
    """Bits of a value that a sequence keeps, keys and values together, by its tokens: heads of `width`."""
    kinds = Paged(1, width, True), Paged(1, width, False)
    lengths = (512, 2048, 4096, 8192, 32_768)

    def each(length: int, cache: Cached) -> float:
        """Over the lengths of a block that is not whole."""
        near = range(length, length + 64)
        return float(np.mean([sum(kind.bytes(n, None, cache) for kind in kinds) * 4 / (width * n) for n in near]))

    return {cache: [round(each(length, cache), 3) for length in lengths] for cache in ("int8", "int4")}


def main(run: Annotated[Path, tyro.conf.Positional], windows: int = 96, block: int = 32, json: bool = False) -> None:
    """Measure, and print a table or one JSON object."""
    torch.set_num_threads(1)
    part = Part.load(run / "run.json")
    assert isinstance(part, Run)
    data, length = prepare(part.data, CACHE), part.data.seq_len
    draw = np.random.default_rng(0).choice(len(data.validation) // length, windows, replace=False)
    texts = [data.validation[n * length : (n + 1) * length].tolist() for n in sorted(draw)]
    begin = time.process_time()
    found = measured(opened(run), block, texts)
    exact_W, tokens = found["exact"][0], length - block
    raw = sum(int(data.bytes_per_token[text[block + 1 :]].sum()) for text in texts)
    told = {
        name: {"rise_percent": mean(nats_W - exact_W, 100 / exact_W.mean()), "kl_nat": mean(apart_W, 1 / tokens)}
        for name, (nats_W, apart_W) in found.items()
    }
    ratios = {f"{one} / {other}": ratio(found[one][1], found[other][1]) for one, other in PAIRS}
    assert np.array_equal(found["int4"], found[PAIRS[0][0]])
    whole = {"bpb": exact_W.sum() / raw / np.log(2), "ways": told, "ratios_of_kl": ratios}
    whole |= {"bits": {width: bits(width) for width in (16, 64, 128)}, "cpu_seconds": time.process_time() - begin}
    if json:
        print(jsonlib.dumps(whole))
        return
    table = Table("cache", "rise of bpb, %", "95 %", "KL, nat a token", "95 %")
    for name, row in told.items():
        (rise, half), (apart, spread) = row["rise_percent"], row["kl_nat"]
        table.add_row(name, f"{rise:+.3f}", f"± {half:.3f}", f"{apart:.2e}", f"± {spread:.1e}")
    console = Console()
    console.print(table)
    for name, (one, low, high) in ratios.items():
        console.print(f"KL, {name}: {one:.2f} ({low:.2f} to {high:.2f})")
    console.print(f"exact: {whole['bpb']:.4f} bits a byte; bits a value by heads and lengths: {whole['bits']}")


if __name__ == "__main__":
    tyro.cli(main)
