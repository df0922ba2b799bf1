"""One thread steps the engine; requests come to it, and what it says goes back, across the border to asyncio."""

from __future__ import annotations

import asyncio
import queue
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from nachim.app.server.errors import ApiError
from nachim.infer.engine import Engine
from nachim.infer.request import Chunk, Sampling
from nachim.spec import UserError

BACKLOG = 4096
"""Chunks that wait for a client. One that reads so much slower than the engine writes is let go."""


class Stream:
    """The chunks of one request, in order, until all samples have ended. Who leaves before tells the worker."""

    def __init__(self, request: int, samples: int, prompt_logprobs: Callable[[], Sequence[float | None]]) -> None:
        self.request, self.prompt_logprobs = request, prompt_logprobs
        self.running = samples
        self._chunks: asyncio.Queue[Chunk | ApiError] = asyncio.Queue()
        self._unread = samples

    @property
    def full(self) -> bool:
        """Whether more waits for the client than may."""
        return self._chunks.qsize() >= BACKLOG

    def put(self, chunk: Chunk | ApiError) -> None:
        """Hand over a chunk, or the error that ends the stream."""
        self.running -= isinstance(chunk, Chunk) and chunk.finish_reason is not None
        self._chunks.put_nowait(chunk)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while self._unread:
            chunk = await self._chunks.get()
            if isinstance(chunk, ApiError):
                raise chunk
            self._unread -= chunk.finish_reason is not None
            yield chunk


class Worker:
    """Steps `engine` in a thread of its own while anything is queued. Its methods are called from the event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failed: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[int, Stream] = {}
        self._asked: set[asyncio.Future[Any]] = set()
        """Orders that were not answered yet: the thread may end before it comes to them."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def add(self, prompt: Sequence[int], sampling: Sampling, **more: Any) -> Stream:
        """Queue a request; the stream of its chunks. Raises UserError for one that cannot be served."""
        answer: asyncio.Future[Stream] = self._answer()

        def order() -> None:
            try:
                request = self.engine.add(prompt, sampling, **more)
                served = self.engine.served[request]
            except Exception as error:
                self._tell(_refuse, answer, error)
            else:
                self._tell(self._open, answer, Stream(request, sampling.n, lambda: served.prompt_logprobs))

        self._orders.put(order)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(self._unwanted)
            raise

    async def ask(self, function: Callable[[Engine], Any]) -> Any:
        """What `function` says of the engine between two of its steps."""
        answer = self._answer()
        self._orders.put(lambda: self._tell(_answered, answer, function(self.engine)))
        return await answer

    def leave(self, stream: Stream) -> None:
        """Abort a request that nobody waits for any more; one that has ended is let be."""
        if self._streams.pop(stream.request, None) is not None:
            self._orders.put(lambda: self.engine.abort(stream.request))

    def cut(self) -> None:
        """End every request now; who waits for one is told."""
        for stream in list(self._streams.values()):
            stream.put(ApiError(503, "the server is shutting down"))
            self.leave(stream)

    def stop(self) -> None:
        """Let the thread end after what it does now; streams that are open get an error."""
        self._orders.put(None)
        self._thread.join(timeout=10)
        self._fail(ApiError(503, "the server is shutting down"))

    def _answer(self) -> asyncio.Future[Any]:
        """What an order is answered by, at the latest when the thread ends."""
        if self.failed is not None:
            raise ApiError(503, "the engine has stopped after an error; restart the server")
        answer = self._loop.create_future()
        self._asked.add(answer)
        answer.add_done_callback(self._asked.discard)
        return answer

    def _unwanted(self, answer: asyncio.Future[Stream]) -> None:
        if answer.exception() is None:
            self.leave(answer.result())

    def _tell(self, function: Callable[..., None], *given: Any) -> None:
        self._loop.call_soon_threadsafe(function, *given)

    def _open(self, answer: asyncio.Future[Any], stream: Stream) -> None:
        if answer.done():  # the server is shutting down
            return
        self._streams[stream.request] = stream
        answer.set_result(stream)

    def _run(self) -> None:
        try:
            while self._obey():
                if not self.engine.idle:
                    self._tell(self._deliver, self.engine.step())
        except BaseException as error:  # whatever it is, those who wait must hear of it
            traceback.print_exc()
            self.failed = error
            self._tell(self._fail, ApiError(500, f"the engine failed: {type(error).__name__}"))

    def _obey(self) -> bool:
        """Do what was ordered, and wait for an order while there is nothing else; False when the thread is to end."""
        wait = self.engine.idle
        while wait or not self._orders.empty():
            order = self._orders.get()
            if order is None:
                return False
            order()
            wait = self.engine.idle and self._orders.empty()
        return True

    def _deliver(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            stream = self._streams.get(chunk.request)
            if stream is None:
                continue
            if stream.full:
                stream.put(ApiError(400, "the client does not read what it asked for"))
                self.leave(stream)
                continue
            stream.put(chunk)
            if not stream.running:
                del self._streams[chunk.request]

    def _fail(self, error: ApiError) -> None:
        for stream in self._streams.values():
            stream.put(error)
        self._streams.clear()
        for answer in list(self._asked):
            _refuse(answer, error)


def _answered(answer: asyncio.Future[Any], value: Any) -> None:
    if not answer.done():
        answer.set_result(value)


def _refuse(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        known = isinstance(error, UserError | ApiError)
        answer.set_exception(error if known else ApiError(500, "the engine refused a request"))
