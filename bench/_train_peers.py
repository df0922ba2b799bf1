"""One training step of others' code, as their own loops take it; their code is read where it lies, and not kept."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LR, DECAY, CLIP = 1e-3, 0.1, 1.0


@dataclass(frozen=True)
class Case:
    """A shape to train: heads of `d_head` each, `batch` sequences of `seq_len` tokens a step, `vocab_size` words."""

    d_model: int
    n_layers: int
    d_head: int
    batch: int
    seq_len: int
    vocab_size: int

    @property
    def heads(self) -> int:
        """Heads of the attention."""
        return self.d_model // self.d_head

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.seq_len

    def sequences(self) -> Tensor:
        """Random tokens [B, T + 1]."""
        return torch.randint(
            self.vocab_size, (self.batch, self.seq_len + 1), generator=torch.Generator().manual_seed(0)
        )


@dataclass(frozen=True)
class Side:
    """One step of somebody's training, and how many parameters it trains; `whole` makes it anew and takes two steps in
    this thread, where `step` has others take them."""

    step: Callable[[], object]
    parameters: int
    whole: Callable[[], object] | None = None


Make = Callable[[Case], Side]


def count(model: nn.Module) -> int:
    """Parameters of `model`, a tied table once."""
    return sum(weight.numel() for weight in model.parameters())


def peers(nanogpt: Path | None, nanochat: Path | None) -> Iterator[tuple[str, Make | str]]:
    """Every peer by name: how it is made, or a sentence that says why it is not."""
    for form in (False, True):
        name = f"nanoGPT{', compiled' * form}"
        yield name, functools.partial(nano_gpt, nanogpt, form) if nanogpt else "say where it is: --nanogpt DIR"
    for dtype in ("float32", "bfloat16"):
        name = f"nanochat{', bf16' * (dtype == 'bfloat16')}"
        yield name, functools.partial(nano_chat, nanochat, dtype) if nanochat else "say where it is: --nanochat DIR"
    absent = "transformers is not installed" if find_spec("transformers") is None else ""
    for form in (False, True):
        yield f"transformers{', compiled' * form}", absent or functools.partial(plain_loop, form)
    yield "Trainer, bf16", absent or ("accelerate is not installed" if find_spec("accelerate") is None else trainer)


@contextmanager
def source(place: Path, *forget: str) -> Iterator[None]:
    """Let the package in `place`, a checkout or a bare git directory, be imported; modules to `forget` come anew."""
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        if (place / "HEAD").is_file():
            archive = subprocess.run(
                ["git", "--git-dir", str(place), "archive", "HEAD"], check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            place = Path(folder)
        for name in [name for name in sys.modules if name.split(".")[0] in forget]:
            del sys.modules[name]
        sys.path.insert(0, str(place))
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            sys.path.remove(str(place))


def loop(forward: Callable[[], Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None) -> Side:
    """The step that plain loops take."""

    def step() -> None:
        loss = forward()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return Side(step, count(model))


def nano_gpt(place: Path, compiled: bool, case: Case) -> Side:
    """nanoGPT's GPT under the body of its loop: on a CPU that is fp32, without autocast."""
    with source(place, "model"):
        theirs = importlib.import_module("model")
        config = theirs.GPTConfig(
            block_size=case.seq_len,
            vocab_size=case.vocab_size,
            n_layer=case.n_layers,
            n_head=case.heads,
            n_embd=case.d_model,
            bias=False,
        )
        model = theirs.GPT(config)
        optimizer = model.configure_optimizers(DECAY, LR, (0.9, 0.95), "cpu")
        run = torch.compile(model) if compiled else model
        ids_BT, targets_BT = (part.contiguous() for part in (case.sequences()[:, :-1], case.sequences()[:, 1:]))
        side = loop(lambda: run(ids_BT, targets_BT)[1], model, optimizer, CLIP)
        side.step()  # compiling reads the source
    return side


def nano_chat(place: Path, dtype: str, case: Case) -> Side:
    """nanochat's GPT, compiled as in its loop, with the full attention of its CPU run, and its Muon and AdamW."""
    os.environ["NANOCHAT_DTYPE"] = dtype
    with source(place, "nanochat"):
        theirs = importlib.import_module("nanochat.gpt")
        config = theirs.GPTConfig(
            sequence_len=case.seq_len,
            vocab_size=case.vocab_size,
            n_layer=case.n_layers,
            n_head=case.heads,
            n_kv_head=case.heads,
            n_embd=case.d_model,
            window_pattern="L",
        )
        model = theirs.GPT(config)
        model.init_weights()
        run = torch.compile(model, dynamic=False)
        ids_BT, targets_BT = (part.contiguous() for part in (case.sequences()[:, :-1], case.sequences()[:, 1:]))
        side = loop(lambda: run(ids_BT, targets_BT), model, model.setup_optimizer(), None)
        side.step()
    return side


def llama(case: Case) -> nn.Module:
    """Our plain decoder in transformers: the same products of the same sizes."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=case.vocab_size,
        hidden_size=case.d_model,
        intermediate_size=round(case.d_model / 3) * 8,
        num_hidden_layers=case.n_layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.heads,
        head_dim=case.d_head,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def plain_loop(compiled: bool, case: Case) -> Side:
    """A Llama of transformers in fp32 under the loop that its documentation shows."""
    model = llama(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    run = torch.compile(model) if compiled else model
    ids_BT = case.sequences()[:, :-1].contiguous()
    return loop(lambda: run(input_ids=ids_BT, labels=ids_BT).loss, model, optimizer, CLIP)


def trainer(case: Case) -> Side:
    """transformers' `Trainer` with bf16 on the CPU. Its loop runs in a thread, and is let through one step a call."""
    import transformers

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    class Gate(transformers.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            go.acquire()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            done.release()

    def whole() -> None:
        with redirect_stdout(sys.stderr):
            trainer_of(case, 2, []).train()

    theirs = trainer_of(case, 10_000, [Gate()])
    threading.Thread(target=theirs.train, daemon=True).start()
    return Side(lambda: (go.release(), done.acquire()), count(theirs.model), whole)


def trainer_of(case: Case, steps: int, callbacks: list[Any]) -> Any:
    """A `Trainer` of the case."""
    import transformers

    rows = [{"input_ids": row, "labels": row} for row in case.sequences()[:, :-1]] * 1000
    with tempfile.TemporaryDirectory(prefix="trainer-") as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            bf16=True,
            use_cpu=True,
            per_device_train_batch_size=case.batch,
            learning_rate=LR,
            weight_decay=DECAY,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
    return transformers.Trainer(model=llama(case), args=arguments, train_dataset=rows, callbacks=callbacks)
