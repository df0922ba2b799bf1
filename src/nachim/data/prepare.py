"""A corpus to a folder of tokens, once: read, deduplicate, split, train the tokenizer, encode."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import socket
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from nachim.data.dedup import distinct, leakage
from nachim.data.prepared import MANIFEST, SPLITS, TOKENIZER, Prepared, damage, load
from nachim.data.read import Report
from nachim.data.source import Source, open_source
from nachim.data.split import by_content, split
from nachim.data.spool import Spool, spool
from nachim.data.tokenize import bytes_per_token, encode, end_of, load_tokenizer, text_of_file, tokenizer_text
from nachim.spec.data import BPE, Data, Mixture, TokenizerFile, Unigram
from nachim.spec.disk import replacing, write_text
from nachim.spec.error import UserError

# Raise it when the same corpus and tokenizer come to other tokens, or to other files.
FORMAT = 1

Progress = Callable[[str, float], None]


def prepare(data: Data, cache: Path, progress: Progress | None = None) -> Prepared:
    """The tokens of `data`, from `cache` or made now. `progress` hears each stage and the share done, 0 to 1.

    A folder of `cache` appears whole or not at all, and a damaged one is made again, with a warning. An
    unchanged corpus is known by its files' sizes and times, without being read.
    Raises UserError for whatever a person can mend, and when the tokens are not those that `data` insists on.
    """
    if isinstance(data.corpus, Mixture):
        raise UserError("a Mixture is read by a run alone: give Data one corpus here")
    cache, source = Path(cache), open_source(data.corpus)
    known = cache / "known" / f"{_digest(_recipe(data), data.corpus.to_json(), source.listing())}.json"
    origin = _origin(known) if source.files else None  # without files to look at, only reading it can tell
    if origin and not damage(cache / origin["fingerprint"]):
        _insist(data, origin["fingerprint"])
    else:
        with _workplace(cache) as workplace:
            origin = _make(data, source, cache, workplace, progress or _silent)
        write_text(known, json.dumps(origin, indent=2) + "\n")
    return load(cache / origin["fingerprint"], origin)


def _make(data: Data, source: Source, cache: Path, workplace: Path, progress: Progress) -> dict[str, Any]:
    """Read the corpus and, unless `cache` has its tokens, make them; what was read, and its fingerprint."""
    report = Report()
    progress("read", 0.0)
    stored = spool(source.documents(report), workplace / "documents")
    progress("read", 1.0)
    fingerprint = _digest(_recipe(data), stored.content)
    _insist(data, fingerprint)
    final, made = cache / fingerprint, workplace / "made"
    broken = damage(final)
    if broken and final.exists():
        warnings.warn(f"the prepared corpus {final} is damaged ({broken}): making it again", stacklevel=3)
    if broken:
        manifest = {"fingerprint": fingerprint, **_recipe(data), **_build(data, stored, made, progress)}
        manifest["files"] = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
        write_text(made / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        _publish(made, final, workplace / "damaged")
    return {
        "fingerprint": fingerprint,
        "source": source.name,
        "read": dataclasses.asdict(report),
        "exact_duplicates": {"documents": stored.duplicates, "bytes": stored.duplicate_bytes},
    }


def _build(data: Data, stored: Spool, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write tokenizer and tokens of `stored` to `folder`; the manifest about them."""
    order = by_content(stored, data.corpus.validation_bytes)
    kept = order
    if not data.corpus.near_duplicates:
        kept = distinct(stored, order, functools.partial(progress, "deduplicate"))
    train, validation = split(stored, kept, data.corpus)
    progress("tokenizer", 0.0)
    write_text(folder / TOKENIZER, tokenizer_text(data.tokenizer, stored, train))
    progress("tokenizer", 1.0)
    dtype = np.dtype(np.uint16 if data.tokenizer.vocab_size <= 1 << 16 else np.uint32)
    sizes, counts = stored.sizes, {}
    for name, part in zip(SPLITS, (train, validation), strict=True):
        tick = functools.partial(progress, f"encode {name}")
        tokens, stand_for = _encode(folder, name, stored, part, dtype, data.tokenizer, tick)
        counts[name] = {"documents": len(part), "bytes": int(sizes[part].sum()), "tokens": tokens}
        if stand_for != counts[name]["bytes"]:
            counts[name]["token_bytes"] = stand_for
    return {
        "python": platform.python_version(),
        "dtype": dtype.name,
        "near_duplicates": {
            "documents": len(order) - len(kept),
            "bytes": int(sizes.sum() - sizes[kept].sum()),
        },
        **counts,
        "leakage": leakage(stored, train, validation, functools.partial(progress, "leakage")),
    }


def _encode(
    folder: Path,
    name: str,
    stored: Spool,
    part: npt.NDArray[np.int64],
    dtype: np.dtype[Any],
    spec: BPE | Unigram | TokenizerFile,
    tick: Callable[[float], None],
) -> tuple[int, int]:
    """Write the tokens and document starts of one split; how many tokens there are, and the bytes they stand for."""
    tokenizer, end = load_tokenizer(folder / TOKENIZER), end_of(spec.to_json())
    sizes, stand_for = bytes_per_token(tokenizer, end), 0
    lengths: list[int] = []
    with replacing(folder / f"{name}.bin") as path, open(path, "wb") as file:
        for batch in encode(tokenizer, stored, part, end):
            tokens = np.concatenate(batch)
            file.write(tokens.astype(dtype).tobytes())
            stand_for += int(sizes[tokens].sum())
            lengths += [len(tokens) for tokens in batch]
            tick(len(lengths) / len(part))
    starts = io.BytesIO()
    np.save(starts, np.cumsum([0, *lengths[:-1]], dtype=np.int64))
    with replacing(folder / f"{name}.documents.npy") as path:
        path.write_bytes(starts.getvalue())
    return sum(lengths), stand_for


def _recipe(data: Data) -> dict[str, Any]:
    """What decides the tokens, besides the documents."""
    return {
        "format": FORMAT,
        "validation_bytes": data.corpus.validation_bytes,
        "near_duplicates_kept": data.corpus.near_duplicates,
        "tokenizer": _tokenizer(data.tokenizer),
        "tokenizers": tokenizers.__version__,
    }


def _tokenizer(spec: BPE | Unigram | TokenizerFile) -> dict[str, Any]:
    """`spec` as it decides the tokens: a file by its content, wherever it stands."""
    if not isinstance(spec, TokenizerFile):
        return spec.to_json()
    content = hashlib.sha256(text_of_file(spec).encode()).hexdigest()
    return {**spec.to_json(), "path": content}


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _insist(data: Data, fingerprint: str) -> None:
    if data.fingerprint_of_tokens not in ("", fingerprint):
        raise UserError(
            f"the run was made with the tokens {data.fingerprint_of_tokens}, and this corpus comes to "
            f"{fingerprint}: bring the corpus, Python and tokenizers it was made with, or clear "
            "Data.fingerprint_of_tokens"
        )


def _origin(known: Path) -> dict[str, Any] | None:
    """What `_make` said when it last read this very corpus; None when it has not, or the note is broken."""
    try:
        origin = json.loads(known.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return origin if isinstance(origin, dict) and "fingerprint" in origin else None


@contextlib.contextmanager
def _workplace(cache: Path) -> Iterator[Path]:
    """A folder inside `cache`, gone at the end; those that processes killed on this machine left go first."""
    prefix = f".prepare-{socket.gethostname()}-"
    for left in cache.glob(f"{prefix}*.tmp"):
        if not _alive(int(left.name.removeprefix(prefix).split("-")[0])):
            shutil.rmtree(left, ignore_errors=True)
    folder = cache / f"{prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _publish(made: Path, final: Path, aside: Path) -> None:
    """Move the finished folder to `final`, unless another process was faster; a damaged one goes `aside`."""
    if damage(final):
        with contextlib.suppress(FileNotFoundError):
            os.rename(final, aside)
    try:
        os.rename(made, final)
    except OSError:
        if damage(final):
            raise


def _silent(stage: str, done: float) -> None:
    """The progress that nobody hears of."""
