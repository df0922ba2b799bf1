"""What clients are told: the shapes of all answers, as the OpenAPI document declares them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import SkipJsonSchema

Missing = SkipJsonSchema[None]
"""The default of what may be left out, and is never null."""


class Told(BaseModel):
    """An answer holds what is written here, and nothing else."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelCard(Told):
    """A model; `max_model_len` is the most tokens that prompt and answer have together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["nachim"]
    max_model_len: int


class ModelList(Told):
    """The one model that is served."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(Told):
    """The engine works."""

    status: Literal["ok"]


class Tokens(Told):
    """A text as ids of tokens."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(Told):
    """Ids as a text."""

    prompt: str


class Usage(Told):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(Told):
    """Log-probabilities of a completion, token by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Told):
    """One sample."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionChunk(Told):
    """An event of a streamed completion; one with the usage, where it was asked for, has no choices."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | Missing = None


class Completion(CompletionChunk):
    """A whole completion."""

    usage: Usage


class TopToken(Told):
    """A token that could have come."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopToken):
    """The token that came, and the likeliest in its place."""

    top_logprobs: list[TopToken]


class ChatLogprobs(Told):
    """Log-probabilities of a message, token by token."""

    content: list[TokenLogprob]
    refusal: None


class WrittenFunction(Told):
    """The function of a call, its arguments as JSON text."""

    name: str
    arguments: str


class WrittenCall(Told):
    """A tool call that the model wrote."""

    id: str
    type: Literal["function"]
    function: WrittenFunction


class Reply(Told):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[WrittenCall] | Missing = None


class ReplyChoice(Told):
    """One sample."""

    index: int
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class Chat(Told):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ReplyChoice]
    usage: Usage


class CallDelta(WrittenCall):
    """A call in a stream, whole, and which one it is."""

    index: int


class Delta(Told):
    """What is new of a message."""

    role: Literal["assistant"] | Missing = None
    content: str | Missing = None
    tool_calls: list[CallDelta] | Missing = None


class DeltaChoice(Told):
    """What is new of one sample."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(Told):
    """An event of a streamed chat; one with the usage, where it was asked for, has no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[DeltaChoice]
    usage: Usage | Missing = None


class Fault(Told):
    """What was wrong, and with which parameter."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Error(Told):
    """The answer with any status from 400 on."""

    error: Fault
