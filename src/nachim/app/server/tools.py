"""Tool calls: how a chat template has them written, read back from what the model wrote, or required of it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nachim.app.server.schema import Tool
from nachim.infer import constrain
from nachim.infer.constrain import Grammar
from nachim.infer.json_valid import Validator


@dataclass(frozen=True)
class CallFormat:
    """A call, or a list of calls, is JSON between `begin` and `end`, its arguments under `arguments`."""

    begin: str
    end: str
    arguments: str
    listed: bool = False


FORMATS: tuple[tuple[tuple[str, ...], CallFormat], ...] = (
    (("<tool_call>", '"arguments"'), CallFormat("<tool_call>", "</tool_call>", "arguments")),
    (("<tool_call>", "tojson"), CallFormat("<tool_call>", "</tool_call>", "arguments")),
    (("[TOOL_CALLS]",), CallFormat("[TOOL_CALLS]", "", "arguments", listed=True)),
    (("<|python_tag|>", '"parameters"'), CallFormat("", "", "parameters")),
    (('"parameters"', "ipython"), CallFormat("", "", "parameters")),
)
"""The formats by the marks that all stand in templates of their kind: Hermes and Qwen, Mistral, Llama 3."""


def format_of(template: str) -> CallFormat | None:
    """How a template has calls written; None where it does not say so in a way known here."""
    return next((found for marks, found in FORMATS if all(mark in template for mark in marks)), None)


def required(found: CallFormat, tools: Sequence[Tool], parallel: bool, marks: dict[str, int]) -> Grammar:
    """Texts that are calls of `tools` and nothing else: one, or several where `parallel`.

    `marks` are the ids of tokens that stand for themselves in a grammar. Raises UserError where the parameters of a
    tool are no schema, or cannot be enforced.
    """
    calls = [_schema(tool, found.arguments) for tool in tools]
    strict = all([constrain.json_schema(call).valid is None for call in calls])
    one: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    listed = {"type": "array", "items": one, "minItems": 1, **({} if parallel else {"maxItems": 1})}
    reading = {"whitespace_pattern": constrain.SPACE, "lenient": not strict}
    body = json.dumps({**(listed if found.listed else one), constrain.GUIDANCE: reading})
    begin, end = (_mark(mark, marks) for mark in (found.begin, found.end))
    again = "(GAP call)*" if parallel and not found.listed and found.begin else ""
    rules = f"start: call {again}\ncall: {begin} GAP body GAP {end}\nbody: %json {body}\nGAP: /[ \\n]?/"
    made = constrain.grammar(rules)
    return made if strict else Grammar(made.text, _Valid(found, calls))


class _Valid:
    """Whether a text is calls, each of the schema of a tool: where a grammar alone cannot tell."""

    def __init__(self, found: CallFormat, schemas: Sequence[dict[str, Any]]) -> None:
        self.format, self.validators = found, [Validator(schema) for schema in schemas]

    def __call__(self, text: str) -> bool:
        reader = CallReader(self.format)
        reader.feed(text)
        reader.finish()
        functions = [call["function"] for call in reader.calls]
        name = self.format.arguments
        written = [f'{{"name": {json.dumps(one["name"])}, "{name}": {one["arguments"]}}}' for one in functions]
        return bool(written) and all(any(valid(one) for valid in self.validators) for one in written)


def _schema(tool: Tool, arguments: str) -> dict[str, Any]:
    parameters = tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, arguments: parameters},
        "required": ["name", arguments],
        "additionalProperties": False,
    }


def _mark(mark: str, marks: dict[str, int]) -> str:
    if not mark:
        return ""
    return f"<[{marks[mark]}]>" if mark in marks else json.dumps(mark)


@dataclass
class CallReader:
    """Reads calls out of text that comes in pieces. What `feed` and `finish` give back is for the reader's eyes."""

    format: CallFormat
    calls: list[dict[str, Any]] = field(default_factory=list)
    """The calls so far, as OpenAI's interface has them."""
    _held: str = ""
    _inside: bool = False

    def feed(self, text: str) -> str:
        """Take in text; what of it, and of what was held before, is not part of a call."""
        self._held += text
        if not self.format.begin:
            return ""  # the whole text is a call, or none of it: only its end can tell
        shown = ""
        while True:
            if not self._inside:
                before, mark, after = self._held.partition(self.format.begin)
                if not mark:
                    keep = _overlap(before, self.format.begin)
                    self._held = before[len(before) - keep :]
                    return shown + before[: len(before) - keep]
                shown, self._held, self._inside = shown + before, after, True
            if not self.format.end or self.format.end not in self._held:
                return shown
            body, _, self._held = self._held.partition(self.format.end)
            self._inside = False
            shown += "" if self._read(body) else self.format.begin + body + self.format.end

    def finish(self) -> str:
        """The text has ended; what is left of it that is no call."""
        held, inside, self._held, self._inside = self._held, self._inside, "", False
        if (inside or not self.format.begin) and self._read(held.removeprefix("<|python_tag|>")):
            return ""
        return (self.format.begin if inside else "") + held

    def _read(self, body: str) -> bool:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return False
        found = found if isinstance(found, list) else [found]
        if not found or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in found):
            return False
        if not all(self.format.arguments in one for one in found):
            return False
        self.calls += [_call(one["name"], one[self.format.arguments]) for one in found]
        return True


def _call(name: str, arguments: Any) -> dict[str, Any]:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": written}}


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of `text` that may be the beginning of `mark`."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
