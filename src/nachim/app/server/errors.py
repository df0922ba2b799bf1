"""What a client is told when something is wrong: the error objects of OpenAI's interface."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
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


def refused(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body, as pydantic found it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    # Which member of a union was tried is of no use to the client: only names and places that it wrote itself are.
    param = ".".join(str(step) for step in first["loc"] if isinstance(step, int) or step.isidentifier())
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"there is no parameter {param!r}", param, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"the parameter {param!r} is missing", param, "missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'the body'}: {message[:1].lower()}{message[1:]}", param or None, "invalid_value")
