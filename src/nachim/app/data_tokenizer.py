"""The verb `nachim data tokenizer`: what a tokenizer makes of texts, file by file and by kind of character."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nachim.app.view import TerminalView
from nachim.data.fertility import Fertility, Share, embedding_share, fertility
from nachim.data.read import JSON_LINES, Report
from nachim.data.records import records
from nachim.data.tiktoken import read_tiktoken
from nachim.data.tokenize import EOT, parse_tokenizer, text_of_file
from nachim.spec import TokenizerFile
from nachim.spec.error import UserError

SUFFIX = ".tiktoken"


@dataclass(frozen=True)
class TokenizerReport:
    """Say what a tokenizer makes of texts: bytes a token, tokens a word, what it does to each script, what it costs.

    TOKENIZER is a tokenizer.json (of a run, or of a Hugging Face checkpoint; byte-level) or a tiktoken vocabulary
    (NAME.tiktoken, with --cut). Give one file for each language or kind of text: .jsonl, or plain text. --save writes a
    tiktoken vocabulary as a tokenizer.json, which a run reads as TokenizerFile(path=...).

    Example: nachim data tokenizer tokenizer.json korean.jsonl english.jsonl code.txt
    """

    tokenizer: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENIZER")]
    """A tokenizer.json, or a .tiktoken."""
    texts: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """Files of text."""
    end: str = EOT
    """The tokenizer's end-of-text token."""
    cut: Literal["gpt2", "cl100k"] = "cl100k"
    """How a .tiktoken vocabulary's text is cut."""
    save: Path | None = None
    """Where the tokenizer is written as a tokenizer.json."""
    d_model: int = 768
    """Width of the model whose vocabulary's share is told."""
    n_layers: int = 12
    """Its layers."""
    text_column: str = "text"
    """The key that holds the text of .jsonl files."""
    json: bool = False
    """Print one JSON object: vocab_size, embedding_share, files (bytes_per_token, tokens_per_word, kinds, ...)."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was found, for a script and for a person."""
        view.stage("encoding")
        if self.tokenizer.name.endswith(SUFFIX):
            tokenizer = read_tiktoken(self.tokenizer, self.cut, self.end)
        else:
            spec = TokenizerFile(path=str(self.tokenizer), vocab_size=1)
            tokenizer = parse_tokenizer(text_of_file(spec), str(self.tokenizer))
        if tokenizer.token_to_id(self.end) is None:
            raise UserError(f"{self.tokenizer} has no token {self.end!r}: name its end-of-text token with --end")
        found: dict[str, Fertility] = {}
        for place, path in enumerate(self.texts, start=1):
            found[path.name] = fertility(tokenizer, self.end, self._texts(path))
            view.share(path.name, place / len(self.texts))
        if self.save is not None:
            tokenizer.save(str(self.save))
        size = tokenizer.get_vocab_size()
        share = embedding_share(size, self.d_model, self.n_layers, tied=True)
        lines = [f"{size:,} tokens: {share:.1%} of the parameters at {self.n_layers} x {self.d_model}, tied"]
        for name, one in found.items():
            lines.append(
                f"{name}: {one.whole.bytes_per_token:.2f} bytes a token, {one.tokens_per_word:.2f} tokens a word, "
                f"{one.used:.1%} of the vocabulary; {one.lossless:,} of {one.texts:,} texts come back as they were"
            )
            lines += [
                f"  {kind:36} {share.bytes:>12,} bytes  {share.bytes_per_token:6.2f} a token"
                for kind, share in one.kinds.items()
            ]
        files = {name: _told(one) for name, one in found.items()}
        return {"vocab_size": size, "embedding_share": share, "files": files}, "\n".join(lines)

    def _texts(self, path: Path) -> list[str]:
        if not path.is_file():
            raise UserError(f"no such file: {path}")
        if not path.name.endswith(JSON_LINES):
            try:
                return path.read_text(encoding="utf-8").splitlines(keepends=True)
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8: {error}") from error
        return [record.text.decode() for record in records(path, self.text_column, Report())]


def _told(one: Fertility) -> dict[str, Any]:
    return {
        "texts": one.texts,
        "lossless": one.lossless,
        **_share(one.whole),
        "tokens_per_word": one.tokens_per_word,
        "vocabulary_used": one.used,
        "kinds": {name: _share(share) for name, share in one.kinds.items()},
    }


def _share(one: Share) -> dict[str, float]:
    return {"bytes": one.bytes, "tokens": one.tokens, "bytes_per_token": one.bytes_per_token}
