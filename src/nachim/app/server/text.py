"""The bytes behind each token: what clients are told of a token that is part of a character."""

from __future__ import annotations

import re

from tokenizers import Tokenizer


def _byte_of() -> dict[str, int]:
    """The byte that each sign of the byte-level alphabet stands for (GPT-2's: printable ones stand for themselves)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenBytes:
    """Maps a token id to the bytes it adds to a text; special tokens to their names."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_of = _byte_of() if "ByteLevel" in repr(tokenizer.decoder) else {}
        self._added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}

    def __call__(self, token: int) -> bytes:
        """The bytes of `token`; none of an id that has no token."""
        if token in self._added:
            return self._added[token].encode()
        written = self._tokenizer.id_to_token(token) or ""
        if self._byte_of:
            return bytes(self._byte_of[sign] for sign in written if sign in self._byte_of)
        if hexadecimal := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", written):
            return bytes([int(hexadecimal[1], 16)])
        return written.replace("▁", " ").encode()

    def text(self, token: int) -> str:
        """The token as text; one that is no whole character is told as OpenAI tells it, such as bytes:\\xe2\\x82."""
        written = self(token)
        try:
            return written.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)
