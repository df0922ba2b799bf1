"""A small corpus of distinct documents, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nachim.data.prepare import prepare
from nachim.data.prepared import Prepared
from nachim.spec.data import BPE, Data, Files

VOCABULARY = [
    f"{start}{end}" for start in ("ba", "ké", "mo", "나", "tu", "zi") for end in ("", "rn", "lo", "✓", "st", "ng")
]


def sentence(seed: int, words: int) -> str:
    """`words` words drawn from a small vocabulary: no 5 of them in a row are likely to stand in another document."""
    drawn = np.random.default_rng(seed).choice(VOCABULARY, words)
    return " ".join(drawn) + "\n"


@pytest.fixture(scope="session")
def text() -> Callable[[int, int], str]:
    """Makes a document from a seed and a number of words."""
    return sentence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 documents of 40 to 80 words, about 60 kB."""
    place = tmp_path / "corpus"
    place.mkdir()
    for i in range(200):
        (place / f"{i:03}.txt").write_text(sentence(i, 40 + i % 41), encoding="utf-8")
    return place


@pytest.fixture
def data(folder: Path) -> Data:
    """Sequences of 16 tokens over `folder`."""
    return Data(
        corpus=Files(path=str(folder), validation_bytes=4000), tokenizer=BPE(vocab_size=300), seq_len=16, seed=1
    )


@pytest.fixture
def prepared(data: Data, tmp_path: Path) -> Prepared:
    """`data`, prepared in a fresh cache."""
    return prepare(data, tmp_path / "cache")
