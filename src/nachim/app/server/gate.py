"""What every request passes first: the key, the size of the body, and how long a client may stand still."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nachim.app.server.errors import ApiError
from nachim.app.server.metrics import Metrics

OPEN = ("/health",)
"""Paths that ask for no key."""


@dataclass(frozen=True)
class Limits:
    """What clients may ask of a server at most."""

    body_bytes: int = 8_000_000
    samples: int = 256
    """Samples that are queued or running, over all clients."""
    stall_seconds: float = 60.0
    """How long a client may leave a body unfinished, or an answer unread."""


class Unread(Exception):
    """A client does not read its answer."""


class Gate:
    """Refuses requests without the key and with bodies too large; leaves clients that stand still."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, api_key: str | None = None) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key = api_key and f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = self._patient(send, scope["path"])
        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        # One who does not read is left: uvicorn closes what was not completed.
        with contextlib.suppress(Unread):
            await self.app(scope, self._limited(receive), send)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        # Compared in constant time: how long a refusal takes says nothing of the key.
        if self.key and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self.key):
                message = "this server asks for an API key: send it as `Authorization: Bearer KEY`"
                raise ApiError(401, message if not given else "the API key is wrong", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self.limits.body_bytes:,} bytes", code="body_too_large")

    def _limited(self, receive: Receive) -> Receive:
        seen, more = 0, True

        async def limited() -> Message:
            nonlocal seen, more
            if not more:  # the body is in: what comes now is that the client left
                return await receive()
            try:
                async with asyncio.timeout(self.limits.stall_seconds):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(408, f"no more of the body came for {self.limits.stall_seconds:g} seconds") from error
            seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)
            if seen > self.limits.body_bytes:
                raise self._too_large()
            return message

        return limited

    def _patient(self, send: Send, path: str) -> Send:
        async def patient(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answered(path, message["status"])
            # While a client does not read, uvicorn's send waits; others are served meanwhile.
            try:
                async with asyncio.timeout(self.limits.stall_seconds):
                    await send(message)
            except TimeoutError as error:
                raise Unread from error

        return patient
