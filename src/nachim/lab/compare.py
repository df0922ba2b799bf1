"""Ladders as a comparison meets them: a table, a study's folder, or a folder of finished runs."""

from __future__ import annotations

from pathlib import Path

from nachim.law.observe import Observations, read
from nachim.spec import Run, UserError


def open_ladder(path: Path) -> Observations:
    """The runs at `path`: a table (CSV or parquet), a study's folder, or a folder of finished runs.

    Raises UserError when there is none of these.
    """
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"there is no {path}: give a table of runs, a study's folder or a folder of finished runs")
        return read(path)
    if (path / "observations.csv").exists():
        return read(path / "observations.csv")
    from nachim.lab.store import table_of
    from nachim.lab.work import result_of

    root = path / "ladder" if (path / "ladder").is_dir() else path
    folders = sorted(each.parent for each in root.glob("*/result.json") if (each.parent / "run.json").exists())
    if not folders:
        raise UserError(f"{path} holds no ladder: neither observations.csv nor folders of finished runs")
    return table_of([(Run.load(folder / "run.json"), result_of(folder)) for folder in folders])
