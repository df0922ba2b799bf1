"""A socket, an event loop, and an end in order: what is being answered is answered before the server goes."""

from __future__ import annotations

import asyncio
import functools
import math
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from nachim.spec import UserError

CUT_SECONDS = 5
"""How long the last words to clients may take."""


class Patient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection that is closed where the head of a request does not come for `seconds`, or for twice as long.

    uvicorn counts from an answer on only: who connects and says nothing, or half a head, would keep a file for ever.
    """

    def __init__(self, seconds: float, **given: Any) -> None:
        super().__init__(**given)
        self._seconds, self._met = seconds, None
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to count."""
        super().connection_made(transport)
        self._watch = self.loop.call_later(self._seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no more."""
        super().connection_lost(exc)
        if self._watch is not None:
            self._watch.cancel()

    def _look(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self.cycle is self._met:
            self.transport.close()
            return
        self._met = self.cycle
        self._watch = self.loop.call_later(self._seconds, self._look)


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
    stall_seconds: float,
    ready: Callable[[], None],
    cut: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then take no more, and finish what is being answered, or `cut` it after a while.

    `ready` is called once requests are taken. A head that does not come for `stall_seconds` is waited for no longer.
    """
    config = uvicorn.Config(
        app,
        http=functools.partial(Patient, stall_seconds),
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
