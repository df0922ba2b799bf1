"""Training steps of the quickstart's shapes beside the same shapes in transformers, interleaved in one run.

    python bench/train_step.py [--rounds 15] [--threads 1]

Both sides: fp32, AdamW, clipping, the same batch of random tokens, eager. Ours is timed with plain attention (no
previous-token keys, no qk-norm), so that both compute the same model. Prints the median time of a step, tokens/s,
FLOP/s of body and head, MFU against the matmul peak measured here, and the ratio of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Table

from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import BPE, WSD, AdamW, Data, Decoder, Run, Train, plain
from nachim.train.guard import Guard
from nachim.train.machine import measure_machine
from nachim.train.step import Stepper

SEQ_LEN, BATCH, VOCAB = 128, 1024, 512
SHAPES = ((32, 2), (48, 2), (64, 3), (96, 4), (128, 5), (256, 8))


def ours(model: Decoder, x_BT: torch.Tensor) -> Callable[[], object]:
    """One step of our loop's own stepper."""
    data = Data(tokenizer=BPE(vocab_size=VOCAB), seq_len=SEQ_LEN)
    train = Train(tokens=BATCH * 10_000, batch_tokens=BATCH, optimizer=AdamW(lr=1e-3), schedule=WSD())
    module = build(model, model.d_model)
    initialise(module, 0)
    stepper, guard = Stepper(Run(model=model, data=data, train=train), module, next_token_loss), Guard(1e-3)
    return lambda: stepper.take(0, x_BT, guard)


def peer(model: Decoder, x_BT: torch.Tensor) -> Callable[[], object]:
    """One step of the same decoder in transformers, by the loop its documentation shows."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=model.d_model,
        intermediate_size=model.ffn.d_ff,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.attention.n_heads,
        num_key_value_heads=model.attention.n_kv_heads,
        head_dim=model.attention.d_head,
        use_cache=False,
    )
    module = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.1)

    def step() -> None:
        loss = module(input_ids=x_BT[:, :-1], labels=x_BT[:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def timed(step: Callable[[], object]) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main(rounds: int = 15, threads: int = 1) -> None:
    """Time both sides in turn and print the table."""
    torch.set_num_threads(threads)
    peak = measure_machine().peak("fp32", threads)
    table = Table(
        title=f"fp32, {threads} thread(s), batch {BATCH}, length {SEQ_LEN}, matmul peak {peak / 1e9:.0f} GFLOP/s"
    )
    for name in ("layers x width", "ms", "tokens/s", "body GFLOP/s", "head GFLOP/s", "MFU", "transformers ms", "ratio"):
        table.add_column(name, justify="right")
    for width, layers in SHAPES:
        model = plain(d_model=width, n_layers=layers, d_head=16 if width < 128 else 32, vocab_size=VOCAB)
        x_BT = torch.randint(VOCAB, (BATCH // SEQ_LEN, SEQ_LEN + 1))
        sides = (ours(model, x_BT), peer(model, x_BT))
        for side in sides:
            side()
        pairs = [[timed(side) for side in sides] for _ in range(rounds)]
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        rate = BATCH / mine
        body, head = rate * model.flops_per_token(SEQ_LEN), rate * model.head_flops_per_token
        cells = (
            f"{mine * 1e3:.1f}",
            f"{rate:,.0f}",
            f"{body / 1e9:.1f}",
            f"{head / 1e9:.1f}",
            f"{(body + head) / peak:.0%}",
        )
        table.add_row(f"{layers} x {width}", *cells, f"{theirs * 1e3:.1f}", f"{theirs / mine:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
