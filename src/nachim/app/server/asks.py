"""From what a client sent to what the engine is asked: prompts, sampling and constraints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nachim.app.server.errors import ApiError
from nachim.app.server.schema import (
    Asked,
    ChatBody,
    ChoiceFormat,
    ChosenTool,
    CompletionBody,
    GrammarFormat,
    Message,
    ObjectFormat,
    RegexFormat,
    SchemaFormat,
    TextFormat,
    Tool,
)
from nachim.app.server.served import Served
from nachim.app.server.tools import CallFormat, format_of, required
from nachim.infer import constrain
from nachim.infer.constrain import Grammar
from nachim.infer.request import Sampling

FEW = 16
"""Tokens of a completion whose length was not asked for, as in OpenAI's interface."""
LARGEST = 1 << 63
KEPT = {"self", "messages", "tools", "add_generation_prompt"}
"""Names that a chat template is given by the server alone."""


@dataclass(frozen=True)
class Ask:
    """One prompt, as the engine is asked; `calls` is how tool calls are written in the answer, where there may be."""

    prompt: list[int]
    sampling: Sampling
    grammar: Grammar | None = None
    calls: CallFormat | None = None
    priority: int = 0


def of_completion(body: CompletionBody, served: Served) -> list[Ask]:
    """What a completion asks: one ask a prompt. Raises UserError or ApiError for what cannot be served."""
    grammar = grammar_of(body)
    if body.best_of not in (None, body.n or 1):
        raise ApiError(400, "best_of other than n is not served", "best_of")
    wanted = {"logprobs": body.logprobs is not None, "top_logprobs": body.logprobs or 0}
    wanted["prompt_logprobs"] = bool(body.echo and wanted["logprobs"])
    asks = []
    for index, prompt in enumerate(body.prompts()):
        ids = checked(served.encode(prompt) if isinstance(prompt, str) else prompt, served)
        sampling = sampling_of(body, served, min(body.max_tokens or FEW, served.context - len(ids)), index, **wanted)
        asks.append(Ask(ids, sampling, grammar, priority=body.priority or 0))
    return asks


def of_chat(body: ChatBody, served: Served) -> Ask:
    """What a chat asks. Raises UserError or ApiError for what cannot be served."""
    tools = [] if body.tool_choice == "none" else body.tools or []
    calls = _format(body, tools, served)
    ids = rendered(body.messages, served, tools, body.chat_template_kwargs)
    limit = min(body.max_completion_tokens or body.max_tokens or LARGEST, served.context - len(ids))
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    sampling = sampling_of(body, served, limit, logprobs=bool(body.logprobs), top_logprobs=body.top_logprobs or 0)
    grammar = grammar_of(body)
    if calls and body.tool_choice not in (None, "auto"):
        parallel = body.parallel_tool_calls is not False and body.tool_choice == "required"
        grammar = required(calls, _chosen(body, tools), parallel, served.marks)
    elif calls and grammar:
        raise ApiError(400, "response_format leaves no room for tool calls: say tool_choice none", "response_format")
    return Ask(ids, sampling, grammar, calls, body.priority or 0)


def rendered(
    messages: Sequence[Message], served: Served, tools: Sequence[Tool] = (), variables: dict[str, Any] | None = None
) -> list[int]:
    """The ids of a chat, by the model's template."""
    if served.template is None:
        raise ApiError(
            400, f"{served.name} has no chat template: use /v1/completions, or serve it with --chat-template"
        )
    if wrong := sorted(KEPT & set(variables or ())):
        raise ApiError(400, f"chat_template_kwargs cannot give {wrong[0]!r}", "chat_template_kwargs")
    told = [tool.model_dump(exclude_none=True) for tool in tools] or None
    text = served.template.render([plain(one) for one in messages], told, **(variables or {}))
    return checked(served.encode_chat(text), served)


def plain(message: Message) -> dict[str, Any]:
    """A message as templates know it: its text in one piece, a call's arguments as an object."""
    said = message.model_dump(exclude_none=True)
    if isinstance(message.content, list):
        said["content"] = "\n".join(part.text for part in message.content)
    if message.role == "developer":
        said["role"] = "system"
    for call in said.get("tool_calls", ()):
        try:
            arguments = json.loads(call["function"]["arguments"])
        except (ValueError, RecursionError):
            continue
        if isinstance(arguments, dict):
            call["function"]["arguments"] = arguments
    return said


def checked(ids: list[int], served: Served) -> list[int]:
    """The ids of a prompt. Raises ApiError where there are none, one is no token, or they fill the model's context."""
    if not ids:
        raise ApiError(400, "the prompt is empty", "prompt")
    tokens_of(ids, served)
    if len(ids) >= served.context:
        message = f"the prompt has {len(ids)} tokens, and prompt and answer together at most {served.context}"
        raise ApiError(400, message, "prompt", "context_length_exceeded")
    return ids


def tokens_of(ids: list[int], served: Served) -> list[int]:
    """The ids. Raises ApiError where one is no token."""
    if (wrong := next((token for token in ids if not 0 <= token < served.width), None)) is not None:
        raise ApiError(400, f"there is no token {wrong}; the vocabulary has {served.width}, counted from 0", "tokens")
    return ids


def sampling_of(body: Asked, served: Served, limit: int, index: int = 0, **more: Any) -> Sampling:
    """How the tokens of the prompt `index` of a body are chosen; each prompt has draws of its own."""
    said: dict[str, Any] = {
        "max_tokens": limit,
        "seed": None if body.seed is None else (body.seed + index) % LARGEST,
        "stop": body.stop,
        "stop_tokens": [*(body.stop_token_ids or ()), *(() if body.ignore_eos else served.ends)],
        "logit_bias": body.logit_bias and {int(token): bias for token, bias in body.logit_bias.items()},
    }
    names = ("temperature", "top_p", "top_k", "min_p", "n", "ignore_eos")
    names += ("presence_penalty", "frequency_penalty", "repetition_penalty")
    said |= {name: getattr(body, name) for name in names} | more
    return Sampling(**{name: value for name, value in said.items() if value is not None})


def grammar_of(body: Asked) -> Grammar | None:
    """What the text must be."""
    match body.response_format:
        case None | TextFormat():
            return None
        case ObjectFormat():
            return constrain.json_object()
        case SchemaFormat(json_schema=named):
            return constrain.json_schema(named.schema_)
        case RegexFormat(pattern=pattern):
            return constrain.regex(pattern)
        case ChoiceFormat(choices=choices):
            return constrain.choices(choices)
        case GrammarFormat(grammar=grammar, syntax=syntax):
            return constrain.grammar(grammar, syntax)


def _format(body: ChatBody, tools: Sequence[Tool], served: Served) -> CallFormat | None:
    must = body.tool_choice not in (None, "auto", "none")
    if must and not tools:
        raise ApiError(400, "tool_choice asks for a call, and there are no tools", "tool_choice")
    if not tools or served.template is None:
        return None
    if "tools" not in served.template.source:
        raise ApiError(400, f"the chat template of {served.name} has no place for tools", "tools")
    found = format_of(served.template.source)
    if must and found is None:
        raise ApiError(400, f"the chat template of {served.name} does not say how calls are written", "tool_choice")
    return found


def _chosen(body: ChatBody, tools: Sequence[Tool]) -> Sequence[Tool]:
    if not isinstance(body.tool_choice, ChosenTool):
        return tools
    name = body.tool_choice.function.name
    chosen = [tool for tool in tools if tool.function.name == name]
    if not chosen:
        raise ApiError(400, f"tool_choice names {name!r}, which is not among the tools", "tool_choice")
    return chosen
