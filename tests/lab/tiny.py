"""A laboratory small enough for a test: a corpus of generated prose and a recipe of a few steps."""

from __future__ import annotations

import random
from pathlib import Path

from nachim.data.prepare import prepare
from nachim.lab.recipe import Recipe
from nachim.spec import BPE, Data, Files

TEXT = "the cat sat on a mat and the dog ran to it while rain fell over old town roofs then sun came"


def write_corpus(path: Path, documents: int = 400, seed: int = 0) -> Path:
    """A folder of text documents, each a page of random sentences."""
    rng = random.Random(seed)
    path.mkdir(parents=True)
    for number in range(documents):
        lines = [" ".join(rng.choices(TEXT.split(), k=rng.randint(4, 12))) + "." for _ in range(40)]
        (path / f"{number:04d}.txt").write_text(f"page {number} {rng.random()}\n" + "\n".join(lines) + "\n")
    return path


def tiny_data(root: Path) -> Data:
    """The data spec of such a corpus, made under `root`."""
    folder = root / "text"
    if not folder.exists():
        write_corpus(folder)
    corpus = Files(path=str(folder), validation_bytes=20_000, near_duplicates=True)
    return Data(corpus=corpus, tokenizer=BPE(vocab_size=300), seq_len=32)


def tiny_recipe(root: Path, **changes: object) -> Recipe:
    """A recipe of batches of a few short sequences on the tiny corpus, prepared under `root/cache`."""
    data = tiny_data(root)
    prepare(data, root / "cache")
    fields = {"precision": "fp32", "batch_factor": 0.05, "warmup_steps": 4, "validation_tokens": 1024, **changes}
    return Recipe(data=data, **fields)
