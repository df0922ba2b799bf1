"""The OpenAPI document of a server: every path, what it takes and what it answers, errors too."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from nachim import __version__
from nachim.app.server import told
from nachim.app.server.gate import OPEN
from nachim.app.server.schema import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

REF = "#/components/schemas/{model}"
ALWAYS = {500: "The server failed."}
"""Statuses of every path."""
LOCKED = {401: "No API key was given, or a wrong one."}
NAMED = {404: "The server has no model of that name."}
SENT = {
    400: "The body is not what the schema says, or asks for what this model cannot do.",
    **NAMED,
    408: "The rest of the body did not come.",
    413: "The body is larger than the server takes.",
    415: "The body is not application/json.",
}
QUEUED = {
    422: "The text came to a place where its constraint lets no token follow.",
    429: "The server has as much to do as it takes on.",
    503: "The engine has stopped, or the server is shutting down.",
}


class Path(NamedTuple):
    """A path as clients know it; `events` are what a stream is made of, where one may be asked for."""

    method: str
    summary: str
    answer: type[BaseModel] | str
    """Its model, or the type of what is no JSON of ours."""
    body: type[BaseModel] | None = None
    events: type[BaseModel] | None = None
    errors: dict[int, str] = {}  # noqa: RUF012 - read only


PATHS = {
    "/v1/models": Path("get", "The model that is served", told.ModelList),
    "/v1/models/{name}": Path("get", "The model by its name", told.ModelCard, errors=NAMED),
    "/v1/completions": Path(
        "post",
        "Text that goes on after each prompt",
        told.Completion,
        CompletionBody,
        told.CompletionChunk,
        {**SENT, **QUEUED},
    ),
    "/v1/chat/completions": Path(
        "post", "The assistant's next message", told.Chat, ChatBody, told.ChatChunk, {**SENT, **QUEUED}
    ),
    "/tokenize": Path("post", "The ids of a text, or of a chat", told.Tokens, TokenizeBody, errors=SENT),
    "/detokenize": Path("post", "The text of ids", told.Text, DetokenizeBody, errors=SENT),
    "/health": Path("get", "Whether the engine works", told.Health, errors={503: "The engine has stopped."}),
    "/metrics": Path("get", "Counters in the format that Prometheus reads", "text/plain"),
    "/openapi.json": Path("get", "This document", "application/json"),
}


def document(name: str, locked: bool) -> dict[str, Any]:
    """The document of a server of the model `name`, which asks for a key where it is `locked`."""
    models = [kind for path in PATHS.values() for kind in (path.body, path.answer, path.events)]
    wanted = [(kind, "validation") for kind in (*models, told.Error) if isinstance(kind, type)]
    _, schemas = models_json_schema(wanted, ref_template=REF)
    known = schemas["$defs"]
    for body in (CompletionBody, ChatBody):
        known[body.__name__]["properties"]["model"] = {"type": "string", "const": name}
    for body in (TokenizeBody, DetokenizeBody):
        known[body.__name__]["properties"]["model"] = {"enum": [name, None]}
    made = {
        "openapi": "3.1.0",
        "info": {"title": f"{name}, served by nachim", "version": __version__},
        "paths": {path: {one.method: _operation(path, one, locked)} for path, one in PATHS.items()},
        "components": {"schemas": known},
    }
    made["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["example"] = name
    if locked:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return made


def _operation(path: str, one: Path, locked: bool) -> dict[str, Any]:
    guarded = locked and path not in OPEN
    errors = {**ALWAYS, **one.errors, **(LOCKED if guarded else {})}
    answers = {"200": {"description": "The answer.", "content": _content(one)}}
    answers |= {
        str(status): {"description": why, "content": {"application/json": {"schema": _ref(told.Error)}}}
        for status, why in sorted(errors.items())
    }
    made: dict[str, Any] = {"summary": one.summary, "operationId": path.strip("/"), "responses": answers}
    if "{name}" in path:
        made["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if one.body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(one.body)}}}
    return made | ({"security": [{"key": []}]} if guarded else {})


def _content(one: Path) -> dict[str, Any]:
    if isinstance(one.answer, str):
        return {one.answer: {"schema": {"type": "object" if "json" in one.answer else "string"}}}
    content: dict[str, Any] = {"application/json": {"schema": _ref(one.answer)}}
    if one.events is not None:
        said = f"Where `stream` is true: a {one.events.__name__}, or an Error; the last event is [DONE]."
        data = {"type": "string", "description": said}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    return content


def _ref(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=kind.__name__)}
