"""What do few bits cost a trained model, and how much of it do GPTQ and AWQ win back?

    python ideas/quantize.py train --out runs/ideas/quantize
    python ideas/quantize.py measure runs/ideas/quantize/9 [--calibrations 3]

`train` makes a Llama-like decoder of 31 M parameters in a time that a crowded machine has: one layer of 512 first, then
three and nine that begin as copies of it, one on the other (arXiv 2405.15319). `measure` quantises the matrices of the
blocks of any run, calibrated on its train split, and prints what the loss on its validation split rises by. What came
of it: quantize.md.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file

from nachim import load
from nachim.app.ask import CACHE
from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.infer.quantize.method import quantised
from nachim.lab.work import Place, carry_out
from nachim.model import DecoderModule
from nachim.model.load import decoder_of
from nachim.model.quantized.grid import nearest
from nachim.model.quantized.linear import matrices
from nachim.model.weights import CHECKPOINT, WEIGHTS, fingerprint, latest, path_at
from nachim.spec import (
    BPE,
    NF4,
    AdamW,
    Attention,
    Constant,
    Data,
    Decoder,
    Int4,
    Int8,
    Run,
    Start,
    SwiGLU,
    Train,
    Validation,
)
from nachim.spec.quantize import Scheme

BATCH = 512
STAGES = ((1, 662, 50, 0.002), (3, 139, 50, 0.0015), (9, 50, 20, 0.001))
"""Layers, steps, those of the warm-up, and learning rate of each stage."""
ROUNDED: tuple[Scheme, ...] = (Int4(), Int8(), NF4())
"""Schemes whose rounding to nearest is measured."""
CALIBRATED: tuple[tuple[str, Scheme], ...] = (("gptq", Int4()), ("awq", Int4()))


def run_of(layers: int, steps: int, warmup: int, lr: float, start: Path | None) -> Run:
    """One stage."""
    attention = Attention(n_heads=8, n_kv_heads=8, d_head=64)
    blocks = {"attention": attention, "ffn": SwiGLU(d_ff=1408), "n_layers": layers}
    model = Decoder(vocab_size=4096, d_model=512, tied=True, **blocks)
    schedule = Constant(warmup_tokens=warmup * BATCH)
    train = Train(tokens=steps * BATCH, batch_tokens=BATCH, optimizer=AdamW(lr=lr), schedule=schedule)
    begin = None if start is None else Start(folder=str(start), fingerprint=fingerprint(start))
    data = Data(tokenizer=BPE(vocab_size=4096), seq_len=128)
    return Run(model=model, data=data, train=train, validation=Validation(tokens=16_384), start=begin)


def grown(source: Path, out: Path, layers: int) -> Path:
    """A folder whose weights are the layers of the run in `source`, again and again; the rest as it is."""
    decoder, weights = decoder_of(source), {}
    for name, weight in load_file(latest(source / CHECKPOINT) / WEIGHTS).items():
        found = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        for copy in range(layers // decoder.n_layers) if found else (None,):
            key = name if found is None else f"blocks.{copy * decoder.n_layers + int(found[1])}.{found[2]}"
            weights[key] = weight.clone()
    path_at(out / CHECKPOINT, 0).mkdir(parents=True, exist_ok=True)
    save_file(weights, path_at(out / CHECKPOINT, 0) / WEIGHTS)
    replace(decoder, n_layers=layers).save(out / "run.json")
    (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return out


def train(out: Annotated[Path, tyro.conf.arg(metavar="DIR")]) -> None:
    """Train the stages that are missing, each in DIR/LAYERS; killed, the same command goes on."""
    place, start = Place(cache=CACHE, checkpoint_seconds=300), None
    for number, (layers, *rest) in enumerate(STAGES):
        if number:
            start = grown(out / str(STAGES[number - 1][0]), out / f"{layers}-begin", layers)
        found = carry_out(run_of(layers, *rest, start), out / str(layers), place, lambda run, step, loss: None)
        print(layers, found["validation"])


def logprobs(model: DecoderModule, ids: np.ndarray) -> torch.Tensor:
    """Of all tokens of the vocabulary at every place of the sequences `ids` [N, T + 1], [N T, V]."""
    with torch.inference_mode():
        parts = [model(torch.from_numpy(row[None, :-1]))[0].log_softmax(-1) for row in ids]
    return torch.cat(parts)


Row = tuple[str, float, float, float]
"""How a model was quantised; by how much perplexity rises, %, with the sampling error of that, and the divergence of
what it predicts from what it predicted before (Kullback and Leibler's, nat/token)."""


def measured(run: Path, calibrations: int, sequences: int, tokens: int) -> Iterator[Row]:
    """Quantise and measure in every way."""
    data = Run.load(run / "run.json").data
    batches = Batches(prepare(data, CACHE), data)
    ids = batches.validation(tokens)
    target_N1 = torch.from_numpy(ids[:, 1:].reshape(-1, 1))
    plain_NV = logprobs(load(run), ids)
    print(
        f"as trained: {-plain_NV.gather(1, target_N1).mean():.4f} nat/token on {ids[:, 1:].size:,} tokens", flush=True
    )

    def told(name: str, model: DecoderModule, began: float) -> Row:
        seconds = time.process_time() - began
        found_NV = logprobs(model, ids)
        more_N = (plain_NV - found_NV).gather(1, target_N1)[:, 0]
        rise, error = math.expm1(more_N.mean().item()), more_N.std().item() / len(more_N) ** 0.5
        apart = (plain_NV.exp() * (plain_NV - found_NV)).sum(1).mean().item()
        print(f"{name}: +{rise:.3%} ({error:.3%}), {apart:.6f} nat/token apart; {seconds:.0f} CPU-s", flush=True)
        return name, 100 * rise, 100 * error, apart

    for scheme in ROUNDED:
        began, model = time.process_time(), load(run)
        for name in matrices(model):
            weight = model.get_parameter(name).data
            weight.copy_(nearest(weight, scheme).decode())
        yield told(f"nearest: {scheme!r}", model, began)
    for seed in range(calibrations):
        text = batches.batch(seed * sequences, sequences)[:, :-1]
        for method, scheme in CALIBRATED:
            began, model = time.process_time(), load(run)
            quantised(model, list(matrices(model)), scheme, method, text)
            yield told(f"{method}: {scheme!r}", model, began)


def table(
    run: Annotated[Path, tyro.conf.Positional], calibrations: int = 3, sequences: int = 128, tokens: int = 16_384
) -> None:
    """Quantise, measure, and print by how much perplexity rises and how far predictions move.

    Args:
        run: The folder of a run.
        calibrations: Times that GPTQ and AWQ are calibrated, each on other text.
        sequences: Sequences of a calibration.
        tokens: Validation tokens.
    """
    torch.set_num_threads(1)
    rows: dict[str, list[Row]] = {}
    for row in measured(run, calibrations, sequences, tokens):
        rows.setdefault(row[0], []).append(row)
    print("| matrices of the blocks | perplexity rises by, % | sampling error | divergence, nat/token |")
    print("|---|--:|--:|--:|")
    for name, found in rows.items():
        _, rises, errors, apart = zip(*found, strict=True)
        print(f"| {name} | {spread(rises, 3)} | {np.mean(errors):.3f} | {spread(apart, 6)} |")


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several, standard deviation."""
    beside = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{beside}"


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "measure": table})
