"""Which documents are held out: by content hash, so that their side depends on nothing but the corpus."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nachim.data.spool import Spool
from nachim.spec.data import Corpus
from nachim.spec.error import UserError

# A held-out document is at most a quarter of validation_bytes, so validation overshoots by at most a quarter.
LARGEST_SHARE = 4
# Validation may take at most a fifth of the corpus.
LEAST_CORPUS = 5


def by_content(spool: Spool, validation_bytes: int) -> npt.NDArray[np.int64]:
    """Every document number: those too large to hold out first, then by descending content hash.

    Validation is taken from the end, so deduplication in this order holds it against the whole of train.
    """
    held_out = spool.sizes * LARGEST_SHARE <= validation_bytes
    keys = [~spool.digests[:, word] for word in (3, 2, 1, 0)]
    return np.lexsort([*keys, held_out])


def split(
    spool: Spool, order: npt.NDArray[np.int64], corpus: Corpus
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`order` cut into (train, validation): documents are held out from its end on until they suffice.

    Raises UserError when the corpus, or the part of it that may be held out, is too small.
    """
    wanted, name = corpus.validation_bytes, f"{type(corpus).__name__}.validation_bytes"
    sizes = spool.sizes[order]
    total = int(sizes.sum())
    if total < LEAST_CORPUS * wanted:
        raise UserError(
            f"the corpus holds {total:,} bytes without its duplicates, and {name} is {wanted:,}, more than a "
            f"fifth of that; set it to at most {total // LEAST_CORPUS}, or bring more text"
        )
    small = sizes * LARGEST_SHARE <= wanted
    if sizes[small].sum() < wanted:
        raise UserError(
            f"only {int(sizes[small].sum()):,} bytes stand in documents small enough to hold out (at most a "
            f"quarter of {name}, which is {wanted:,}); set it higher, or cut the documents into smaller ones"
        )
    # The documents that may be held out stand at the end of `order`, and suffice.
    count = int(np.searchsorted(np.cumsum(sizes[::-1]), wanted)) + 1
    return order[:-count], order[-count:]
