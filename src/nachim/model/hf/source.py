"""Tensors in safetensors files: found by name without reading them, one file or many."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, contiguous_format

from nachim.spec import UserError
from nachim.spec.disk import full_disk_is_an_error, read_json, write_text

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""What the Hub's own tools put into one file at most."""

REFUSED = (SafetensorError, OSError, ValueError)


class Source(Mapping[str, Tensor]):
    """The tensors of some files by name; each is read when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._at: dict[str, tuple[Any, str]] = {}
        for path in files:
            file = _opened(path)
            self._at.update({name: (file, name) for name in file.keys()})  # noqa: SIM118 - it is no mapping

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._at[name]
        return file.get_tensor(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the file's header."""
        file, stored = self._at[name]
        return tuple(file.get_slice(stored).get_shape())

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor."""
        return self[name].nbytes

    def renamed(self, new: Callable[[str], str]) -> None:
        """Give every tensor the name `new` has for it."""
        self._at = {new(name): at for name, at in self._at.items()}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except REFUSED as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): copy or download it again") from error


def tensors_in(folder: Path) -> Source:
    """The tensors of a Hugging Face checkpoint. Raises UserError where its files are missing, broken or not safe."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise UserError(f"{folder / INDEX} has no 'weight_map': copy or download it again")
        files = sorted(set(named.values()))
        if lost := [name for name in files if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks {_few(lost)}, which its index names: copy or download the rest")
        source = Source([folder / name for name in files])
        if lost := [name for name in named if name not in source]:
            raise UserError(f"{folder} lacks tensors that its index names: {_few(lost)}")
        return source
    if (folder / SINGLE).is_file():
        return Source([folder / SINGLE])
    if found := sorted(path.name for path in folder.glob("*.bin")):
        raise UserError(f"{folder} has its weights as pickled code ({found[0]}); convert them to safetensors first")
    raise UserError(f"{folder} has no {SINGLE} and no {INDEX}")


def check(source: Source, wanted: Mapping[str, tuple[int, ...]], where: str, held: Callable[[str], bool]) -> None:
    """Raise UserError that lists missing, extra and misshapen tensors. Only names for which `held` are extra."""
    missing = [name for name in wanted if name not in source]
    extra = [name for name in source if name not in wanted and held(name)]
    wrong = [
        f"{name} is {_shape(source.shape(name))} in place of {_shape(shape)}"
        for name, shape in wanted.items()
        if name in source and source.shape(name) != tuple(shape)
    ]
    kinds = (("missing", missing), ("extra", extra), ("misshapen", wrong))
    faults = [f"{len(found)} {kind} ({_few(found)})" for kind, found in kinds if found]
    if faults:
        raise UserError(f"{where} does not hold the tensors of its config, nothing was loaded: {'; '.join(faults)}")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _few(names: Sequence[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


Piece = tuple[int, Callable[[], dict[str, Tensor]]]
"""Bytes of some tensors that stand in one file together, and what makes them."""


def write_tensors(folder: Path, pieces: Sequence[Piece], shard_bytes: int = SHARD_BYTES) -> None:
    """Write the tensors of `pieces` as the Hub does: one file, or shards of at most `shard_bytes` and their index."""
    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(size for size, _ in shards[-1]) + piece[0] > shard_bytes:
            shards.append([])
        shards[-1].append(piece)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: own(tensor) for _, make in shard for key, tensor in make().items()}
        save(tensors, folder / name)
        index.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        total = sum(size for size, _ in pieces)
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}, indent=2)
        write_text(folder / INDEX, text + "\n")


def own(tensor: Tensor) -> Tensor:
    """A copy that shares its memory with no other tensor."""
    return tensor.clone(memory_format=contiguous_format)


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file. Raises UserError where the disk refuses."""
    try:
        with full_disk_is_an_error(path):
            save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}; is the disk full?") from error
