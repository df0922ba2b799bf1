"""Whose a folder is: of the one question that was asked in it first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nachim.spec import Part, UserError, diff


def claim(path: Path, question: Part, what: str = "study", **free: object) -> None:
    """Make the folder of `path`, where its question is written, that of `question`.

    Fields in `free`, by name with the values they now have, may differ from those written. Raises UserError when the
    folder holds another `what`.
    """
    if path.exists():
        written = type(question).load(path)
        if (found := replace(written, **free)) != question:
            changes = "; ".join(str(change) for change in diff(found, question))
            raise UserError(f"{path.parent} holds another {what} ({changes}): choose another --out, or remove it")
        if written == question:
            return
    question.save(path)
