"""Chat templates: messages to the text that a model was taught on, as its tokenizer's files say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from nachim.spec import UserError
from nachim.spec.disk import read_json

TOLD, TEMPLATE, MORE, OLD = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates",
    "chat_template.json",
)
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that a template may write by name."""
THOUGHT = ("reasoning_content", "thinking", "reasoning")
"""The names under which a message's reasoning is met; templates read the first or the second."""


class ChatTemplate:
    """A model's chat template. `source` is its text, `tokens` the special tokens that it may write by name.

    Templates come with checkpoints, so they run in a sandbox: no attribute that begins with an underscore, no change
    of what they were given. What they may call is what transformers lets them call.
    """

    def __init__(self, sources: str | Mapping[str, str], tokens: Mapping[str, str] | None = None) -> None:
        """`sources` is one template, or several by name: `default`, and `tool_use` for requests with tools.

        Raises UserError for a template that is not one.
        """
        self.sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        self.tokens = dict(tokens or {})
        world = _environment()
        try:
            self._compiled = {name: world.from_string(source) for name, source in self.sources.items()}
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja at line {error.lineno}: {error.message}") from error

    @property
    def source(self) -> str:
        """The text of the template that renders tools: its markers say how calls are written."""
        return self.sources.get("tool_use") or self.sources.get("default") or ""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of `messages`, of plain JSON values, ready to be encoded with its special tokens as such.

        `variables` are further names that the template reads (enable_thinking, documents). Keys whose value is None
        are left out. Raises UserError where the template refuses the messages, or cannot render them.
        """
        if not messages:
            raise UserError("messages is empty: give at least one")
        chosen = self._compiled.get("tool_use" if tools and "tool_use" in self._compiled else "default")
        if chosen is None:
            raise UserError(f"the model has chat templates {sorted(self.sources)} and none of them is the default")
        said = [_with_reasoning({key: value for key, value in one.items() if value is not None}) for one in messages]
        given = {"documents": None, **self.tokens, **variables, "add_generation_prompt": add_generation_prompt}
        try:
            return chosen.render(messages=said, tools=tools, **given)
        except RecursionError as error:
            raise UserError("the chat template does not end on these messages") from error
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"the chat template does not take these messages: {error}") from error


def template_in(folder: Path) -> ChatTemplate | None:
    """The chat template among the tokenizer's files in `folder`; None where there is none.

    A chat_template.jinja and those beside it come before what tokenizer_config.json says, as in transformers.
    """
    told = _object(folder / TOLD)
    files = {"default": folder / TEMPLATE, **{path.stem: path for path in sorted((folder / MORE).glob("*.jinja"))}}
    sources = {name: text_of(path) for name, path in files.items() if path.is_file()}
    if not sources:
        said = told.get("chat_template") or _object(folder / OLD).get("chat_template")
        if isinstance(said, str):
            sources = {"default": said}
        elif isinstance(said, list):
            try:
                sources = {str(one["name"]): str(one["template"]) for one in said}
            except (KeyError, TypeError) as error:
                raise UserError(f"{folder / TOLD} has chat templates without name and text: copy it again") from error
    return ChatTemplate(sources, special_tokens(folder)) if sources else None


def text_of(path: Path) -> str:
    """The template in the file `path`. Raises UserError for a file that holds no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"the chat template {path} cannot be read: {error}") from error


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that the files in `folder` name, such as {"eos_token": "</s>"}."""
    told = {**_object(folder / "special_tokens_map.json"), **_object(folder / TOLD)}
    found = {
        name: told[name].get("content") if isinstance(told[name], dict) else told[name]
        for name in NAMES
        if told.get(name)
    }
    return {name: token for name, token in found.items() if isinstance(token, str)}


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    thought = next((message[name] for name in THOUGHT if name in message), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for those who train on it; rendered, it is a scope like another."""

    tags = {"generation"}  # noqa: RUF012 - so named and typed by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Names(Namespace):
    """A template's own variables; a name that begins with an underscore could reach Python's insides."""

    def __init__(*given: Any, **named: Any) -> None:
        # As jinja2 has it: a template may then name a variable `self`.
        _public(dict(*given[1:], **named))
        Namespace.__init__(*given, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _public({name: value})
        super().__setitem__(name, value)


def _public(names: dict[str, Any]) -> None:
    if hidden := [name for name in names if str(name).startswith("_")]:
        raise jinja2.exceptions.SecurityError(f"{hidden[0]!r} begins with an underscore")


def _environment() -> ImmutableSandboxedEnvironment:
    """Where templates run, with the helpers that those on the Hub rely on (transformers names them)."""
    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    world.filters["tojson"] = _tojson
    world.globals |= {"raise_exception": _refuse, "strftime_now": _now, "namespace": _Names}
    return world


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own escapes what HTML would take for tags.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
