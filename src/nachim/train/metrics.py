"""The metrics of a run: one row a step, kept as parquet beside its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nachim.spec import UserError
from nachim.spec.disk import replacing

SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "tokens": pa.int64(),
        "loss": pa.float64(),
        "lr": pa.float64(),
        "grad_norm": pa.float64(),
        "seconds": pa.float64(),
        "validation_loss": pa.float64(),
        "bpb": pa.float64(),
        "imbalance": pa.float64(),
    }
)
"""`step` counts steps taken, `tokens` those seen; `loss` is nat/token before the update, `seconds` of the step;
`validation_loss` (nat/token) and `bpb` only on the steps after which they were measured; `imbalance`, the largest load
of an expert over its layer's mean in the worst layer, only where there are experts."""


class Metrics:
    """Rows in memory, written whole and atomically at each `flush`."""

    def __init__(self, path: Path, steps: int) -> None:
        """Take up the rows of the first `steps` steps of an earlier sitting, if `path` holds any.

        Raises UserError when `path` cannot be read.
        """
        self.path = path
        rows = _read(path) if steps and path.exists() else []
        self.rows: list[dict[str, float | None]] = [row for row in rows if row["step"] <= steps]

    def add(self, **row: float | None) -> None:
        """Append one row."""
        self.rows.append(row)

    def flush(self) -> None:
        """Write all rows to disk."""
        with replacing(self.path) as temporary:
            pq.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA), temporary)

    def last_validation(self) -> dict[str, float]:
        """The newest measured validation, by name; empty when none was measured."""
        for row in reversed(self.rows):
            if row.get("validation_loss") is not None:
                return {"loss": row["validation_loss"], **({} if row["bpb"] is None else {"bpb": row["bpb"]})}
        return {}


def _read(path: Path) -> list[dict[str, float | None]]:
    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read ({error}): remove the run's folder to train it afresh") from error
