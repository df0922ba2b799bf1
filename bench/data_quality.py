"""Quality stages beside peers, on the standard library's own source: verdicts, log-probabilities, weights and speed.

    python bench/data_quality.py [--megabytes 4] [--rounds 3] [--json]

Peers are held against where they can be imported: datatrove (rules), kenlm (n-gram models), data_selection (DSIR).
Rounds take turns, processor time is counted, medians are printed. Nothing here is needed by the product.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json as jsonlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from nachim.data.arpa import read_arpa, write_arpa
from nachim.data.ngram import sentences_of, train
from nachim.data.passage import WORD
from nachim.data.pii import mask
from nachim.data.read import Report
from nachim.data.resample import Hasher, log_ratio, weights
from nachim.data.rules import FAMILIES, broken, scores_of
from nachim.data.shingle import batches
from nachim.data.source import open_source
from nachim.spec import Stdlib

KINDS = {
    **{"gopher_short_doc": "gopher_words", "gopher_long_doc": "gopher_words"},
    **{"gopher_below_avg_threshold": "gopher_word_length", "gopher_above_avg_threshold": "gopher_word_length"},
    **{"gopher_too_many_hashes": "gopher_hashes", "gopher_too_many_ellipsis": "gopher_ellipses"},
    **{"gopher_too_many_bullets": "gopher_bullets", "gopher_too_many_end_ellipsis": "gopher_line_ellipses"},
    **{"gopher_below_alpha_threshold": "gopher_letters", "gopher_enough_stop_words": "gopher_stop_words"},
    **{"dup_para_frac": "gopher_paragraphs", "dup_para_char_frac": "gopher_paragraph_characters"},
    **{"dup_line_frac": "gopher_lines", "dup_line_char_frac": "gopher_line_characters"},
    **{f"top_{n}_gram": f"gopher_top_{n}" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher_runs_{n}" for n in range(5, 11)},
    **{"line_punct_ratio": "fine_web_line_ends", "short_line_ratio": "fine_web_short_lines"},
    **{"char_dup_ratio": "fine_web_line_characters", "list_ratio": "fine_web_newlines"},
}
"""datatrove's reasons, and our rules of the same meaning."""

TOLD = (ast.Module, ast.ClassDef, ast.FunctionDef)


def texts_of(megabytes: float) -> list[str]:
    """Source files of the standard library in pieces of 4,000 characters, `megabytes` of them, and their docstrings."""
    found, size = [], 0
    for raw in open_source(Stdlib()).documents(Report()):
        text = raw.decode()
        found += [text[at : at + 4000] for at in range(0, len(text), 4000)]
        with contextlib.suppress(SyntaxError):
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, TOLD)]
            found.append("\n\n".join(filter(None, map(ast.get_docstring, nodes)))[:8000])
        size += len(raw)
        if size > megabytes * 1e6:
            break
    return [text for text in found if text.strip()]


def timed(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time()
            work()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


def rules(texts: list[str], rounds: int) -> dict[str, Any]:
    """Verdicts of datatrove's filters and of our rules on the same texts, and the speed of both.

    `own_words` has datatrove as it stands, with the words of its tokenizer; else it is given our words, so that a
    difference is one of rules. Its limit for repeated lines is set to the paper's, as ours is.
    """
    quality, repetition, fineweb = (
        importlib.import_module(f"datatrove.pipeline.filters.{name}")
        for name in ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter")
    )
    document = importlib.import_module("datatrove.data").Document
    filters = {
        "gopher-quality": quality.GopherQualityFilter(),
        "gopher-repetition": repetition.GopherRepetitionFilter(),
        "fineweb": fineweb.FineWebQualityFilter(char_duplicates_ratio=0.1),
    }
    own_words = {name: verdicts(peer, name, texts[::4]) for name, peer in filters.items()}
    for module in (quality, repetition, fineweb):
        module.split_into_words = lambda text, language: WORD.findall(text)
    table = {name: verdicts(peer, name, texts) for name, peer in filters.items()}
    every = [rule for family in filters for rule in FAMILIES[family]]
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds = timed(
        {
            "nachim": lambda: [scores_of(every, text) for text in texts],
            "datatrove": lambda: [
                peer.filter(document(text=text, id="")) for text in texts for peer in filters.values()
            ],
        },
        rounds,
    )
    return {
        "texts": len(texts),
        "verdicts": table,
        "own_words": own_words,
        "mb_per_second": {name: size / s for name, s in seconds.items()},
    }


def verdicts(peer: Any, family: str, texts: list[str]) -> dict[str, float]:
    """Of the texts: the share we keep, that on which the peer says the same, and for a reason that is also ours."""
    document = importlib.import_module("datatrove.data").Document
    kept = agree = reason = 0
    for text in texts:
        verdict = peer.filter(document(text=text, id=""))
        broke = broken(FAMILIES[family], scores_of(FAMILIES[family], text))
        kept += not broke
        agree += (verdict is True) == (not broke)
        reason += not broke if verdict is True else KINDS[verdict[1]] in broke
    return {"kept": kept / len(texts), "agree": agree / len(texts), "reason": reason / len(texts)}


def models(texts: list[str], rounds: int) -> dict[str, Any]:
    """Our log-probabilities and KenLM's, of the same ARPA file; and the speed of both."""
    kenlm = importlib.import_module("kenlm")
    seen, other = ([line for text in texts[i::2] for line in sentences_of(text)] for i in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.arpa"
        began = time.process_time()
        model = train(seen, 3)
        trained = time.process_time() - began
        write_arpa(model, path)
        own, peer = read_arpa(path), kenlm.Model(str(path))
    ids, sentence = own._run(other)
    inside = np.append(False, sentence[1:] == sentence[:-1])
    each = own._log10(ids, sentence)[inside]
    joined = [" ".join(line) for line in other]
    theirs = np.array([one[0] for line in joined for one in peer.full_scores(line)])
    seconds = timed(
        {"nachim": lambda: own.score(other), "kenlm": lambda: [peer.score(line) for line in joined]}, rounds
    )
    return {
        "ngrams": [len(level.keys) for level in own.levels],
        "train_words_per_second": sum(map(len, seen)) / trained,
        "words": len(each),
        "largest_difference_log10": float(np.abs(each - theirs).max()),
        "score_words_per_second": {name: len(each) / s for name, s in seconds.items()},
    }


def resampling(texts: list[str], rounds: int) -> dict[str, Any]:
    """Weights of ours and of the published package for the same raw and target texts, and the speed of both.

    Its words are cut by Python's `re`, as its tokenizer did before it took another library, which has fewer letters.
    """
    dsir = importlib.import_module("data_selection.hashed_ngram_dsir")
    dsir.wpt.tokenize = re.compile(r"\w+|[^\w\s]+").findall
    for module in (dsir, importlib.import_module("data_selection.base")):
        module.parallelize = lambda work, jobs, count: [work(one) for one in jobs]  # here, so that its time is counted
    target = [text for text in texts if "test" in text[:300]]
    found: dict[str, Any] = {}

    def ours() -> None:
        hasher, batched = Hasher(), list(batches(texts, len))
        pairs = [hasher.of(batch) for batch in batched]
        raw = sum(np.bincount(buckets, minlength=hasher.buckets) for buckets, _ in pairs)
        ratio = log_ratio(hasher.counts(target), np.asarray(raw))
        parts = [weights(ratio, *pair, len(batch)) for pair, batch in zip(pairs, batched, strict=True)]
        found["nachim"] = np.concatenate(parts)

    def theirs() -> None:
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, some in (("raw", texts), ("target", target)):
                paths.append(Path(folder) / f"{name}.jsonl")
                paths[-1].write_text("".join(jsonlib.dumps({"text": text}) + "\n" for text in some))
            job = dsir.HashedNgramDSIR([str(paths[0])], [str(paths[1])], cache_dir=folder, num_proc=1)
            job.tokenizer = dsir.wpt.tokenize
            job.fit_importance_estimator(num_tokens_to_fit="all")
            job.compute_importance_weights()
            found["dsir"] = np.load(job.log_importance_weights_dir / "0.npy")

    seconds = timed({"nachim": ours, "dsir": theirs}, rounds)
    size = sum(len(text.encode()) for text in texts) / 1e6
    return {
        "texts": len(texts),
        "largest_difference": float(np.abs(found["nachim"] - found["dsir"]).max()),
        "largest_weight": float(np.abs(found["dsir"]).max()),
        "mb_per_second": {name: size / s for name, s in seconds.items()},
        "faster": seconds["dsir"] / seconds["nachim"],
    }


def masking(texts: list[str], rounds: int) -> dict[str, Any]:
    """How fast text is masked."""
    seconds = timed({"nachim": lambda: [mask(text) for text in texts]}, rounds)
    return {"mb_per_second": sum(len(text.encode()) for text in texts) / 1e6 / seconds["nachim"]}


def main(megabytes: float = 4.0, rounds: int = 3, json: bool = False) -> None:
    """Measure, and print what was found."""
    texts, found = texts_of(megabytes), dict[str, Any]()
    for work in (rules, models, resampling, masking):
        try:
            found[work.__name__] = work(texts, rounds)
        except ImportError as error:
            Console(stderr=True).print(f"{work.__name__}: not held against its peer: {error}")
    if json:
        print(jsonlib.dumps(found))
    else:
        Console().print(found)


if __name__ == "__main__":
    tyro.cli(main)
