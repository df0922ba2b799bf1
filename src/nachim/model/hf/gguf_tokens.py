"""A tokenizer.json as the metadata of a GGUF file: byte-level byte-pair encodings, by the names llama.cpp has for how
they cut text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import TokenType

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CUTS = {
    rf"{SHORTENED}|{WORDS}|\p{{N}}{{1,3}}|{REST}": "llama-bpe",
    rf"{SHORTENED}|{WORDS}|\p{{N}}|{REST}": "qwen2",
}
"""llama.cpp's name of each expression that cuts text into words; a plain byte-level one is cut as GPT-2 does."""


def token_facts(tokenizer: Mapping[str, Any], ids: Mapping[str, Any], vocab_size: int) -> dict[str, Any] | None:
    """What the writer is told of a tokenizer; `ids` are the numbers of special tokens, as in a config.json.

    Ids of the model that the tokenizer has no token for are filled up. None for a tokenizer that is no byte-level
    byte-pair encoding, or cuts text in a way that has no name here.
    """
    model, cut = tokenizer["model"], cut_of(tokenizer.get("pre_tokenizer"))
    if model.get("type") != "BPE" or model.get("byte_fallback") or cut is None:
        return None
    added = {token["id"]: token for token in tokenizer.get("added_tokens") or []}
    words = {number: word for word, number in model["vocab"].items()}
    words |= {number: token["content"] for number, token in added.items()}
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    special = {f"{name}_token_id": _first(ids.get(f"{name}_token_id")) for name in ("bos", "eos", "pad")}
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": cut,
        "token_list": [words.get(number, f"[PAD{number}]") for number in range(vocab_size)],
        "token_types": [_kind(number, words, added) for number in range(vocab_size)],
        "token_merges": merges,
        "add_bos_token": begins(tokenizer.get("post_processor")),
        **{name: number for name, number in special.items() if number is not None},
    }


def cut_of(part: Mapping[str, Any] | None) -> str | None:
    """llama.cpp's name of a way to cut text; None where it has none here."""
    parts = (part or {}).get("pretokenizers", [part] if part else [])
    kinds = [each["type"] for each in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True) and not parts[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        return CUTS.get(parts[0]["pattern"].get("Regex"))
    return None


def begins(part: Mapping[str, Any] | None) -> bool:
    """Whether a post-processor puts a special token before a text."""
    parts = (part or {}).get("processors", [part] if part else [])
    single = [each.get("single") for each in parts if each.get("type") == "TemplateProcessing"]
    return any(pieces and "SpecialToken" in pieces[0] for pieces in single)


def _first(number: Any) -> int | None:
    return number[0] if isinstance(number, list) else number


def _kind(number: int, words: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> TokenType:
    if number in added:
        return TokenType.CONTROL if added[number].get("special") else TokenType.USER_DEFINED
    return TokenType.NORMAL if number in words else TokenType.UNUSED
