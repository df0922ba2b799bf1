"""A socket, an event loop, and an end in order: what is being answered is answered before the server goes."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from nachim.spec import UserError


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port`, any free one for 0. Raises UserError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen at {host}:{port}: {why}; choose another --host or --port") from error


def listen(app: Starlette, listening: socket.socket, drain_seconds: float, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; then take no more, finish what is being answered, or cut it after a while."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    server = uvicorn.Server(config)

    def end(*_: object) -> None:
        # Before uvicorn takes signals itself, and again after: it raises them once more when it is done.
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    asyncio.run(_served(server, listening, ready))


async def _served(server: uvicorn.Server, listening: socket.socket, ready: Callable[[], None]) -> None:
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.005)
    if server.started:
        ready()
    await serving
