"""A corpus to its documents: the standard library, files, or a Hugging Face data set."""

from __future__ import annotations

import functools
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nachim.data.read import (
    JSON_LINES,
    PARQUET,
    Report,
    read_json_lines,
    read_parquet,
    read_pieces,
    read_tables,
    read_text,
)
from nachim.data.remote import listed, remote, stamp
from nachim.data.warc import WARC, read_warc
from nachim.spec.data import Corpus, Files, HuggingFace, Stdlib
from nachim.spec.error import UserError, nearest

NOT_STDLIB = ("site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True)
class Source:
    """An opened corpus: a `name` for people, the `files` it comes from (if any), and how to `read` its documents.

    Files are named from `base`; `pieces` says that the only one is cut into documents. Where there may be no files,
    `tables` gives Arrow tables with the text, `id` and further columns asked for.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[Report], Iterator[bytes]]
    base: Path = Path()
    pieces: bool = False
    tables: Callable[[Sequence[str]], Iterator[Any]] | None = None

    def documents(self, report: Report) -> Iterator[bytes]:
        """Every document in a fixed order, as non-empty valid UTF-8; `report` counts them and the rest.

        Raises UserError when a file lacks the text column throughout, and when there is no document at all.
        """
        yield from self.read(report)
        if not report.documents:
            raise UserError(f"no document in {self.name}" + "".join(f"; {note}" for note in report.notes()))

    def listing(self) -> list[tuple[str, int, int]]:
        """Path, size and modification time of every file: as long as it stays, so do the documents."""
        return [(str(path), *stamp(path)) for path in self.files]


@functools.singledispatch
def open_source(corpus: Corpus) -> Source:
    """Find what `corpus` names, and read none of it yet.

    Raises UserError when the path, the data set, its text column or the `hf` extra is missing.
    """
    raise TypeError(f"no reader for {type(corpus).__name__}")


@open_source.register
def _stdlib(corpus: Stdlib) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in _walk(root, NOT_STDLIB) if path.suffix == ".py"]
    if not files:
        raise UserError(f"this Python keeps no .py files under {root}; name a corpus, such as Files(path=...)")
    read = functools.partial(_read_files, files, root, "")
    return Source(f"python-{platform.python_version()}", tuple(files), read, root)


@open_source.register
def _files(corpus: Files) -> Source:
    root = remote(corpus.path) if "://" in corpus.path else Path(corpus.path).expanduser()
    if not root.exists():
        raise UserError(f"Files.path: no such file or folder: {root}")
    files = [root] if root.is_file() else listed(root) if "://" in corpus.path else _walk(root, follow=True)
    if not files:
        raise UserError(f"Files.path: no file in {root}")
    if len(files) == 1 and not files[0].name.endswith(JSON_LINES + PARQUET + WARC):
        read = functools.partial(read_pieces, files[0], root.name)
        return Source(str(root), (files[0],), read, files[0].parent, pieces=True)
    base = root.parent if root.is_file() else root
    return Source(str(root), tuple(files), functools.partial(_read_files, files, base, corpus.text_column), base)


@open_source.register
def _hugging_face(corpus: HuggingFace) -> Source:
    rows = _load_hugging_face(corpus)
    name = "/".join(part for part in (corpus.name, corpus.config, corpus.split) if part)
    column = corpus.text_column
    if column not in rows.column_names:
        raise UserError(f"{name} has no text column {column!r}{nearest(column, rows.column_names)}")
    files = tuple(Path(file["filename"]) for file in rows.cache_files)

    def tables(columns: Sequence[str]) -> Iterator[Any]:
        wanted = [one for one in dict.fromkeys((column, *columns)) if one in rows.column_names]
        return rows.select_columns(wanted).with_format("arrow").iter(batch_size=1024)

    def read(report: Report) -> Iterator[bytes]:
        return read_tables(tables(()), name, column, report)

    return Source(name, files, read, Path("/"), tables=lambda columns: tables(("id", *columns)))


def _load_hugging_face(corpus: HuggingFace) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"the Hugging Face data set {corpus.name!r} needs an extra: pip install 'nachim[hf]'"
        ) from error
    try:
        return datasets.load_dataset(corpus.name, corpus.config, split=corpus.split)
    # A data set's loader may fail with anything: of the library, of the network, or of its own.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot load the Hugging Face data set {corpus.name!r}: {reason}") from error


def _walk(root: Path, without: Iterable[str] = (), follow: bool = False) -> list[Path]:
    """The files under `root` by relative path; hidden ones, and the folders `without`, are passed over.

    With `follow` links lead on, to every folder once; a link that leads nowhere is listed, for reading it to say so.
    """
    found, seen = [], set[str]()
    for folder, folders, names in os.walk(root, followlinks=follow):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in without and not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    files = (path for path in found if path.is_file() or (follow and path.is_symlink() and not path.exists()))
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _read_files(files: Iterable[Path], root: Path, column: str, report: Report) -> Iterator[bytes]:
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.name.endswith(JSON_LINES):
            yield from read_json_lines(path, name, column, report)
        elif path.name.endswith(PARQUET):
            yield from read_parquet(path, name, column, report)
        elif path.name.endswith(WARC):
            yield from (page.text for page in read_warc(path, name, report))
        else:
            yield from read_text(path, name, report)
