"""Bodies that no server may take, drawn at random: each is to be answered with a status of 4xx."""

from __future__ import annotations

import json
import random
import string
from typing import Any

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
WRONG: dict[str, tuple[Any, ...]] = {
    "model": ("another", 1, None, [], ""),
    "max_tokens": (0, -1, 1.5, "8", [], True, 10**400),
    "temperature": (-0.1, 2.1, "hot", [], float("nan"), 1e999, True),
    "top_p": (0, 1.01, -1, "all", {}),
    "n": (0, -3, 129, 1.5, "two", 10**30),
    "stop": ("", [""], 5, ["a"] * 17, [1], {}),
    "seed": (1.5, "x", 1 << 64, -(1 << 70), []),
    "presence_penalty": (2.1, -2.1, "x"),
    "frequency_penalty": (99, [], "x"),
    "logit_bias": ({"1": 101}, {"1": -101}, {"x": 1}, {"-1": 1}, {"99999999": 1}, [], {"1": None}),
    "stream": ("yes", 1, []),
    "stream_options": ([], {"include_usage": 1}, {"other": True}, {"include_usage": True}),
    "user": (5, []),
    "top_k": (0, -1, 1.5, "x"),
    "min_p": (-0.1, 1.1, "x"),
    "repetition_penalty": (0, -1, "x"),
    "stop_token_ids": ([-1], [10**9], "x", [1.5], [None]),
    "priority": ("high", 1 << 40, 1.5),
    "response_format": (
        *(
            "json",
            [],
            {},
            {"type": "xml"},
            {"type": "json_schema"},
            {"type": "regex"},
            {"type": "regex", "pattern": "("},
        ),
        *({"type": "choice", "choices": []}, {"type": "choice", "choices": [""]}, {"type": "grammar", "grammar": "x"}),
        *({"type": "grammar", "grammar": 'root ::= "a', "syntax": "gbnf"}, {"type": "json_object", "more": 1}),
        {"type": "regex", "pattern": r"[^\s\S]"},
        *(
            {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            for schema in (
                *({"type": "no"}, {"enum": []}, {"type": "integer", "minimum": 5, "maximum": 2}, {"$ref": "#/none"}),
                *({"$ref": "http://127.0.0.1:1/x"}, {"type": 5}, {"pattern": "("}, {"x-guidance": {}}),
            )
        ),
    ),
    "unknown": (1, None, "x"),
    "best_of": (0, "x", 200),
    "suffix": ("after", 5),
    "echo": ("yes", 1),
    "logprobs": (-1, 21, "x", 1.5),
    "prompt": ("", [], [""], [[]], [1, "x"], [1.5], 5, None, {}, [-1], [10**9], ["a"] * 300, ["a", [1]]),
}
"""Values of a completion's parameters, none of which may be taken."""
MESSAGE = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "go"}}
WRONG_CHAT: dict[str, tuple[Any, ...]] = {
    "messages": (
        *([], None, "hi", {}, [[]], [5], [{}], [{"role": "user", "content": 5}], [{"role": "king", "content": "x"}]),
        *(
            [{"content": "x"}],
            [MESSAGE, None],
            [{**MESSAGE, "more": 1}],
            [{"role": "user", "content": [{"type": "x"}]}],
        ),
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "assistant", "tool_calls": [{"id": 1}]}],
    ),
    "logprobs": (1, "x", []),
    "top_logprobs": (21, -1, "x", 3),
    "tools": ("x", [5], [{}], [{"type": "x"}], [{"type": "function", "function": {}}], [TOOL] * 129),
    "tool_choice": ("maybe", 5, "required", {"type": "function", "function": {"name": "none"}}),
    "max_completion_tokens": (0, -1, "x"),
    "metadata": (5, {"a": 1}),
    "chat_template_kwargs": (5, [], {"self": 1}, {"messages": []}),
    "store": (True, 5),
}
"""Those of a chat's that differ."""


def malformed(draw: random.Random, model: str) -> tuple[str, bytes]:
    """A path and a body for it that must be refused, for a server of `model`."""
    chat = draw.random() < 0.5
    good: dict[str, Any] = {"model": model, "max_tokens": 1, **({"messages": [MESSAGE]} if chat else {"prompt": "hi"})}
    wrong = {**WRONG, **WRONG_CHAT} if chat else WRONG
    for name in ("best_of", "suffix", "echo", "prompt") if chat else ():
        wrong[name] = (1, "x")  # no parameters of a chat
    path, way = CHAT if chat else COMPLETION, draw.randrange(6)
    if way == 0:
        return path, _cut(draw, json.dumps(good))
    if way == 1:
        return path, draw.randbytes(draw.randrange(200))
    if way == 2:
        return path, json.dumps(_any(draw, 4)).encode()
    if way == 3:
        del good[draw.choice([name for name in good if name != "max_tokens"])]
    else:
        for name in draw.sample(sorted(wrong), draw.choice((1, 1, 1, 2, 5))):
            good[name] = draw.choice(wrong[name])
    return path, json.dumps(good).encode()


def _cut(draw: random.Random, text: str) -> bytes:
    at = draw.randrange(len(text) - 1)
    signs = draw.choice(("", "\0", "}", "\\ud800", "[" * 5000, "\u2028{"))
    return (text[:at] + signs).encode()


def _any(draw: random.Random, depth: int) -> Any:
    """Any JSON value, which is no body: names are random."""
    kind = draw.randrange(7 if depth else 5)
    if kind == 5:
        return [_any(draw, depth - 1) for _ in range(draw.randrange(4))]
    if kind == 6:
        return {_word(draw): _any(draw, depth - 1) for _ in range(draw.randrange(4))}
    return (None, True, draw.randrange(-(1 << 70), 1 << 70), draw.uniform(-1e9, 1e9), _word(draw))[kind]


def _word(draw: random.Random) -> str:
    return "".join(draw.choices(string.printable + "é漢\u0000\ud83d", k=draw.randrange(8)))
