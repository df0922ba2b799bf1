"""The verb `nachim serve`: a model behind the interface that OpenAI's clients speak."""

from __future__ import annotations

import functools
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nachim.spec import UserError

if TYPE_CHECKING:
    from nachim.app.server.served import Served

KEY = "NACHIM_API_KEY"
"""The environment variable that holds the key where none is given."""
OWN = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach."""


def serve(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    port: int = 8000,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    name: str | None = None,
    dtype: str = "float32",
    chat_template: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    cache: Literal["int8", "int4"] | None = None,
    cache_tokens: int = 32_768,
    draft: str | None = None,
    samples: int = 256,
    body_bytes: int = 8_000_000,
    stall_seconds: float = 60.0,
    drain_seconds: float = 30.0,
) -> int:
    """Serve a run or a Hugging Face checkpoint over HTTP: /v1/chat/completions, /v1/completions and /v1/models as
    OpenAI's clients speak to them, /tokenize, /detokenize, /health and /metrics.

    The address is printed once it answers. SIGTERM (or Ctrl-C) takes no more requests, finishes those that are being
    answered, and ends. Only this machine can reach it unless --host says otherwise. Needs the `serve` extra.

    Example: nachim serve runs/first --port 8000

    Args:
        run: The folder of a run, trained here or imported, or of a checkpoint.
        port: The port; 0 takes one that is free.
        host: The address to listen at; 0.0.0.0 is every one that this machine has.
        api_key: Refuse requests without it; else the environment variable NACHIM_API_KEY, which no other user can see.
        name: What the model is called; by default the folder's name.
        dtype: The precision of the weights, such as bfloat16.
        chat_template: A Jinja file that takes the place of the model's chat template.
        cache: Bits of the keys and values that are kept; by default as they were computed.
        cache_tokens: Tokens of all requests together that the cache has room for.
        draft: What guesses tokens for the model to check: ngram, mtp, or the folder of a smaller model.
        samples: Samples that may be queued or running at once; requests beyond get 429.
        body_bytes: The largest body of a request; larger ones get 413.
        stall_seconds: How long a client may stand still, sending or reading, before it is left.
        drain_seconds: How long what is being answered may take after SIGTERM.
    """
    _check(run, samples, body_bytes, stall_seconds, drain_seconds, chat_template)
    key = _key(api_key, host)
    try:
        from nachim.app.server.listen import bound, listen

        listening = bound(host, port)
        engine = {"dtype": dtype, "cache": cache, "cache_tokens": cache_tokens, "draft": draft}
        served = _opened(run, name, chat_template, engine)
        from nachim.app.server.api import Api, Limits
    except ImportError as error:
        raise UserError(f"serving needs the package {error.name}: install nachim[serve]") from error
    api = Api(served, Limits(body_bytes, samples, stall_seconds))
    said = f"serving {served.name} at {_address(host, listening.getsockname()[1])}"
    ready, cut = functools.partial(print, said, flush=True), lambda: api.worker.cut()
    listen(api.app(key), listening, drain_seconds, stall_seconds, ready, cut)
    return 0


def _opened(run: Path, name: str | None, chat_template: Path | None, options: dict[str, Any]) -> Served:
    """The model in `run`, with an engine of these options."""
    from nachim.app.server.served import Served
    from nachim.infer.engine import Engine
    from nachim.infer.folder import files_of

    files_of(run)  # before weights are read, which takes long
    return Served(run, Engine(run, **options), name, chat_template)


def _key(given: str | None, host: str) -> str | None:
    """The key that requests must have. Raises UserError for an empty one, which would let everybody in."""
    key = os.environ.get(KEY) if given is None else given
    if key is not None and not key.strip():
        raise UserError(f"the API key is empty: leave --api-key and {KEY} out to ask for none")
    if key is None and host not in OWN:
        print(f"nachim: everybody who reaches {host} can use this server: give it an --api-key", file=sys.stderr)
    return key


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _check(
    run: Path, samples: int, body_bytes: int, stall_seconds: float, drain_seconds: float, template: Path | None
) -> None:
    for option, value in (("samples", samples), ("body-bytes", body_bytes)):
        if value < 1:
            raise UserError(f"--{option} is {value}; it must be at least 1")
    if not 0 < stall_seconds < math.inf or not 0 <= drain_seconds < math.inf:
        raise UserError("--stall-seconds must be a number above 0, and --drain-seconds one not below")
    if not run.is_dir():
        raise UserError(f"there is no folder {run}")
    if template is not None and not template.is_file():
        raise UserError(f"there is no chat template {template}")
