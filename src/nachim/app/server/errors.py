"""What a client is told when something is wrong: the error objects of OpenAI's interface."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.responses import JSONResponse

TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""The type of an error by its status; any other of 4xx is an invalid request."""


class ApiError(Exception):
    """A request that is answered with an error: HTTP status, one sentence, and the parameter that it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {"retry-after": "1"} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def refused(error: ValidationError, body: bytes) -> ApiError:
    """What is wrong with a body, as pydantic found it: of its first wrong parameter, what lies deepest."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        why = errors[0]["msg"].removeprefix("Invalid JSON: ")
        return ApiError(400, f"the body is not JSON: {why}", code="invalid_json")
    sent = from_json(body)
    found = [
        (_path(one["loc"], sent, one["type"] == "missing"), one)
        for one in errors
        if one["loc"][:1] == errors[0]["loc"][:1]
    ]
    deepest = max((path for path, _ in found), key=len)
    first = next(one for path, one in found if path == deepest)
    param = ".".join(map(str, deepest))
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"there is no parameter {param!r}", param, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"the parameter {param!r} is missing", param, "missing_required_parameter")
    # A value of none of several kinds has as many errors in one place.
    told = dict.fromkeys(one["msg"] for path, one in found if path == deepest)
    message = " or ".join(_plain(text, after) for after, text in enumerate(told))
    return ApiError(400, f"{param or 'the body'}: {message}", param or None, "invalid_value")


def _path(loc: tuple[int | str, ...], value: Any, missing: bool) -> list[int | str]:
    """The names and places of `loc` that the client wrote, or left out: which kind was tried is of no use to it."""
    path: list[int | str] = []
    for place, step in enumerate(loc):
        if isinstance(value, list) and isinstance(step, int):
            path, value = [*path, step], value[step]
        elif isinstance(value, dict) and (step in value or (missing and place == len(loc) - 1)):
            path, value = [*path, step], value.get(step)
    return path


def _plain(message: str, after: int) -> str:
    text = message.removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return text.removeprefix("input should be ") if after else text
