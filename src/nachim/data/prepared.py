"""A tokenized corpus on disk: what a run reads, and every number about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from nachim.data.read import Report, Skipped
from nachim.data.tokenize import bytes_per_token, end_of, load_tokenizer

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "validation")


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tokens of both splits as read-only memory maps [tokens]; each document ends in the end-of-text token.

    `train_documents` and `validation_documents` hold the token at which each document starts,
    `bytes_per_token` [ids] the raw bytes of each id, and `manifest` the counts and what was left out.
    """

    folder: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    bytes_per_token: npt.NDArray[np.int64]
    train: np.memmap[Any, Any]
    validation: np.memmap[Any, Any]
    train_documents: npt.NDArray[np.int64]
    validation_documents: npt.NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what decides the tokens: documents, split, tokenizer and its library."""
        return str(self.manifest["fingerprint"])

    @property
    def unique_tokens(self) -> int:
        """Tokens of the train split, end-of-text tokens included."""
        return len(self.train)

    @property
    def train_bytes(self) -> int:
        """Raw UTF-8 bytes of the train split."""
        return int(self.manifest["train"]["bytes"])

    @property
    def validation_bytes(self) -> int:
        """Raw UTF-8 bytes of the validation split."""
        return int(self.manifest["validation"]["bytes"])

    def notes(self) -> list[str]:
        """What the corpus lost on the way to tokens, and how clean the split is: one sentence each."""
        lost = {reason: Skipped(**skipped) for reason, skipped in self.manifest["read"]["skipped"].items()}
        notes = Report(skipped=lost).notes()
        for kind in ("exact", "near"):
            counts = self.manifest[f"{kind}_duplicates"]
            if counts["documents"]:
                notes.append(f"{counts['documents']:,} left out: {kind} duplicates ({counts['bytes']:,} bytes)")
        for split in SPLITS:
            counts = self.manifest[split]
            if "token_bytes" in counts:
                notes.append(
                    f"the tokenizer writes the {counts['bytes']:,} bytes of {split} as tokens of "
                    f"{counts['token_bytes']:,}: bits per byte are of the latter"
                )
        share = self.manifest["leakage"]
        return [*notes, f"{share:.2%} of the validation bytes stand in documents near to train"]


def damage(folder: Path) -> str | None:
    """What is wrong with the prepared corpus in `folder`, by its manifest of sizes; None if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, size in manifest["files"].items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is broken"
    return None


def load(folder: Path, origin: dict[str, Any]) -> Prepared:
    """The prepared corpus in `folder`, which has no `damage`; `origin` goes into its manifest.

    The folder is shared by all corpora of the same documents, so where they were read from stands outside it.
    """
    manifest = {**json.loads((folder / MANIFEST).read_text(encoding="utf-8")), **origin}
    tokenizer = load_tokenizer(folder / TOKENIZER)
    tokens = [np.memmap(folder / f"{name}.bin", dtype=manifest["dtype"], mode="r") for name in SPLITS]
    starts = [np.load(folder / f"{name}.documents.npy") for name in SPLITS]
    sizes = bytes_per_token(tokenizer, end_of(manifest["tokenizer"]))
    return Prepared(folder, manifest, tokenizer, sizes, *tokens, *starts)
