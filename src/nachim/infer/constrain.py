"""Constrained decoding: which tokens may come next, so that the whole text is of a schema, expression, grammar or list.

The automata are llguidance's (MIT), which answers in microseconds and refuses at the door what it does not know. What
it refuses of JSON Schema only because it cannot prove a rewriting right is taken in the wider reading, and a text may
then end only where `jsonschema` finds it valid: nothing false ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nachim.spec import UserError

try:
    import llguidance
    from jsonschema import validators
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
except ImportError as error:
    raise UserError("constrained decoding needs the packages of the extra `serve`: install nachim[serve]") from error

LONGEST = 1_000_000
"""Characters of the longest grammar or schema that is read."""
READINGS: tuple[dict[str, Any], ...] = ({}, {"coerce_one_of": True}, {"lenient": True})
"""How a schema is read, the strict reading first; the wider ones need every text to be validated."""
SPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""White space in JSON: enough for any indentation, and not without end, which weak models like to write."""
GUIDANCE = "x-guidance"
"""The key by which a schema could change how it is read."""


@dataclass(frozen=True)
class Grammar:
    """What a text may be: `text` as llguidance reads it, and `valid`, which a whole text must pass as well."""

    text: str
    valid: Callable[[str], bool] | None = None


def json_schema(schema: Mapping[str, Any] | bool) -> Grammar:
    """Texts that are JSON of `schema`, its properties in their order there.

    Raises UserError for what is no schema, one that no text can satisfy, and one that cannot be enforced.
    """
    if isinstance(schema, Mapping) and GUIDANCE in schema:
        raise UserError(f"the JSON schema has the key {GUIDANCE!r}, which is kept for how schemas are read")
    try:
        text = json.dumps(schema)
        kind = validators.validator_for(schema, default=validators.validator_for({}))
        kind.check_schema(schema)
    except SchemaError as error:
        raise UserError(f"not a JSON schema: at {error.json_path}, {_first(error.message)}") from error
    except (RecursionError, TypeError, ValueError, Unresolvable) as error:
        raise UserError(f"not a JSON schema: {_first(str(error))}") from error
    said = []
    for reading in READINGS:
        grammar = _schema_grammar(_sized(text), reading)
        why = llguidance.LLMatcher.validate_grammar(grammar)
        if not why or why.startswith("WARNING"):
            check = partial(_valid, kind(schema, registry=Registry())) if reading else None
            return Grammar(grammar, check)
        said.append(_first(why))
        if why.startswith("Unsatisfiable") or _slow(schema):
            break
    raise UserError(f"the JSON schema cannot be enforced: {said[0]}")


def json_object() -> Grammar:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> Grammar:
    """Texts that `pattern` matches as a whole (Rust's syntax; no look-around, no back-references)."""
    return _held(llguidance.LLMatcher.grammar_from_regex(_sized(pattern)), "the regular expression")


def choices(texts: Sequence[str]) -> Grammar:
    """One of `texts`."""
    if not texts or not all(texts):
        raise UserError("choices must be a list of texts, none of them empty")
    quoted = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return _held(llguidance.LLMatcher.grammar_from_lark(_sized(f"start: {quoted}")), "the list of choices")


def grammar(text: str, syntax: Literal["lark", "gbnf"] = "lark") -> Grammar:
    """Texts of a context-free grammar: Lark's syntax as llguidance extends it, or llama.cpp's GBNF."""
    try:
        made = llguidance.grammar_from(syntax, _sized(text))
    except ValueError as error:
        raise UserError(f"the grammar is not valid: {_first(str(error))}") from error
    return _held(made, "the grammar")


class Vocabulary:
    """A tokenizer as grammars see it: the bytes of each of `width` token ids, and the ids in `ends` that end a text."""

    def __init__(self, tokenizer: str | Path, width: int, ends: Sequence[int]) -> None:
        """`tokenizer` is a tokenizer.json, byte-level or with byte fallback: its path or its text.

        Raises UserError for another kind, and when no token ends a text.
        """
        if not ends:
            raise UserError("constrained decoding needs a token that ends a text, and the model names none")
        text = tokenizer.read_text(encoding="utf-8") if isinstance(tokenizer, Path) else tokenizer
        try:
            self.tokens = llguidance.LLTokenizer(text, n_vocab=width, eos_token=list(ends))
        except Exception as error:  # what the Rust library raises has no narrower name
            raise UserError(
                f"constrained decoding does not know this kind of tokenizer: {_first(str(error))}"
            ) from error
        self.width = width

    def start(self, grammar: Grammar) -> Constraint:
        """A constraint at the beginning of a text. Raises UserError when no text of this vocabulary can satisfy it."""
        matcher = llguidance.LLMatcher(self.tokens, grammar.text, log_level=0)
        if matcher.is_error():
            raise UserError(f"the constraint cannot be enforced: {_first(matcher.get_error())}")
        if matcher.is_stopped() and not matcher.is_accepting():
            raise UserError("no text can satisfy the constraint")
        return Constraint(self, grammar, matcher)


class Constraint:
    """What one request's text may go on with.

    It is asked with all tokens that were generated, so that a request may be taken back some tokens, recomputed from
    its prompt or checked some tokens ahead, and the answer depends on the tokens alone.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar, matcher: llguidance.LLMatcher) -> None:
        self.vocabulary, self.grammar, self._matcher = vocabulary, grammar, matcher
        self._taken: list[int] = []
        self._bits = np.zeros((vocabulary.width + 31) // 32, dtype=np.int32)

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        """Which tokens [V] (bool) may follow the generated `tokens`; none where no text that begins so can be whole."""
        if not self._follow(tokens):
            return torch.zeros(self.vocabulary.width, dtype=torch.bool)
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        found = np.unpackbits(self._bits.view(np.uint8), count=self.vocabulary.width, bitorder="little").view(np.bool_)
        if self._matcher.is_error() or not self._may_end():
            found[self.vocabulary.tokens.eos_tokens] = False
        return torch.from_numpy(found)

    def allowed_along(self, tokens: Sequence[int], draft: Sequence[int]) -> Tensor:
        """Which tokens [1 + draft, V] may follow `tokens` and each further token of `draft`.

        After the first token of the draft that is not allowed nothing is, for nothing may come after it.
        """
        rows = [self.allowed([*tokens, *draft[:count]]) for count in range(len(draft) + 1)]
        return torch.stack(rows)

    def fork(self) -> Constraint:
        """A constraint at the same place that goes on by itself: another beam of the same request."""
        other = Constraint(self.vocabulary, self.grammar, self._matcher.deep_copy())
        other._taken = list(self._taken)
        return other

    def _follow(self, tokens: Sequence[int]) -> bool:
        """Bring the matcher to just after `tokens`; whether they are all allowed."""
        tokens, taken = list(tokens), self._taken
        if tokens[: len(taken)] != taken:
            same = next(
                (i for i, (a, b) in enumerate(zip(tokens, taken, strict=False)) if a != b), min(len(tokens), len(taken))
            )
            self._matcher.rollback(len(taken) - same)
            del taken[same:]
        fresh = tokens[len(taken) :]
        taken += fresh[: self._matcher.try_consume_tokens(fresh)] if fresh else []
        return len(taken) == len(tokens)

    def _may_end(self) -> bool:
        """Whether a text that ends here is whole. llguidance knows, but for what only a validator can tell."""
        if self.grammar.valid is None or not self._matcher.is_accepting():
            return self._matcher.is_accepting()
        text = self.vocabulary.tokens.decode_bytes(self._taken)
        return self.grammar.valid(text.decode("utf-8", "replace"))


def _schema_grammar(schema: str, reading: dict[str, Any]) -> str:
    grammar: str = llguidance.LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_pattern": SPACE, **reading}
    )
    return grammar


def _held(text: str, what: str) -> Grammar:
    why = llguidance.LLMatcher.validate_grammar(text)
    if why and not why.startswith("WARNING"):
        raise UserError(f"{what} is not valid: {_first(why)}")
    return Grammar(text)


def _valid(validator: Any, text: str) -> bool:
    try:
        return bool(validator.is_valid(json.loads(text)))
    except (ValueError, RecursionError, Unresolvable):
        return False


def _slow(schema: Any) -> bool:
    """Whether validating could take for ever: Python's expressions backtrack, so none of a stranger's is run."""
    if isinstance(schema, Mapping):
        return any(key in ("pattern", "patternProperties") or _slow(value) for key, value in schema.items())
    return isinstance(schema, list) and any(map(_slow, schema))


def _sized(text: str) -> str:
    if len(text) > LONGEST:
        raise UserError(f"the constraint has {len(text):,} characters, and at most {LONGEST:,} are read")
    return text


def _first(message: str) -> str:
    """The first lines of a library's message as one sentence."""
    return " ".join(message.split())[:300]
