"""A socket and its end: who says nothing is left, and SIGTERM lets those who still read have a last word."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from nachim.app.server.listen import bound, listen
from nachim.spec import UserError


class App:
    """One path that answers, and one whose stream ends when it is cut."""

    def __init__(self) -> None:
        self.cut = asyncio.Event()

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/whole", self.whole), Route("/stream", self.stream)])

    async def whole(self, request: Any) -> PlainTextResponse:
        return PlainTextResponse("all")

    async def stream(self, request: Any) -> StreamingResponse:
        async def events():
            yield b"first\n"
            await self.cut.wait()
            yield b"last\n"

        return StreamingResponse(events())


def beside(client: Callable[[int, Callable[[], None]], Any], stall_seconds: float = 60.0) -> Any:
    """What `client`, given a port and what ends the server, finds in a thread of its own."""
    listening, app, found = bound("127.0.0.1", 0), App(), []
    end = functools.cache(lambda: os.kill(os.getpid(), signal.SIGTERM))

    def run() -> None:
        with contextlib.ExitStack() as last:
            last.callback(end)
            found.append(client(listening.getsockname()[1], end))

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    thread = threading.Thread(target=run)
    try:
        listen(app.app(), listening, 0.0, stall_seconds, thread.start, app.cut.set)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    thread.join()
    return found[0]


def test_what_is_streamed_when_the_end_comes_is_cut_and_not_dropped():
    def client(port: int, end: Callable[[], None]) -> list[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/stream")
        answer = connection.getresponse()
        lines = [answer.readline()]
        end()
        lines += answer.readlines()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        return lines

    assert beside(client) == [b"first\n", b"last\n"]


def test_who_sends_no_whole_head_is_left_and_others_are_answered():
    def client(port: int, end: Callable[[], None]) -> list[bytes]:
        said = (b"", b"GET /whole HTTP/1.1\r\nHost: x\r\n", b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\nGET /wh")
        silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in said]
        for one, head in zip(silent, said, strict=True):
            one.sendall(head)
        whole = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        whole.request("GET", "/whole")
        heard = [whole.getresponse().read()]
        for one in silent:
            with one, one.makefile("rb") as file:
                heard.append(file.read()[-3:])  # it comes to an end: the server has closed
        return heard

    assert beside(client, stall_seconds=0.1) == [b"all", b"", b"", b"all"]


def test_two_do_not_listen_at_one_port():
    with bound("127.0.0.1", 0) as first, pytest.raises(UserError, match=r"cannot listen at .* choose another"):
        bound("127.0.0.1", first.getsockname()[1])
    for host, port in (("127.0.0.1", 1 << 16), ("no such host.invalid", 0)):
        with pytest.raises(UserError, match="cannot listen at"):
            bound(host, port)
