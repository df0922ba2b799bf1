"""One request on its way: what it takes of the server, the streams it waits for, and that all is given back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from nachim.app.server.answers import Answer
from nachim.app.server.asks import Ask
from nachim.app.server.errors import ApiError
from nachim.app.server.metrics import Metrics
from nachim.app.server.served import Served
from nachim.app.server.worker import Stream, Worker
from nachim.infer.request import Chunk
from nachim.spec import UserError

DONE = b"data: [DONE]\n\n"


class Slots:
    """How many samples may be queued or running."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def take(self, count: int) -> None:
        """Take slots. Raises ApiError: 400 for more than there are, 429 for more than are free."""
        if count > self.most:
            raise ApiError(400, f"the request asks for {count} samples at once; this server has room for {self.most}")
        if self.taken + count > self.most:
            raise ApiError(429, "the server has as much to do as it takes on; try again", code="overloaded")
        self.taken += count

    def free(self, count: int) -> None:
        """Give slots back."""
        self.taken -= count


class Run:
    """A request of `samples` samples. `leave` it in the end, however it ends; twice does no harm.

    `answered` once nothing more is to be said: who goes before that has left.
    """

    def __init__(self, worker: Worker, slots: Slots, metrics: Metrics, samples: int) -> None:
        slots.take(samples)
        self.worker, self.slots, self.metrics, self.samples = worker, slots, metrics, samples
        self.began, self.streams = time.monotonic(), list[Stream]()
        self.answered = False
        self._done, self._heard = False, False
        metrics.samples.inc(samples)

    async def queue(self, served: Served, asks: Sequence[Ask]) -> None:
        """Hand all prompts to the engine, between two of its steps. Raises UserError where it refuses one."""
        adding: list[asyncio.Task[Stream]] = []
        try:
            for ask in asks:
                constraint = None if ask.grammar is None else await asyncio.to_thread(served.start, ask.grammar)
                more = {"priority": ask.priority, "constraint": constraint}
                adding.append(asyncio.ensure_future(self.worker.add(ask.prompt, ask.sampling, **more)))
            for task in adding:
                self.streams.append(await task)
        except BaseException:
            for task in adding:
                task.add_done_callback(self._unwanted)
                task.cancel()
            raise
        self.metrics.prompt_tokens.inc(sum(len(ask.prompt) for ask in asks))

    def _unwanted(self, task: asyncio.Task[Stream]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.worker.leave(task.result())

    def leave(self, gone: bool = False) -> None:
        """Give all back; what still runs is aborted. `gone` says that the client was the one who went."""
        if self._done:
            return
        self._done = True
        for stream in self.streams:
            self.worker.leave(stream)
        if gone:
            self.metrics.left.inc()
        self.slots.free(self.samples)
        self.metrics.samples.dec(self.samples)
        self.metrics.seconds.observe(time.monotonic() - self.began)

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """The whole answer."""
        async for prompt, chunk in self._chunks():
            answer.take(prompt, chunk)
        return answer.whole([stream.prompt_logprobs() for stream in self.streams])

    async def events(self, answer: Answer, usage: bool) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error that comes after the first is one of them."""
        for event in answer.first():
            yield _event(event)
        try:
            async for prompt, chunk in self._chunks():
                for event in answer.events(prompt, chunk):
                    yield _event(event)
        except (ApiError, UserError) as error:
            told = error if isinstance(error, ApiError) else ApiError(400, str(error))
            self.answered = True
            yield _event(told.body())
            return
        self.answered = True
        if usage:
            yield _event(answer.event([], usage=answer.usage()))
        yield DONE

    async def _chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """The chunks of all streams as they come, each with the number of its prompt."""
        if len(self.streams) == 1:
            async for chunk in self.streams[0]:
                yield 0, self._counted(chunk)
            return
        joined: asyncio.Queue[tuple[int, Chunk] | BaseException | None] = asyncio.Queue(maxsize=64)
        tasks = [asyncio.ensure_future(_pour(i, stream, joined)) for i, stream in enumerate(self.streams)]
        try:
            left = len(tasks)
            while left:
                found = await joined.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    left -= 1
                else:
                    yield found[0], self._counted(found[1])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _counted(self, chunk: Chunk) -> Chunk:
        self.metrics.generated_tokens.inc(len(chunk.tokens))
        if not self._heard:
            self._heard = True
            self.metrics.first_token.observe(time.monotonic() - self.began)
        return chunk


class Events(StreamingResponse):
    """Server-sent events of a run, which is left when they end, or their reader does."""

    def __init__(self, run: Run, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.leave(gone=not self._run.answered)


async def _pour(prompt: int, stream: Stream, into: asyncio.Queue[Any]) -> None:
    try:
        async for chunk in stream:
            await into.put((prompt, chunk))
    except Exception as error:
        await into.put(error)
    else:
        await into.put(None)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
