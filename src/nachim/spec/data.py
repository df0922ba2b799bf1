"""What a run reads: the corpus, the tokenizer and how they become sequences."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class Corpus(Part):
    """Base of every source of documents. Documents are split by content hash; duplicates never straddle the split.

    `validation_bytes` (UTF-8 bytes) are held out. With `near_duplicates=False` a document that shares more than half of
    its 5-word shingles with an earlier one is left out, so that validation is not a test of copying.
    """

    validation_bytes: int = 2_000_000
    near_duplicates: bool = False

    def check(self) -> None:
        self.require_positive("validation_bytes")


@dataclass(frozen=True, kw_only=True)
class Stdlib(Corpus):
    """The embedded corpus: every .py file of the running Python's standard library."""


@dataclass(frozen=True, kw_only=True)
class Files(Corpus):
    """A file or folder of text, .jsonl (plain, .zst or .gz) or .parquet, with the text in `text_column`.

    A text file is one document. One that is the whole corpus is cut, at blank lines or line ends, every 8 KiB or so.
    """

    path: str
    text_column: str = "text"


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Corpus):
    """A Hugging Face data set by name; needs the `hf` extra."""

    name: str
    config: str | None = None
    split: str = "train"
    text_column: str = "text"


@dataclass(frozen=True, kw_only=True)
class BPE(Part):
    """Byte-level byte-pair encoding trained on the train split; `vocab_size` counts the end-of-text token."""

    vocab_size: int

    def check(self) -> None:
        if self.vocab_size < 257:
            self.refuse("vocab_size", f"is {self.vocab_size}; bytes and the end-of-text token need at least 257")


@dataclass(frozen=True, kw_only=True)
class Data(Part):
    """Packed sequences of `seq_len` tokens, in an order that is a pure function of (`seed`, index).

    `fingerprint_of_tokens` is empty until the corpus is prepared; a run that carries it refuses any other tokens.
    """

    corpus: Corpus = Stdlib()
    tokenizer: BPE
    seq_len: int
    seed: int = 0
    fingerprint_of_tokens: str = ""

    def check(self) -> None:
        self.require_positive("seq_len")
