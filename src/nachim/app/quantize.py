"""The verb `nachim quantize`: a model's weights in few bits."""

from __future__ import annotations

import json as jsonlib
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Column, Table

from nachim.app.quantize_text import ROWS, Text, text_of
from nachim.app.view import TerminalView
from nachim.data.prepared import TOKENIZER
from nachim.spec import NF4, Int4, Int8, UserError
from nachim.spec.disk import new_folder
from nachim.spec.quantize import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from nachim.infer.folder import Loaded
    from nachim.model import DecoderModule
    from nachim.model.quantized.grid import Coded


@dataclass(frozen=True)
class How:
    """How weights are rounded, and what that is measured on."""

    group: int | None = None
    """Weights of a row that share a scale; by default 128 of int4 and 64 of nf4."""
    symmetric: bool = False
    """int4 without zeros: with --group 32 it is what q4_0 blocks of GGUF hold."""
    method: Literal["rtn", "gptq", "awq"] = "rtn"
    """Every weight rounded to nearest; GPTQ (arXiv 2210.17323) or AWQ (2306.00978), which look at what layers read."""
    data: str | None = None
    """Text to calibrate and measure on: `stdlib`, a file or folder, or `hf:NAME`. By default what the run was trained
    on, and for imported models the embedded corpus."""
    sequences: int = 128
    """Sequences of the train split that gptq and awq look at."""
    tokens: int = 16_384
    """Tokens of the validation split that bits per byte are measured on, before and after."""
    skip: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Matrices to keep as they are, by parts of their names: "ffn.down", "blocks.0"; may be given several times."""


def quantize(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    to: Literal["int8", "int4", "nf4"],
    how: Annotated[How, tyro.conf.arg(name="")] = How(),
    json: bool = False,
) -> int:
    """Write a model with the matrices of its blocks in few bits, and say what that costs.

    OUT opens like any run (`nachim generate`, `nachim serve`, nachim.load). In bfloat16 on a CPU, int8 and int4 are
    multiplied by as they are; otherwise a matrix is decoded for each product, which is slower. Embedding, head, norms,
    biases, routers and the up-projection of latent attention keep their precision.

    Example: nachim quantize runs/first runs/first-int4 --to int4 --method gptq

    Args:
        folder: A run, trained here or imported, or a Hugging Face checkpoint.
        out: The folder to write; it must be new or empty.
        to: The values of a weight: int8, int4, or the 16 levels of NF4.
        json: Print one JSON object instead of tables.
    """
    scheme = scheme_of(to, how)
    with TerminalView() as view:
        found = quantized(folder, out, scheme, how, view)
    if json:
        print(jsonlib.dumps(found))
    else:
        show(found, Console(highlight=False))
    return 0


def scheme_of(to: str, how: How) -> Scheme:
    """The scheme that options ask for. Raises UserError for one that has no such option."""
    given = {} if how.group is None else {"group": how.group}
    if to == "int8" and given:
        raise UserError("--group is for int4 and nf4: int8 has one scale a row")
    if to != "int4" and how.symmetric:
        raise UserError("--symmetric is for int4: the others are so always")
    if to == "int8":
        return Int8()
    return Int4(symmetric=how.symmetric, **given) if to == "int4" else NF4(**given)


def quantized(folder: Path, out: Path, scheme: Scheme, how: How, view: TerminalView) -> dict[str, Any]:
    """Write the folder; what was written and measured, as plain JSON values."""
    from nachim.infer.folder import opened
    from nachim.infer.quantize.rounding import chosen
    from nachim.model.quantized.store import TOLD, is_quantized

    for name in ("sequences", "tokens"):
        if getattr(how, name) < 1:
            raise UserError(f"--{name} is {getattr(how, name)}; it must be at least 1")
    if is_quantized(folder):
        raise UserError(f"{folder} is quantised already (it has {TOLD}): give the folder that it was made of")
    loaded = opened(folder, None)
    names = chosen(loaded.model, scheme, how.skip)
    with new_folder(out) as made:
        view.stage("reading the text")
        text = text_of(folder, loaded, how.data)
        if text is None and how.method != "rtn":
            raise UserError(f"{folder} has no {TOKENIZER}: --method {how.method} needs text to look at, rtn does not")
        return {"out": str(out), **_made(made, Job(folder, loaded, names, scheme, how, text, view))}


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be quantised, and how."""

    folder: Path
    loaded: Loaded
    names: tuple[str, ...]
    scheme: Scheme
    how: How
    text: Text | None
    view: TerminalView

    def bpb(self, model: DecoderModule) -> dict[str, float] | None:
        """`loss` and `bpb` of a model on held-out text."""
        return None if self.text is None else self.text.measured(model, self.how.tokens)

    def coded(self) -> dict[str, list[Coded]]:
        """The matrices in few bits; the model's other weights are what belongs to them from now on."""
        from nachim.infer.quantize.method import quantised
        from nachim.infer.quantize.rounding import rounded

        model, how = self.loaded.model, self.how
        if how.method == "rtn" or self.text is None:
            return rounded(model, self.names, self.scheme)
        ids_NT = self.text.calibration(how.sequences)
        return quantised(
            model,
            self.names,
            self.scheme,
            how.method,
            ids_NT,
            lambda done, most: self.view.share("blocks", done / most),
        )


def _made(made: Path, job: Job) -> dict[str, Any]:
    """Code the weights and write them into `made`; what that is, and what it costs."""
    from nachim.infer.quantize.rounding import bytes_by_layer
    from nachim.model.decoder import tensors
    from nachim.model.load import load
    from nachim.model.quantized import store

    model, names, view = job.loaded.model, job.names, job.view
    dtypes = {name: tensor.dtype for name, tensor in tensors(model).items()}
    sizes, kept_bytes = bytes_by_layer(names, job.scheme, model), _kept_bytes(model, names)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    view.stage("measuring the model as it is")
    before, streams = job.bpb(model), streams_of(model, job.text)
    view.stage(f"rounding {len(names)} matrices")
    coded = job.coded()
    kept = {name: tensor.detach().to(dtypes[name]) for name, tensor in tensors(model).items() if name not in coded}
    told = store.write(made, job.scheme, job.how.method, _source(job.folder), coded, kept)
    _companions(job.folder, made, job.loaded)
    view.stage("measuring the quantised model")
    again = load(made)
    return {
        "scheme": job.scheme.to_json(),
        "method": job.how.method,
        "weights": told.weights,
        "source": told.source,
        "matrices": len(names),
        "bytes": {
            "matrices_before": sum(size for size, _ in sizes.values()),
            "matrices_after": sum(size for _, size in sizes.values()),
            "kept": kept_bytes,
            "file": (made / store.WEIGHTS).stat().st_size,
        },
        "before": before,
        "after": job.bpb(again),
        "errors_on": "tokens drawn evenly" if job.text is None else "validation text",
        "layers": _layers(names, sizes, errors(streams, streams_of(again, job.text))),
    }


def _kept_bytes(model: DecoderModule, names: tuple[str, ...]) -> int:
    from nachim.model.decoder import tensors

    return sum(tensor.nbytes for name, tensor in tensors(model).items() if name not in names)


def streams_of(model: DecoderModule, text: Text | None) -> list[Tensor]:
    """What each block gives for a few sequences: held-out ones, or tokens drawn evenly where there is no text."""
    import torch

    drawn = torch.randint(model.spec.vocab_size, (ROWS, 64), generator=torch.Generator().manual_seed(0))
    ids_BT = drawn if text is None else torch.from_numpy(text.held_out())
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, inputs, y_BTD: found.append(y_BTD)) for block in model.blocks]
    with torch.inference_mode():
        model.stream(ids_BT)
    for hook in hooks:
        hook.remove()
    return found


def errors(before: list[Tensor], after: list[Tensor]) -> list[float]:
    """How far the stream after each block moved, as a share of its size."""
    return [((new - old).norm() / old.norm()).item() for old, new in zip(before, after, strict=True)]


def _layers(names: tuple[str, ...], sizes: Any, moved: list[float]) -> list[dict[str, Any]]:
    each: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name in names:
        row = each[int(name.split(".")[1])]
        row[:] = [row[0] + 1, row[1] + sizes[name][0], row[2] + sizes[name][1]]
    return [
        dict(zip(("layer", "matrices", "bytes_before", "bytes_after", "error"), (n, *each[n], error), strict=True))
        for n, error in enumerate(moved)
    ]


def _source(folder: Path) -> str:
    """SHA-256 of the weights that a model is read from."""
    from nachim.model.load import RUN
    from nachim.model.quantized.store import sha256
    from nachim.model.weights import fingerprint

    return fingerprint(folder) if (folder / RUN).is_file() else sha256(*sorted(folder.glob("*.safetensors")))


def _companions(folder: Path, made: Path, loaded: Loaded) -> None:
    """What stands beside the weights: run.json, tokenizer, config, as `nachim import` lays them out."""
    from nachim.model.hf.checkpoint import CONFIG, ORIGIN, carry
    from nachim.model.load import RUN

    if (folder / RUN).is_file():
        for name in (RUN, TOKENIZER):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, made / name)
        if (folder / ORIGIN).is_dir():
            shutil.copytree(folder / ORIGIN, made / ORIGIN)
        return
    loaded.model.spec.save(made / RUN)
    (made / ORIGIN).mkdir()
    shutil.copyfile(folder / CONFIG, made / ORIGIN / CONFIG)
    carry(folder, made / ORIGIN)


def show(found: dict[str, Any], console: Console) -> None:
    """The tables that a person reads."""
    size = found["bytes"]
    right = [Column(name, justify="right") for name in ("matrices", "bytes before", "bytes after", "stream moved")]
    table = Table("layer", *right, title=f"by layer; the stream on {found['errors_on']}")
    for row in found["layers"]:
        table.add_row(
            str(row["layer"]),
            str(row["matrices"]),
            f"{row['bytes_before']:,}",
            f"{row['bytes_after']:,}",
            f"{row['error']:.2%}",
        )
    console.print(table)
    lines = [
        f"{found['matrices']} matrices: {size['matrices_before']:,} bytes, now {size['matrices_after']:,}",
        f"kept as they are (embedding, head, norms, biases, what was skipped): {size['kept']:,} bytes",
        f"{found['out']}: opens like any run; --dtype bfloat16 multiplies by the codes as they are",
    ]
    if found["before"] is not None:
        old, new = found["before"]["bpb"], found["after"]["bpb"]
        lines.insert(2, f"bits per byte of held-out text: {old:.4f}, now {new:.4f} ({new / old - 1:+.2%})")
    console.print("\n".join(lines), soft_wrap=True)
