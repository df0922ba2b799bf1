"""Seconds of a training step as a sum of works, each at a rate that was measured on this machine.

One roof over FLOP and bytes does not describe small models: their matrices are thin, and norms, products and the
softmax over the vocabulary take as long as the matrix multiplications. Here every kind of work has its own rate, and a
step is the sum, because eager kernels run one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nachim.budget.layout import Job
from nachim.spec import Decoder, Part, UserError
from nachim.spec.cost import Layer, Matrix

TERMS = ("layers", "matmul", "mixing", "values", "logits", "params", "orthogonal")
NEWTON_SCHULZ = 5
"""Iterations of Muon's orthogonalisation (Jordan et al. 2024)."""
MUON_LAYERS = 1.56
"""Layers that call as many operators in a step as Muon does: torch's profiler counts 385 a layer of the family in fp32,
forward and backward, and 600 for Muon whatever the depth, which takes matrices of one shape together."""


@dataclass(frozen=True, kw_only=True)
class StepCost(Part):
    """Seconds that a unit of each work costs on one device: `fit_step_cost` finds them, `work` says what the units are.

    `threads` took part in each step that was measured, of which there were `points`; `error` is the median of the
    relative errors with which the sum gives those points back.
    """

    threads: int
    points: int
    error: float
    layers: float
    matmul: float
    mixing: float
    values: float
    logits: float
    params: float
    orthogonal: float

    def check(self) -> None:
        self.require_positive("threads", "points")
        for name in ("error", *TERMS):
            if getattr(self, name) < 0:
                self.refuse(name, f"is {getattr(self, name)}; it must not be negative")

    def seconds(self, job: Job) -> float:
        """Seconds of one optimizer step of `job`."""
        return sum(getattr(self, name) * amount for name, amount in work(job).items())


def work(job: Job) -> dict[str, float]:
    """What one step of `job` does, by `TERMS`.

    `layers`: how often operators are called, a layer's being the unit; `matmul` and `mixing`: FLOP of the matrices and
    between tokens, three passes; `values` and `logits`: how many are kept for the backward pass; `params`: those the
    optimizer moves; `orthogonal`: FLOP of Muon's iteration.
    """
    model, tokens, muon = job.model, job.batch * job.seq_len, job.optimizer == "muon"
    return {
        "layers": sum(model.trained_kinds.values()) + MUON_LAYERS * muon,
        "matmul": tokens * (6 * model.trained_matmul_params + model.head_flops_per_token),
        "mixing": tokens * 3 * model.trained_mixing_flops(job.seq_len),
        "values": tokens
        * sum(times * block.share * _saved(block.layers, model) for block, times in model.trained_kinds.items()),
        "logits": float(tokens * model.vocab_size * model.passes),
        "params": float(model.params_total),
        "orthogonal": orthogonal_flops(model) if muon else 0.0,
    }


def _saved(layers: tuple[Layer, ...], model: Decoder) -> float:
    kept = [layer.saved(model.d_model) for layer in layers]
    return sum(saved.whole + saved.split for saved in kept)


def orthogonal_flops(model: Decoder) -> float:
    """FLOP that Muon's Newton-Schulz iteration takes in one step, over all matrices of the blocks.

    One of five iterations on m x n with m <= n multiplies m x n by n x m, m x m by m x m, and m x m by m x n:
    4 m^2 n + 2 m^3 (Jordan et al. 2024).
    """
    joining = 0.0 if model.mtp is None else model.mtp.depth * _newton_schulz(model.mtp.matrix(model.d_model))
    return joining + sum(
        times
        * sum(_newton_schulz(matrix) for layer in block.layers for matrix in stored(layer.matrices(model.d_model)))
        for block, times in model.trained_kinds.items()
    )


def _newton_schulz(matrix: Matrix) -> float:
    short, long = sorted((matrix.rows, matrix.columns))
    return matrix.count * NEWTON_SCHULZ * (4.0 * short * short * long + 2.0 * short**3)


def stored(matrices: Sequence[Matrix]) -> list[Matrix]:
    """`matrices` as modules store them: neighbours that read the same input, queries and keys, are one."""
    found: list[Matrix] = []
    for matrix in matrices:
        last = found[-1] if found else None
        if (
            last
            and last.rows == matrix.rows
            and last.split == matrix.split == "columns"
            and last.count == matrix.count == 1
        ):
            found[-1] = Matrix(matrix.rows, last.columns + matrix.columns, split="columns")
        else:
            found.append(matrix)
    return found


def fit_step_cost(points: Sequence[tuple[Job, float]], threads: int) -> StepCost:
    """The rates that come nearest to the measured `points` (job, seconds of a step): least squares of relative errors.

    No rate may be negative (Lawson and Hanson 1974); a work that the points do not tell from the others gets none.
    Raises UserError when there are fewer points than works.
    """
    import numpy as np
    from scipy.optimize import nnls

    if len(points) < len(TERMS):
        raise UserError(f"{len(points)} measured steps cannot fix {len(TERMS)} rates: measure at least {len(TERMS)}")
    works = [work(job) for job, _ in points]
    relative = np.array(
        [[done[name] / seconds for name in TERMS] for done, (_, seconds) in zip(works, points, strict=True)]
    )
    scale = relative.max(axis=0)
    scale[scale == 0] = 1
    found, _ = nnls(relative / scale, np.ones(len(points)))
    rates = found / scale
    return StepCost(
        threads=threads,
        points=len(points),
        error=float(np.median(np.abs(relative @ rates - 1))),
        **{name: float(rate) for name, rate in zip(TERMS, rates, strict=True)},
    )
