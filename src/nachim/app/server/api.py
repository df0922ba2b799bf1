"""The routes: who asks for what, and how an answer is sent, whole or as it is written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nachim.app.server.answers import Answer, ChatAnswer, CompletionAnswer
from nachim.app.server.asks import Ask, of_chat, of_completion, rendered, tokens_of
from nachim.app.server.errors import ApiError, refused
from nachim.app.server.gate import Gate, Limits
from nachim.app.server.metrics import Metrics, pages_of
from nachim.app.server.openapi import document
from nachim.app.server.run import Events, Run, Slots
from nachim.app.server.schema import Asked, Body, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from nachim.app.server.served import Served
from nachim.app.server.worker import Worker
from nachim.spec import UserError

Prepare = Callable[[], tuple[list[Ask], Answer]]
Read, Result = TypeVar("Read", bound=Body), TypeVar("Result")
LEFT = 499
"""The status, seen by the metrics alone, of a request whose client is gone."""


class Api:
    """The handlers of one server."""

    def __init__(self, served: Served, limits: Limits) -> None:
        self.served, self.limits, self.metrics = served, limits, Metrics()
        self.slots = Slots(limits.samples)
        self.worker: Worker
        self.locked = False

    def app(self, api_key: str | None) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.told),
            Route("/openapi.json", self.described),
        ]
        self.locked = api_key is not None
        handlers = {ApiError: _api_error, UserError: _user_error, HTTPException: _http_error, Exception: _failure}
        handlers[ClientDisconnect] = _left
        gate = Middleware(Gate, limits=self.limits, metrics=self.metrics, api_key=api_key)
        return Starlette(routes=routes, middleware=[gate], exception_handlers=handlers, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.worker = Worker(self.served.engine)
        try:
            yield
        finally:
            self.worker.stop()

    async def models(self, request: Request) -> Response:
        """The one model that is served."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The model by its name."""
        self._named(request.path_params["name"])
        return JSONResponse(self._model())

    async def health(self, request: Request) -> Response:
        """Whether the engine works."""
        if self.worker.failed is not None:
            raise ApiError(503, "the engine has stopped after an error; restart the server")
        return JSONResponse({"status": "ok"})

    async def told(self, request: Request) -> Response:
        """The metrics."""
        if self.worker.failed is None:
            self.metrics.hold(await self.worker.ask(pages_of))
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def described(self, request: Request) -> Response:
        """The OpenAPI document."""
        return JSONResponse(await asyncio.to_thread(document, self.served.name, self.locked))

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text, or of a chat by the model's template."""
        body = await read(request, TokenizeBody)
        self._named(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages")
        if body.messages is not None:
            ids = await asyncio.to_thread(rendered, body.messages, self.served)
        else:
            ids = await asyncio.to_thread(self.served.encode, body.prompt or "")
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.served.context})

    async def detokenize(self, request: Request) -> Response:
        """The text of ids."""
        body = await read(request, DetokenizeBody)
        self._named(body.model)
        ids = tokens_of(body.tokens, self.served)
        return JSONResponse({"prompt": self.served.tokenizer.decode(ids, skip_special_tokens=False)})

    async def completions(self, request: Request) -> Response:
        """Text that goes on after each prompt."""
        body = await read(request, CompletionBody)
        self._named(body.model)

        def prepare() -> tuple[list[Ask], Answer]:
            asks = of_completion(body, self.served)
            echo = [self.served.tokenizer.decode(ask.prompt) for ask in asks] if body.echo else None
            return asks, CompletionAnswer(self.served, asks, echo)

        return await self._answered(request, body, len(body.prompts()), prepare)

    async def chat(self, request: Request) -> Response:
        """The assistant's next message."""
        body = await read(request, ChatBody)
        self._named(body.model)

        def prepare() -> tuple[list[Ask], Answer]:
            asks = [of_chat(body, self.served)]
            return asks, ChatAnswer(self.served, asks)

        return await self._answered(request, body, 1, prepare)

    async def _answered(self, request: Request, body: Asked, prompts: int, prepare: Prepare) -> Response:
        """Prepare in a thread, queue, and send what comes; whatever happens, what was taken is given back."""
        if body.stream_options and not body.stream:
            raise ApiError(400, "stream_options needs stream to be true", "stream_options")
        run = Run(self.worker, self.slots, self.metrics, prompts * (body.n or 1))
        try:
            asks, answer = await asyncio.to_thread(prepare)
            await _unless_gone(request, run.queue(self.served, asks))
            if body.stream:
                usage = bool(body.stream_options and body.stream_options.include_usage)
                return Events(run, run.events(answer, usage))
            whole = JSONResponse(await _unless_gone(request, run.whole(answer)))
        except BaseException as error:
            run.leave(gone=isinstance(error, ClientDisconnect))
            raise
        run.leave()
        return whole

    def _model(self) -> dict[str, Any]:
        named = {"id": self.served.name, "object": "model", "created": self.served.created, "owned_by": "nachim"}
        return {**named, "max_model_len": self.served.context}

    def _named(self, name: str | None) -> None:
        if name not in (None, self.served.name):
            message = f"there is no model {name[:100]!r} here; this server has {self.served.name!r}"
            raise ApiError(404, message, "model", "model_not_found")


async def read(request: Request, kind: type[Read]) -> Read:
    """The body of a request as a `kind`. Raises ApiError for one that is not."""
    # A page in a browser can send anything else to this machine's own address, and not this.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send JSON: the header Content-Type must be application/json")
    body = await request.body()
    try:
        return await asyncio.to_thread(kind.model_validate_json, body)
    except ValidationError as error:
        raise refused(error, body) from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves. Raises ClientDisconnect then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _user_error(request: Request, error: Exception) -> Response:
    return ApiError(400, str(error)).response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: f"there is no {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    answer = ApiError(error.status_code, told.get(error.status_code, error.detail)).response()
    answer.headers.update(error.headers or {})
    return answer


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=LEFT)


async def _failure(request: Request, error: Exception) -> Response:
    return ApiError(500, f"the server failed: {type(error).__name__}").response()
