"""The verb `nachim chat`: a conversation with a model, in the terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from nachim.spec import UserError

if TYPE_CHECKING:
    from nachim.app.server.served import Served
    from nachim.infer.request import Sampling

HELP = (
    "/reset forgets the conversation · /system TEXT sets the system prompt and resets · /exit leaves (so does Ctrl-D)"
)


def chat(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    system: str | None = None,
    temperature: float = 0.7,
    top_p: float = 1.0,
    max_tokens: int = 512,
    seed: int | None = None,
    dtype: str = "float32",
    chat_template: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> int:
    """Talk with a model that has a chat template: answers come as they are written, and the conversation is kept.

    Ctrl-C stops an answer, not the program; what was said by then stays in the conversation. /reset begins anew,
    /system TEXT sets the system prompt, /exit leaves. Lines may be piped in. Needs the `serve` extra.

    Example: nachim chat runs/qwen --system "Answer in one sentence."

    Args:
        run: The folder of a run, trained here or imported, or of a checkpoint.
        system: The system prompt.
        temperature: 0 takes the likeliest token; 1 draws from the model's own distribution.
        top_p: Draw from the likeliest tokens that together have this probability.
        max_tokens: Tokens of an answer at most.
        seed: The same seed gives the same answers to the same lines.
        dtype: The precision of the weights, such as bfloat16.
        chat_template: A Jinja file that takes the place of the model's chat template.
    """
    if not run.is_dir():
        raise UserError(f"there is no folder {run}")
    try:
        from nachim.app.server.served import Served
    except ImportError as error:
        raise UserError(f"chats need the package {error.name}: install nachim[serve]") from error
    from nachim.infer.engine import Engine
    from nachim.infer.request import Sampling

    asked = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    talk = Conversation(Served(run, Engine(run, dtype=dtype), template=chat_template), asked, system)
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(f"{talk.served.name} · {HELP}", style="dim")
    for line in _lines(console):
        said = _obeyed(talk, line)
        if said is not None:
            console.print(said, style="dim")
        else:
            _answer(talk, line, console)
    return 0


class Conversation:
    """What was said so far, and an engine that goes on from it. Raises UserError for a model without a template."""

    def __init__(self, served: Served, sampling: Sampling, system: str | None = None) -> None:
        if served.template is None:
            raise UserError(
                f"{served.name} has no chat template: give one with --chat-template, or use nachim generate"
            )
        self.served, self.sampling, self.system = served, sampling, system
        self.messages: list[dict[str, Any]] = []
        self.stopped = False
        """Set it, from a signal's handler too, to end the answer that is being written."""
        self.reset()

    def reset(self) -> None:
        """Forget all but the system prompt."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, text: str) -> Iterator[str]:
        """Say `text`; the answer in pieces, as it is written. Both join the conversation, or neither on an error."""
        from dataclasses import replace

        said = [*self.messages, {"role": "user", "content": text}]
        assert self.served.template is not None
        ids = self.served.encode_chat(self.served.template.render(said))
        engine, sampling = self.served.engine, replace(self.sampling, stop_tokens=self.served.ends)
        request, pieces, self.stopped = engine.add(ids, sampling), list[str](), False
        try:
            while not engine.idle and not self.stopped:
                for chunk in engine.step():
                    pieces.append(chunk.text)
                    yield chunk.text
        finally:
            engine.abort(request)
        self.messages = [*said, {"role": "assistant", "content": "".join(pieces)}]


def _lines(console: Console) -> Iterator[str]:
    """Lines that hold something; on a terminal with a prompt and a history, where Ctrl-C drops the line."""
    if not sys.stdin.isatty():
        yield from filter(None, (line.strip() for line in sys.stdin))
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then edits lines and remembers them
    while True:
        try:
            line = console.input("[bold green]> [/]").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("  (Ctrl-D leaves)", style="dim")
            continue
        if line in ("/exit", "/quit"):
            return
        if line:
            yield line


def _obeyed(talk: Conversation, line: str) -> str | None:
    """Do what a line that begins with a slash says, and what to tell of it; None where it is for the model."""
    word, _, rest = line.partition(" ")
    if word == "/system":
        talk.system = rest.strip() or None
    if word in ("/system", "/reset"):
        talk.reset()
        return "a new conversation" + (f", system prompt: {talk.system}" if talk.system else "")
    return HELP if line.startswith("/") else None


def _answer(talk: Conversation, line: str, console: Console) -> None:
    """Write the answer to `line` as it comes; Ctrl-C ends it."""

    def stop(*_: object) -> None:
        talk.stopped = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        for piece in talk.answer(line):
            console.out(piece, end="", highlight=False)
            console.file.flush()
        console.print(" [stopped]" if talk.stopped else "", style="dim", markup=False)
    except UserError as error:
        console.print(f"{error}; /reset begins anew", style="red", markup=False)
    finally:
        signal.signal(signal.SIGINT, before)
