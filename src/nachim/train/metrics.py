"""The metrics of a run: one row a step, kept as parquet beside its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
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
        "noise_tokens": pa.float64(),
        "skipped": pa.int64(),
        "passed_tokens": pa.int64(),
        "penalty": pa.float64(),
    }
)
"""`step` counts steps taken, `tokens` those seen; `loss` is nat/token before the update, `seconds` of the step;
`validation_loss` (nat/token) and `bpb` only on the steps after which they were measured; `imbalance`, the largest load
of an expert over its layer's mean in the worst layer, only where there are experts; `noise_tokens`, the gradient noise
scale, only where a batch is split into micro-batches. A step that fp16 skipped has an infinite `grad_norm`.
`skipped` is 1 where the guard left the weights as they were; `passed_tokens` counts those that a roll-back passed over
before the step. `penalty` is what holds weights near others, in nat/token, beside the loss. What is measured of several
texts apart has columns of its own, `validation_loss/NAME` and `bpb/NAME`."""


CHUNKS = 64
"""Pieces of a table beyond which they are made one."""


class Metrics:
    """Rows in memory: those that a table holds already, and those added since."""

    def __init__(self, past: pa.Table | None = None) -> None:
        """Take up `past`, the rows of an earlier sitting."""
        self.past = SCHEMA.empty_table() if past is None else past
        self.rows: list[dict[str, float | None]] = []

    def add(self, **row: float | None) -> None:
        """Append one row."""
        self.rows.append(row)

    def table(self) -> pa.Table:
        """All rows, as a value that later ones do not change."""
        if self.rows:
            apart = sorted({name for row in self.rows for name in row.keys() - set(SCHEMA.names)})
            schema = pa.schema([*SCHEMA, *((name, pa.float64()) for name in apart)])
            rows = pa.Table.from_pylist(self.rows, schema=schema)
            self.past = pa.concat_tables([self.past, rows], promote_options="default")
            self.rows = []
        if self.past["step"].num_chunks > CHUNKS:
            self.past = self.past.combine_chunks()
        return self.past

    def last_validation(self) -> dict[str, Any]:
        """The newest measured validation, by name, and what was measured apart under `sources`; empty without one."""
        for row in reversed(self._measured()):
            found: dict[str, Any] = {"loss": row["validation_loss"]}
            if row["bpb"] is not None:
                found["bpb"] = row["bpb"]
            names = [name.partition("/")[2] for name in row if name.startswith("bpb/")]
            if names:
                apart = {name: {"loss": row[f"validation_loss/{name}"], "bpb": row[f"bpb/{name}"]} for name in names}
                found["sources"] = apart
            return found
        return {}

    def best_step(self) -> int | None:
        """The first step with the lowest validation loss; None when none was measured."""
        return min(self._measured(), key=lambda row: row["validation_loss"], default={"step": None})["step"]

    def _measured(self) -> list[dict[str, Any]]:
        table = self.table()
        return table.filter(pc.is_valid(table["validation_loss"])).to_pylist()


def write(table: pa.Table, path: Path) -> None:
    """Write the rows of a run atomically. Raises UserError when the disk refuses."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read(path: Path, steps: int) -> pa.Table:
    """The rows of the first `steps` steps in `path`, none where it is missing. Raises UserError when it is broken."""
    if not steps or not path.exists():
        return SCHEMA.empty_table()
    try:
        found = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove the run's folder to train it afresh") from error
    rows = pa.concat_tables([SCHEMA.empty_table(), found], promote_options="default")
    return rows.filter(pc.less_equal(rows["step"], steps))
