"""Two runs held against each other: their recipes, their metrics step by step, and their checkpoints bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nachim.model import build
from nachim.model.weights import CHECKPOINT, WEIGHTS, path_at
from nachim.spec import Difference, Part, Run, UserError, diff
from nachim.train import checkpoint
from nachim.train.optimizer import build_optimizer

BY_THE_CLOCK = ("seconds",)
"""Columns of the metrics that no two runs share."""
ABSENT = "absent"


@dataclass(frozen=True)
class Gap:
    """The first place in which two runs differ after `step` steps: a column of metrics, or a tensor of a checkpoint.

    `one` and `other` are the two values, for a tensor its shape and precision where these differ. Of tensors of one
    kind `largest` is the largest absolute difference, None where one is not finite, and `share` that of the elements
    which are not the same bits.
    """

    what: Literal["metrics", "checkpoint"]
    step: int
    name: str
    one: Any = None
    other: Any = None
    largest: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What sets two runs apart: fields of their recipes, and the first gap in metrics and in checkpoints.

    `steps` is the last of each run's metrics, `checkpoints` the steps whose checkpoints both hold.
    """

    recipe: tuple[Difference, ...]
    steps: tuple[int, int]
    checkpoints: tuple[int, ...]
    metrics: Gap | None
    tensor: Gap | None

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return not self.recipe and self.first is None

    @property
    def first(self) -> Gap | None:
        """The earlier gap: a step's metrics are of what was there before its weights changed."""
        found = [gap for gap in (self.metrics, self.tensor) if gap is not None]
        return min(found, key=lambda gap: gap.step, default=None)


def compare_runs(one: Path, other: Path) -> Comparison:
    """Hold the runs in two folders against each other.

    Raises UserError when a folder holds no run, a file cannot be read, or nothing differs in what both have and they
    share no checkpoint: then nobody can say whether they are the same.
    """
    specs = tuple(_spec(folder) for folder in (one, other))
    rows = tuple(_rows(folder / "metrics.parquet") for folder in (one, other))
    shared = tuple(sorted(set(_steps(one)) & set(_steps(other))))
    found = Comparison(
        recipe=tuple(diff(*specs)),
        steps=tuple(max(table, default=0) for table in rows),
        checkpoints=shared,
        metrics=_first_row(*rows),
        tensor=_first_tensor(one, other, shared, specs),
    )
    if found.identical and not shared:
        raise UserError(f"{one} and {other} share no checkpoint: train both to the same step, or keep the same steps")
    return found


def _spec(folder: Path) -> Part:
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} holds no run: `nachim train` makes such a folder, with a run.json")
    return Part.load(folder / "run.json")


def _steps(folder: Path) -> list[int]:
    return checkpoint.steps(folder / CHECKPOINT)


def _rows(path: Path) -> dict[int, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        return {row["step"]: row for row in pq.read_table(path).to_pylist()}
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _first_row(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> Gap | None:
    """The first step that not both took, or whose columns differ. A run may begin with another's first steps."""
    begin = max(min(one, default=0), min(other, default=0))
    for step in sorted(step for step in one.keys() | other.keys() if step >= begin):
        if step not in one or step not in other:
            there = [ABSENT if step not in rows else "taken" for rows in (one, other)]
            return Gap("metrics", step, "step", *there)
        for name in one[step] | other[step]:
            a, b = one[step].get(name), other[step].get(name)
            if name not in BY_THE_CLOCK and a != b and not (_is_nan(a) and _is_nan(b)):
                return Gap("metrics", step, name, a, b, abs(a - b) if None not in (a, b) else None)
    return None


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _first_tensor(one: Path, other: Path, steps: tuple[int, ...], specs: tuple[Part, ...]) -> Gap | None:
    """The first tensor of the first checkpoint: weights before the optimizer's state, each in the order of names."""
    reads: tuple[Callable[[Path, Part], Mapping[str, Any]], ...] = (_weights, _state)
    for step in steps:
        paths = [path_at(folder / CHECKPOINT, step) for folder in (one, other)]
        for read in reads:
            a, b = (read(path, spec) for path, spec in zip(paths, specs, strict=True))
            for name in sorted(a.keys() | b.keys()):
                gap = _between(step, name, a.get(name, ABSENT), b.get(name, ABSENT))
                if gap:
                    return gap
    return None


def _between(step: int, name: str, one: Any, other: Any) -> Gap | None:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        same = type(one) is type(other) and one == other
        return None if same else Gap("checkpoint", step, name, _kind(one), _kind(other))
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return Gap("checkpoint", step, name, _kind(one), _kind(other))
    bytes_of = [
        tensor.contiguous().view(-1).view(torch.uint8).view(-1, tensor.element_size()) for tensor in (one, other)
    ]
    differ = (bytes_of[0] != bytes_of[1]).any(1)
    if not differ.any():
        return None
    largest = (one.double() - other.double()).abs().max().item()
    share = differ.double().mean().item()
    return Gap("checkpoint", step, name, largest=largest if math.isfinite(largest) else None, share=share)


def _kind(value: Any) -> Any:
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else value


class _Weights(Mapping[str, Tensor]):
    """The weights of a checkpoint, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.file = safe_open(path, "pt")
        self.names = list(self.file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _weights(path: Path, spec: Part) -> Mapping[str, Tensor]:
    try:
        return _Weights(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / WEIGHTS} cannot be read: {error}") from error


def _state(path: Path, spec: Part) -> dict[str, Any]:
    """The optimizer's state by member, weight and kind; empty where a checkpoint is of weights alone."""
    folder = path / "state"
    if not folder.exists():
        return {}
    try:
        kinds = FileSystemReader(folder).read_metadata().state_dict_metadata
        state = {
            name: torch.empty(kind.size, dtype=kind.properties.dtype)
            if isinstance(kind, TensorStorageMetadata)
            else None
            for name, kind in kinds.items()
            if name.startswith("optimizer.")
        }
        dcp.load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    except (Exception, CheckpointException) as error:  # its index is a pickle: noise in it may raise anything
        raise UserError(f"{folder} cannot be read: {(str(error).strip().splitlines() or [''])[-1]}") from error
    owners = _owners(spec) if isinstance(spec, Run) else {}
    return {_named(name, owners): value for name, value in state.items()}


def _named(name: str, owners: dict[tuple[str, str], str]) -> str:
    """`optimizer.adamw.state.3.exp_avg` as "adamw exp_avg of" the weight that is number 3 there."""
    member, *rest = name.split(".")[1:]
    if len(rest) == 3 and rest[0] == "state" and (member, rest[1]) in owners:
        return f"{member} {rest[2]} of {owners[member, rest[1]]}"
    return ".".join([member, *rest])


def _owners(run: Run) -> dict[tuple[str, str], str]:
    """Names of weights by the optimizer's member and their number there, which torch's state goes by."""
    with torch.device("meta"):
        model = build(run.model, run.model.d_model)
    weights = {name: torch.zeros(()).expand(weight.shape) for name, weight in model.named_parameters()}
    names = {id(weight): name for name, weight in weights.items()}
    found = {}
    for member, optimizer in build_optimizer(run.train.optimizer, weights, run.model).members.items():
        mine = [weight for group in optimizer.param_groups for weight in group["params"]]
        found |= {(member, str(number)): names[id(weight)] for number, weight in enumerate(mine)}
    return found
