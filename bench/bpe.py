"""Tokenizers beside their peers: encoding by `tokenizers` and through tiktoken, training by `tokenizers` and rustbpe.

    python bench/bpe.py encode [--megabytes 8] [--gpt2 ggml-vocab-gpt-2.gguf] [--text FILE]
    python bench/bpe.py train [--megabytes 50] [--vocab 32768]           # with `pip install rustbpe`

Seconds are of the processor, all threads together, so a rate is that of one core. Both sides of `encode` take turns in
one process, and every document must have the same ids; each run of `train` is a process of its own, for its peak of
memory. GPT-2's vocabulary is read from the file that llama.cpp keeps it in; ids that stand beside it (.inp, .out: of
the original's own tokenizer) are held against ours.
"""

from __future__ import annotations

import json as jsonlib
import resource
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nachim.data.fast import LLAMA, Fast
from nachim.data.read import Report
from nachim.data.source import open_source
from nachim.data.tokenize import EOT, parse_tokenizer
from nachim.spec import Files, Stdlib

BETWEEN = "\n__ggml_vocab_test__\n"


def texts(megabytes: float, prose: Path | None) -> list[str]:
    """The standard library's documents and then those of `prose`, again from the start until there are enough."""
    found = [raw.decode() for raw in open_source(Stdlib()).documents(Report())]
    if prose is not None:
        found += [raw.decode() for raw in open_source(Files(path=str(prose))).documents(Report())]
    size, chosen = 0, []
    while size < megabytes * 1e6:
        text = found[len(chosen) % len(found)]
        chosen.append(text)
        size += len(text.encode())
    return chosen


def byte_level(cut: str | None) -> Tokenizer:
    """A tokenizer that has yet to be trained, which cuts by an expression, or as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
    first = [] if cut is None else [pre_tokenizers.Split(Regex(cut), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, last]) if first else last
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def gpt2(path: Path) -> Tokenizer:
    """GPT-2's own merges."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = byte_level(None)
    tokenizer.model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    tokenizer.add_special_tokens([AddedToken(EOT, special=True)])
    return parse_tokenizer(tokenizer.to_str(), str(path))


@dataclass(frozen=True)
class Encode:
    """Megabytes a second of a core, and whether the ids are the same."""

    megabytes: float = 8
    """How much text."""
    rounds: int = 5
    """Turns of each side; the median counts."""
    gpt2: Path | None = None
    """GPT-2's vocabulary as a .gguf."""
    text: Path | None = None
    """More text, after the standard library's."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> dict[str, Any]:
        """One row a vocabulary."""
        chosen = texts(self.megabytes, self.text)
        made = [own(chosen, size, None) for size in (512, 4096, 32768)]
        cases = {f"own, {tokenizer.get_vocab_size():,}": tokenizer for tokenizer in made}
        llama = own(chosen, 32768, LLAMA)
        cases[f"as Llama 3 cuts, {llama.get_vocab_size():,}"] = llama
        if self.gpt2 is not None:
            cases["GPT-2"] = gpt2(self.gpt2)
            print(beside(self.gpt2, cases["GPT-2"]), file=sys.stderr)
        return {name: self.one(tokenizer, chosen) for name, tokenizer in cases.items()}

    def one(self, tokenizer: Tokenizer, chosen: list[str]) -> dict[str, Any]:
        """Both sides in turn."""
        began = time.process_time()
        fast = Fast.of(tokenizer)
        assert fast is not None
        checked = time.process_time() - began
        size, spent = sum(len(text.encode()) for text in chosen), ([], [])
        for _ in range(self.rounds):
            began = time.process_time()
            theirs = tokenizer.encode_batch_fast(chosen, add_special_tokens=False)
            spent[0].append(time.process_time() - began)
            began = time.process_time()
            ours = fast(chosen)
            spent[1].append(time.process_time() - began)
        same = all(one.ids == other.tolist() for one, other in zip(theirs, ours, strict=True))
        rates = [size / 1e6 / median(seconds) for seconds in spent]
        return {
            "tokenizers_mb_s": rates[0],
            "ours_mb_s": rates[1],
            "ratio": rates[1] / rates[0],
            "same_ids": same,
            "check_seconds": checked,
        }


def own(chosen: list[str], size: int, cut: str | None) -> Tokenizer:
    """A vocabulary of `size`, or as many as come twice, trained on a tenth of the documents."""
    tokenizer = byte_level(cut)
    tokenizer.train_from_iterator(chosen[::10], trainer(size))
    return parse_tokenizer(tokenizer.to_str(), "own")


def trainer(size: int) -> trainers.BpeTrainer:
    """As `nachim.data.tokenize` has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )


def beside(path: Path, tokenizer: Tokenizer) -> str:
    """How many of the texts beside a vocabulary have the ids that stand there, by either side."""
    asked = Path(f"{path}.inp").read_text(encoding="utf-8").split(BETWEEN)
    wanted = [[int(i) for i in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    fast, pairs = Fast.of(tokenizer), list(zip(asked, wanted, strict=False))
    assert fast is not None
    theirs = sum(tokenizer.encode(text, add_special_tokens=False).ids == ids for text, ids in pairs)
    ours = sum(fast.one(text).tolist() == ids for text, ids in pairs)
    return f"of {len(pairs)} texts with known ids: tokenizers has {theirs}, tiktoken {ours}"


@dataclass(frozen=True)
class Train:
    """Processor seconds and peak memory of training, each in a process of its own."""

    megabytes: float = 50
    """How much text."""
    vocab: int = 32768
    """Tokens."""
    text: Path | None = None
    """More text, after the standard library's."""
    json: bool = False
    """Print one JSON object."""
    rounds: int = 3
    """Turns of each side; the median counts."""
    alone: Annotated[str | None, tyro.conf.arg(help="What the processes of their own do.")] = None

    def run(self) -> dict[str, Any]:
        """One row a library."""
        if self.alone is not None:
            return self.trained(self.alone)
        told: dict[str, list[dict[str, Any]]] = {"tokenizers": [], "rustbpe": []}
        for _ in range(self.rounds):
            for name, rows in told.items():
                words = ["--megabytes", self.megabytes, "--vocab", self.vocab, "--alone", name, "--json"]
                if self.text is not None:
                    words += ["--text", self.text]
                command = [sys.executable, __file__, "train", *map(str, words)]
                rows.append(jsonlib.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        return {name: summed(rows) for name, rows in told.items()}

    def trained(self, name: str) -> dict[str, Any]:
        """Train here."""
        chosen = texts(self.megabytes, self.text)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, (time.process_time(), time.perf_counter())
        if name == "rustbpe":
            import rustbpe

            tokenizer = rustbpe.Tokenizer()
            tokenizer.train_from_iterator(iter(chosen), self.vocab, pattern=LLAMA)
            made = repr(tokenizer.get_mergeable_ranks())
        else:
            tokenizer = byte_level(LLAMA)
            tokenizer.train_from_iterator(([text] for text in chosen), trainer(self.vocab))
            made = tokenizer.to_str()
        spent, wall = time.process_time() - began[0], time.perf_counter() - began[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown, digest = (peak - before) / 1024, zlib.crc32(made.encode())
        return {"cpu_seconds": spent, "wall_seconds": wall, "grown_mib": grown, "made": digest}


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of several turns, and whether they made the same."""
    told = {name: median(row[name] for row in rows) for name in rows[0] if name != "made"}
    return {**told, "same_each_time": len({row["made"] for row in rows}) == 1}


def main(
    do: Annotated[
        Annotated[Encode, tyro.conf.subcommand("encode", prefix_name=False)]
        | Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)],
        tyro.conf.arg(name=""),
    ] = Encode(),
) -> None:
    """Print one line a case."""
    found = do.run()
    if do.json:
        print(jsonlib.dumps(found))
        return
    rows = list(found.items())
    table = Table("", *rows[0][1])
    for name, row in rows:
        table.add_row(name, *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
