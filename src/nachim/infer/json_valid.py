"""Whether a text is JSON of a schema, by `jsonschema`, but with no stranger's expression run by backtracking.

Python's expressions can take for ever on a short text. Here `pattern` and what builds on it are matched by
llguidance's derivatives, in time linear in the text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import llguidance
from jsonschema import validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from nachim.spec import UserError

END = 256
"""The id that follows those of all bytes in the vocabulary by which texts are matched."""
UNKEPT = ("unevaluatedProperties", "unevaluatedItems")
"""Keywords whose checks are not told of the linear matching."""


class Validator:
    """Tells whether a text is JSON of `schema`; nothing is fetched, and no text passes by a reference to elsewhere.

    Raises UserError where `schema` is not a JSON schema of the draft that it names (2020-12 where it names none).
    """

    def __init__(self, schema: Mapping[str, Any] | bool) -> None:
        try:
            kind = validators.validator_for(schema, default=validators.validator_for({}))
            kind.check_schema(schema)
        except SchemaError as error:
            raise UserError(f"not a JSON schema: at {error.json_path}, {error.message[:300]}") from error
        except (RecursionError, TypeError, ValueError, Unresolvable) as error:
            raise UserError(f"not a JSON schema: {str(error)[:300]}") from error
        self._validator = _linear(kind)(schema, registry=Registry(), format_checker=kind.FORMAT_CHECKER)

    def __call__(self, text: str) -> bool:
        """Whether `text` is valid."""
        try:
            return bool(self._validator.is_valid(json.loads(text)))
        except Exception:  # 400 digits by a step of 0.5 overflow; whatever a text does to the library, it does not pass
            return False


@functools.cache
def _linear(kind: Any) -> Any:
    """A draft's validator with the expressions matched here. One class a draft: making one takes milliseconds."""
    own = {"pattern": _pattern, "patternProperties": _pattern_properties, "additionalProperties": _additional}
    return validators.extend(kind, {name: rule for name, rule in own.items() if name in kind.VALIDATORS})


class _NotMatched(Exception):
    """An expression that is not matched in linear time: no text passes for it."""


class _Bytes:
    """A vocabulary of the 256 bytes and an end, as llguidance asks for one."""

    eos_token_id, bos_token_id = END, None
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]  # noqa: RUF012 - as the library reads it
    special_token_ids = [END]  # noqa: RUF012

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def _bytes() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


@functools.lru_cache(maxsize=1024)
def _matcher(pattern: str) -> llguidance.LLMatcher:
    grammar = llguidance.LLMatcher.grammar_from_json_schema({"type": "string", "pattern": pattern})
    matcher = llguidance.LLMatcher(_bytes(), grammar, log_level=0)
    if matcher.is_error():
        raise _NotMatched(pattern)
    return matcher


def matches(pattern: str, text: str) -> bool:
    """Whether `pattern` (ECMA 262, as far as it is regular) is found in `text`."""
    matcher = _matcher(pattern).deep_copy()
    written = list(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return bool(matcher.try_consume_tokens(written) == len(written) and matcher.is_accepting())


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, below in patterns.items():
            for key, value in instance.items():
                if matches(pattern, key):
                    yield from validator.descend(value, below, path=key, schema_path=pattern)


def _additional(validator: Any, below: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key not in named and not any(matches(pattern, key) for pattern in patterns):
            if below is False:
                yield ValidationError(f"{key!r} is not allowed")
            elif below is not True:
                yield from validator.descend(value, below, path=key)
