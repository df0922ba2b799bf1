"""Files elsewhere (s3://, gs://, ...): paths that fsspec reads, used as those of this machine are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from nachim.spec.error import UserError

STAMPS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
"""What stores call that which changes with a file."""


def remote(url: str) -> Any:
    """`url` as a path. Raises UserError when an extra, or the package of its protocol, is missing."""
    try:
        from upath import UPath
    except ImportError as error:
        raise UserError(f"{url} needs an extra: pip install 'nachim[remote]'") from error
    try:
        path = UPath(url)
        path.fs  # noqa: B018  only now the package that knows the protocol is looked for
        return path
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {url}: {error}") from error


def listed(root: Any) -> list[Any]:
    """The files under a remote folder by relative path; hidden ones are passed over. One listing asks for all."""
    base = root.path.rstrip("/")
    names = [found[len(base) :].lstrip("/") for found in root.fs.find(root.path)]
    return [root / name for name in sorted(names) if not any(part.startswith(".") for part in name.split("/"))]


def stamp(path: Path) -> tuple[int, int]:
    """Size and modification time of a file: as long as they stay, so does its content.

    Elsewhere a hash of what the store says of the version stands for the time; a link that leads nowhere has its own.
    """
    try:
        stat: Any = path.stat()
    except OSError:
        stat = path.lstat()
    if stat.st_mtime_ns:
        return stat.st_size, stat.st_mtime_ns
    told = {key: str(value) for key, value in getattr(stat, "info", {}).items() if key in STAMPS}
    return stat.st_size, int.from_bytes(hashlib.sha256(repr(sorted(told.items())).encode()).digest()[:6])
