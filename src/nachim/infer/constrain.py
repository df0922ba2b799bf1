"""Constrained decoding: which tokens may come next, so that the whole text is of a schema, expression, grammar or list.

The automata are llguidance's, which answers in microseconds and refuses at the door what it does not know. What it
refuses of JSON Schema only because it cannot prove a rewriting right is taken in the wider reading, and a text may
then end only where `jsonschema` finds it valid: nothing false ends.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nachim.spec import UserError

try:
    import llguidance

    from nachim.infer.json_valid import UNKEPT, Validator
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
KEPT = 16
"""Grammars whose automata a vocabulary keeps, those used last."""


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
        text = json.dumps(schema, allow_nan=False)
    except (RecursionError, TypeError, ValueError) as error:
        raise UserError(f"not a JSON schema: {_short(str(error))}") from error
    return _read(_sized(text))


@functools.lru_cache(maxsize=64)
def _read(text: str) -> Grammar:
    """The grammar of a schema that is given as JSON. The same one comes with many requests, and reading takes long."""
    schema, said = json.loads(text), list[str]()
    validator = Validator(schema)
    if isinstance(schema, bool):
        text = "{}" if schema else '{"enum": []}'
    for reading in READINGS:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": SPACE, **reading}
        )
        why = _refusal(grammar)
        if not why:
            return Grammar(grammar, validator if reading else None)
        said.append(why)
        if why.startswith("Unsatisfiable") or any(f'"{keyword}"' in text for keyword in UNKEPT):
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
    # One word of many forms: as rules, thousands that begin alike are more than the parser holds at once.
    lark = f"start: CHOICE\nCHOICE: {quoted}"
    return _held(llguidance.LLMatcher.grammar_from_lark(_sized(lark)), "the list of choices")


def grammar(text: str, syntax: Literal["lark", "gbnf"] = "lark") -> Grammar:
    """Texts of a context-free grammar: Lark's syntax as llguidance extends it, or llama.cpp's GBNF."""
    try:
        made = llguidance.grammar_from(syntax, _sized(text))
    except ValueError as error:
        raise UserError(f"the grammar is not valid: {_short(str(error))}") from error
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
            why = _short(str(error))
            raise UserError(f"constrained decoding does not know this kind of tokenizer: {why}") from error
        self.width, self.ends = width, list(ends)
        self._kept: dict[str, llguidance.LLMatcher] = {}
        self._lock = threading.Lock()
        self.plain = self._plain()
        """Tokens for whom their bytes say all: no ends, no marks, none without bytes or of bytes that another has."""

    def _plain(self) -> list[bool]:
        known = self.tokens
        texts = [b"" if known.is_special_token(one) else known.decode_bytes([one]) for one in range(self.width)]
        times = Counter(texts)
        return [bool(text) and times[text] == 1 and one not in self.ends for one, text in enumerate(texts)]

    def start(self, grammar: Grammar) -> Automaton:
        """The automaton at the beginning of a text. Raises UserError when no text of this vocabulary can satisfy it.

        States are built as texts come to them. All automata of one grammar share them: a second text finds them built.
        """
        with self._lock:
            kept = self._kept.get(grammar.text)
        if kept is None:
            kept = llguidance.LLMatcher(self.tokens, grammar.text, log_level=0)
        if kept.is_error():
            raise UserError(f"the constraint cannot be enforced: {_short(kept.get_error())}")
        begun = Automaton(self, grammar, kept.deep_copy())
        if not begun.allowed().any():
            raise UserError("no text can satisfy the constraint")
        with self._lock:
            self._kept.pop(grammar.text, None)  # the last is the one used last
            self._kept[grammar.text] = kept
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return begun

    def forget(self, grammar: Grammar) -> None:
        """Build the states of a grammar anew from now on: one text came to an error, or to a limit, in them."""
        with self._lock:
            self._kept.pop(grammar.text, None)


class Automaton:
    """What the text of one sample may go on with, told token by token: a `Constraint` of the engine's."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar, matcher: llguidance.LLMatcher) -> None:
        self.vocabulary, self.grammar, self._matcher = vocabulary, grammar, matcher
        self._taken: list[int] = []
        self._bits = np.zeros((vocabulary.width + 31) // 32 * 4, dtype=np.uint8)
        self._at = self._bits.ctypes.data

    def allowed(self) -> Tensor:
        """Which tokens [V] (bool) may come next; none where the text so far can become no whole one."""
        self._matcher.unsafe_compute_mask_ptr(self._at, self._bits.nbytes)
        found, ends = np.unpackbits(self._bits, count=self.vocabulary.width, bitorder="little"), self.vocabulary.ends
        if self._matcher.is_error():
            self.vocabulary.forget(self.grammar)
            found[ends] = 0
        elif self.grammar.valid is not None and found[ends].any() and not self._whole():
            found[ends] = 0
        return torch.from_numpy(found.view(np.bool_))

    def allows(self, token: int) -> bool:
        """Whether one token may come next: what `allowed` says of it, without the others."""
        if self.vocabulary.plain[token]:
            return bool(self._matcher.validate_tokens([token]) == 1)
        return bool(self.allowed()[token])

    def accept(self, token: int) -> None:
        """Take in the token that came. One that was not allowed leaves a text after which nothing is allowed."""
        self._taken.append(token)
        self._matcher.consume_token(token)

    def fork(self) -> Automaton:
        """An automaton at the same place that goes on by itself."""
        other = Automaton(self.vocabulary, self.grammar, self._matcher.deep_copy())
        other._taken = list(self._taken)
        return other

    def _whole(self) -> bool:
        """Whether a text that ends here is valid, which the mask does not tell of a wider reading."""
        if not self._matcher.is_accepting():
            return False
        return self.grammar.valid(self.vocabulary.tokens.decode_bytes(self._taken).decode("utf-8", "replace"))


def _held(text: str, what: str) -> Grammar:
    if why := _refusal(text):
        raise UserError(f"{what} is not valid: {why}")
    return Grammar(text)


@functools.lru_cache(maxsize=64)
def _refusal(grammar: str) -> str:
    """Why a grammar is refused; nothing where it is taken, with a warning or without."""
    wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return _short(messages[0]) if wrong else ""


def _sized(text: str) -> str:
    if len(text) > LONGEST:
        raise UserError(f"the constraint has {len(text):,} characters, and at most {LONGEST:,} are read")
    return text


def _short(message: str) -> str:
    """A library's message as one line that is not long."""
    return " ".join(message.split())[:300]
