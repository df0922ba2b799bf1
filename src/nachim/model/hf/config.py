"""A config.json as a family reads it: every key is read, declared to be without effect, or kept aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nachim.spec import UserError

INERT = (
    "_attn_implementation",
    "_attn_implementation_internal",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "experts_implementation",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Keys that change no logit of a trained model in any family: training, generation, bookkeeping."""


class Config:
    """The keys of a config.json for one family. What was asked for is remembered, so that the rest can be told apart.

    A key that is absent has the default of its family's config class, for files are written without such keys.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = dict(values)
        self.where = where
        self.read: set[str] = {"model_type"}
        self.inert: set[str] = set(INERT)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, `default` where it is absent or null."""
        self.read.add(key)
        found = self.values.get(key)
        return default if found is None else found

    def given(self, key: str, default: Any) -> Any:
        """The value of `key`, null among them; `default` where it is absent."""
        self.read.add(key)
        return self.values.get(key, default)

    def need(self, key: str) -> Any:
        """The value of `key`. Raises UserError when it is absent."""
        found = self.get(key)
        if found is None:
            raise UserError(f"{self.where} lacks {key!r}, which a {self.values.get('model_type')} model needs")
        return found

    def either(self, *keys: str) -> Any:
        """The value of the first of `keys`, names of one thing, that is given. Raises UserError when none is."""
        found = [value for value in map(self.get, keys) if value is not None]
        return found[0] if found else self.need(keys[0])

    def only(self, key: str, *allowed: Any) -> Any:
        """The value of `key`, the first of `allowed` where it is absent. Raises UserError for a value not allowed."""
        found = self.get(key, allowed[0])
        if found not in allowed:
            self.refuse(key, found, f"only {' or '.join(map(repr, allowed))} is computed exactly here")
        return found

    def refuse(self, key: str, value: Any, why: str) -> None:
        """Raise UserError about `key`."""
        raise UserError(f"{self.where} has {key}={value!r}; {why}")

    def without_effect(self, *keys: str) -> None:
        """Declare keys that the family's own implementation ignores too, or that matter in training alone."""
        self.inert.update(keys)

    @property
    def unread(self) -> dict[str, Any]:
        """What the decoder does not say: the keys an export must carry over from the config it came with."""
        return {key: value for key, value in self.values.items() if key not in self.read}

    @property
    def unknown(self) -> list[str]:
        """Keys neither read nor known to be without effect; the family's reference ignores them as well."""
        return sorted(key for key in self.unread if key not in self.inert)
