"""The file of a run's statistics: one number a row, so that any model fits."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nachim.spec import UserError
from nachim.spec.disk import replacing

STATISTICS = "statistics.parquet"
SCHEMA = pa.schema({"step": pa.int64(), "quantity": pa.string(), "name": pa.string(), "value": pa.float64()})
QUANTITIES = {
    "weight": "norm of a tensor before the step",
    "gradient": "norm of its gradient before clipping",
    "update": "norm of what the step changed, over the tensor's own norm",
    "activation": "root mean square of the residual stream after a block, or of what its attention or ffn adds to it",
    "score": "largest scaled q.k of any head, before caps and biases, among tokens that see each other",
    "load": "share of the tokens' choices that fell on an expert, times the number of experts: 1 is even",
}
"""What `quantity` says, and of what: `name` is a tensor's, a module's, or a router's with the expert's number."""


def write(table: pa.Table, path: Path) -> None:
    """Write a run's samples atomically, each page with its checksum. Raises UserError when the disk refuses."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def read(path: Path, steps: int | None = None) -> pa.Table:
    """The samples in `path`, of the first `steps` steps where that is given; none where it is missing.

    Raises UserError when they cannot be read.
    """
    if not path.exists():
        return SCHEMA.empty_table()
    try:
        found = pq.read_table(path, page_checksum_verification=True).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error
    return found if steps is None else found.filter(pc.less_equal(found["step"], steps))
