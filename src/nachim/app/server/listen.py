"""A socket, an event loop, and an end in order: what is being answered is answered before the server goes."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from nachim.spec import UserError

CUT_SECONDS = 5
"""How long the last words to clients may take."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port`, any free one for 0. Raises UserError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise UserError(f"cannot listen at {host}:{port}: {why}; choose another --host or --port") from error


def listen(
    app: Starlette,
    listening: socket.socket,
    drain_seconds: float,
    ready: Callable[[], None],
    cut: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then take no more, and finish what is being answered, or `cut` it after a while.

    `ready` is called once requests are taken.
    """
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(drain_seconds) + CUT_SECONDS,
    )
    server = uvicorn.Server(config)

    def end(*_: object) -> None:
        # Before uvicorn takes signals itself, and again after: it raises them once more when it is done.
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    asyncio.run(_served(server, listening, drain_seconds, ready, cut))


async def _served(
    server: uvicorn.Server,
    listening: socket.socket,
    drain_seconds: float,
    ready: Callable[[], None],
    cut: Callable[[], None],
) -> None:
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.005)
    if server.started:
        ready()
    while not (server.should_exit or serving.done()):
        await asyncio.sleep(0.1)
    await asyncio.wait({serving}, timeout=drain_seconds)
    if not serving.done():
        cut()
    await serving
