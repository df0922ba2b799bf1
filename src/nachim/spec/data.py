"""What a run reads: the corpus, the tokenizer and how they become sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nachim.spec.part import Part, later


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
class Ingredient(Part):
    """One corpus of a mixture under its `name`; its share is its `weight` over the sum of all.

    Without weight a corpus is validated and not trained on: what a run forgets of it is seen all the same.
    """

    name: str
    corpus: Corpus
    weight: float

    def check(self) -> None:
        if not self.name or "/" in self.name:
            self.refuse("name", f"is {self.name!r}; it must be a word without a slash")
        if self.weight < 0:
            self.refuse("weight", f"is {self.weight}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class Reweight(Part):
    """Other weights of a mixture's ingredients, in their order, from the token `at_tokens` of the run on."""

    at_tokens: int
    weights: tuple[float, ...]

    def check(self) -> None:
        self.require_positive("at_tokens")
        if min(self.weights, default=0.0) < 0 or not sum(self.weights):
            self.refuse("weights", f"are {self.weights}; none may be negative, and one must be above 0")


@dataclass(frozen=True, kw_only=True)
class Mixture(Part):
    """Several corpora read as one, by weight: a sequence is of one corpus, and after any number of them each corpus has
    had its share, give or take fewer sequences than there are corpora.

    The first ingredient's train split is what a tokenizer is trained on, and all are written in it. `changes` are a
    course of weights over the run: a curriculum, or a last stretch of better text. Each corpus is validated apart.

    With a `temperature` T the ingredients' weights are times their train tokens to the power 1/T: at 1 each is read in
    proportion to its size, at higher ones small corpora are read more (arXiv 1907.05019); `changes` are taken
    as they stand. A run that would read an ingredient more than `most_epochs` times over is refused.
    """

    ingredients: tuple[Ingredient, ...]
    changes: tuple[Reweight, ...] = ()
    temperature: float | None = later(None)
    most_epochs: float | None = later(None)

    def check(self) -> None:
        for name in ("temperature", "most_epochs"):
            if getattr(self, name) is not None:
                self.require_positive(name)
        if not sum(one.weight for one in self.ingredients):
            self.refuse("ingredients", "have no weight; one of them must be above 0")
        names = [one.name for one in self.ingredients]
        if len(set(names)) < len(names):
            self.refuse("ingredients", f"are named {', '.join(names)}; each needs a name of its own")
        if any(len(one.weights) != len(names) for one in self.changes):
            self.refuse("changes", f"must give {len(names)} weights each, one for every ingredient")
        times = [one.at_tokens for one in self.changes]
        if times != sorted(set(times)):
            self.refuse("changes", f"come at the tokens {times}; each must come after the one before")


@dataclass(frozen=True, kw_only=True)
class BPE(Part):
    """Byte-level byte-pair encoding trained on the train split; `vocab_size` counts the end-of-text token."""

    vocab_size: int

    def check(self) -> None:
        if self.vocab_size < 257:
            self.refuse("vocab_size", f"is {self.vocab_size}; bytes and the end-of-text token need at least 257")


@dataclass(frozen=True, kw_only=True)
class Unigram(Part):
    """Pieces of a unigram language model (arXiv 1804.10959) over bytes, trained on the train split: as lossless as BPE.

    With `whitespace` a piece ends where white space begins; without, it may hold several words, as scripts that put no
    spaces between words need it, and ends with its line.
    """

    vocab_size: int
    whitespace: bool = True

    def check(self) -> None:
        if self.vocab_size < 257:
            self.refuse("vocab_size", f"is {self.vocab_size}; bytes and the end-of-text token need at least 257")


@dataclass(frozen=True, kw_only=True)
class TokenizerFile(Part):
    """The byte-level tokenizer in a `tokenizer.json`: that of another run, or of a checkpoint that was imported.

    `end` is the token after each document, `vocab_size` that of the model, which may be larger than the file's. The
    file's own normalisation and ways of cutting text are kept.
    """

    path: str
    vocab_size: int
    end: str = "<|endoftext|>"

    def check(self) -> None:
        self.require_positive("vocab_size")


@dataclass(frozen=True, kw_only=True)
class Data(Part):
    """Packed sequences of `seq_len` tokens, in an order that is a pure function of (`seed`, index).

    Packing is a stream of all documents, cut at every `seq_len` tokens, or the best fit of whole documents, of which
    only longer ones are cut (arXiv 2404.10830). With `mask_documents` no token sees another document than its own.
    `fingerprint_of_tokens` is empty until the corpus is prepared; a run that carries it refuses any other tokens.
    """

    corpus: Corpus | Mixture = Stdlib()
    tokenizer: BPE | Unigram | TokenizerFile
    seq_len: int
    seed: int = 0
    fingerprint_of_tokens: str = ""
    packing: Literal["stream", "best-fit"] = later("stream")
    mask_documents: bool = later(False)

    def check(self) -> None:
        self.require_positive("seq_len")
