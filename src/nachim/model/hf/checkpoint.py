"""A Hugging Face directory read and written: config, tensors, and the files that are carried along."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nachim.model.build import NotDrawn, build
from nachim.model.decoder import tensors
from nachim.model.hf.config import Config
from nachim.model.hf.families import FAMILIES, family_of
from nachim.model.hf.family import Family
from nachim.model.hf.fold import Folded
from nachim.model.hf.rules import Rule
from nachim.model.hf.source import Source, check, tensors_in, write_tensors
from nachim.spec import MLA, MTP, Decoder, Mixer, MoE, NoPosition, Pattern, Position, UserError, diff
from nachim.spec.disk import read_json, write_text
from nachim.spec.model import Block

CONFIG = "config.json"
ORIGIN = "huggingface"
"""The folder, inside one of our runs, of the config and files that an imported model came with."""
CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "*.model",
    "LICENSE*",
)
"""Files that say nothing of the weights and are kept as they are, bytes unchanged."""


NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Said in a new config: unsaid, a family's own numbers would be taken, which may be beyond the vocabulary."""


UNLIKE = (AttributeError, LookupError, StopIteration, TypeError, ValueError)
"""What a family's `to_config` meets in parts that are of other kinds than its own: it need not look out for them."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Hugging Face checkpoint whose tensors were found whole, and have not been read yet."""

    folder: Path
    decoder: Decoder
    family: Family
    config: Config
    source: Source
    rules: tuple[Rule, ...]

    def weights(self) -> dict[str, Tensor]:
        """Every tensor under the names of our decoder, in the precision that it is stored in."""
        found: dict[str, Tensor] = {}
        for one in (one for one in self.rules if not one.copy):
            theirs = tuple(self.source[name] for name in one.theirs)
            if len({tensor.dtype for tensor in theirs}) > 1:
                raise UserError(f"{self.folder} has tensors of one matrix in several precisions: {one.theirs}")
            found.update(zip(one.ours, one.transform.read(theirs), strict=True))
        return found


def shapes(decoder: Decoder) -> dict[str, Tensor]:
    """The tensors of a decoder without content, on the meta device; a tied table once."""
    with torch.device("meta"), NotDrawn():
        return tensors(build(decoder, decoder.d_model))


def write_each(rules: Sequence[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names. Raises UserError when the rules do not name all of ours."""
    named = [name for one in rules for name in one.ours]
    if left := sorted(set(ours) ^ set(named)):
        raise UserError(f"the family has no place for {', '.join(left[:4])}")
    return {name: tensor for one in rules for name, tensor in theirs_of(one, ours).items()}


def theirs_of(one: Rule, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one rule under their names."""
    return dict(zip(one.theirs, one.transform.write(tuple(ours[name] for name in one.ours)), strict=True))


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its tensors held against its config by name and shape.

    Raises UserError when it is none, of an unknown family or option, or its tensors are not those of its config.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a checkpoint: it has neither run.json nor {CONFIG}")
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict):
        raise UserError(f"{folder / CONFIG} is not a JSON object")
    family, config, decoder = read_config(values, str(folder / CONFIG))
    source = tensors_in(folder)
    rules = tuple(family.rules_for(decoder, config))
    if family.base and not any(name.startswith(family.base) for name in source):
        named = {name for one in rules for name in one.theirs}
        source.renamed(lambda name: name if name in named else family.base + name)
    if decoder.mtp is not None and not any(name in source for one in rules if further(one) for name in one.theirs):
        decoder = replace(decoder, mtp=None)  # configs say that there are modules where files leave them out
        rules = tuple(one for one in rules if not further(one))
    wanted = {name: tuple(tensor.shape) for name, tensor in write_each(rules, shapes(decoder)).items()}
    table = _same_table(decoder, family, config, source)
    check(source, wanted, str(folder), lambda name: name != table and not family.ignores(name))
    _same_copies(rules, source)
    return Checkpoint(folder, decoder, family, config, source, rules)


def further(one: Rule) -> bool:
    """Whether a rule is about the modules of multi-token prediction."""
    return one.copy or one.ours[0].startswith("mtp.")


def _same_copies(rules: Sequence[Rule], source: Source) -> None:
    """Raise UserError where what a module shares with the decoder is stored again, and differs."""
    held = {one.ours: one.theirs[0] for one in rules if not one.copy and len(one.theirs) == 1}
    for (name,), (original,) in ((one.theirs, (held[one.ours],)) for one in rules if one.copy):
        if not torch.equal(source[name], source[original]):
            raise UserError(f"{name} differs from {original}, which modules for further tokens share with the decoder")


def read_config(values: dict[str, Any], where: str = CONFIG) -> tuple[Family, Config, Decoder]:
    """The family of a config, what it read of it, and the decoder. Raises UserError for what is not exact here."""
    family = family_of(values, where)
    config = Config(values, where)
    if config.values.get("quantization_config"):
        config.refuse("quantization_config", values["quantization_config"], "open the checkpoint that is not quantised")
    try:
        return family, config, family.to_spec(config)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where} has a value of the wrong kind for a {family.model_type} model: {error}") from error


def _same_table(decoder: Decoder, family: Family, config: Config, source: Source) -> str | None:
    """The name of a head that was written although it is the embedding. Raises UserError when they differ."""
    if not decoder.tied:
        return None
    names = {one.ours: one.theirs[0] for one in family.rules(decoder, config) if len(one.theirs) == 1 and not one.copy}
    head, table = names.get(("head.weight",)), names.get(("embedding.weight",))
    if head not in source or table not in source:
        return None
    if source.shape(head) != source.shape(table) or not torch.equal(source[head], source[table]):
        raise UserError(f"{head} differs from {table}, and the config says that they are one (tie_word_embeddings)")
    return head


def carry(folder: Path, out: Path) -> list[str]:
    """Copy the tokenizer's and other files that are carried along; their names."""
    found = sorted({path.name: path for pattern in CARRIED for path in folder.glob(pattern)}.items())
    for name, path in found:
        shutil.copyfile(path, out / name)
    return [name for name, _ in found]


def config_for(decoder: Decoder, context: int, kept: dict[str, Any] | None = None) -> tuple[Family, dict[str, Any]]:
    """The family and the config.json of a decoder: `kept`, the config it came with, where that still says the same.

    Raises UserError, naming the part in the way, when no family can express it.
    """
    if kept is not None:
        family, config, then = read_config(kept)
        if decoder.mtp is None:  # the config may say that there are modules where the files left them out
            then = replace(then, mtp=None)
        if unrolled(then) == unrolled(decoder):
            return family, kept
        written, ways = _written(family, decoder, context, config.unread)
        if written and not ways:
            return family, written
    nearest: list[tuple[int, str]] = []
    for family in FAMILIES.values():
        written, ways = _written(family, decoder, context, {})
        if written and not ways:
            return family, written
        if written:
            nearest.append((len(ways), f"in the way of {family.model_type}: {'; '.join(ways[:3])}"))
    why = min(nearest)[1] if nearest else f"its parts are {kinds(decoder)}"
    raise UserError(f"no Hugging Face family known here can express this decoder; {why}")


def _written(family: Family, decoder: Decoder, context: int, rest: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The decoder's config in a family, and what that config does not say of it; no config for other kinds of parts."""
    try:
        own = {"model_type": family.model_type, **family.to_config(decoder, context)}
        said = family.to_spec(Config({**rest, **own}))
    except UNLIKE:
        return {}, []
    ways = [f"{way.path} is {way.new}, not {way.old}" for way in diff(unrolled(said), unrolled(decoder))]
    return {**NO_TOKENS, **rest, "architectures": [family.architecture], **own}, ways


def kinds(decoder: Decoder) -> str:
    """The names of the parts that a decoder is made of."""
    parts = {type(part).__name__: None for block in decoder.kinds for part in (*block.layers, block.position)}
    return ", ".join([*parts, type(decoder.residual).__name__, type(decoder.norm).__name__])


def unrolled(decoder: Decoder) -> Decoder:
    """The same decoder with every pattern written as the parts of all layers, or as one part where all are equal.

    What matters to training alone, of experts and of modules for further tokens, is as in a new import, for configs do
    not say it; so is the position of a mixer that asks for none, and a width that follows from another is said.
    """

    def over(parts: Sequence[Any]) -> Any:
        return parts[0] if all(part == parts[0] for part in parts) else Pattern(parts=tuple(parts))

    blocks = decoder.blocks
    ffn = [untrained(block.ffn) if isinstance(block.ffn, MoE) else block.ffn for block in blocks]
    return replace(
        decoder,
        attention=over([whole(block.mixer) for block in blocks]),
        ffn=None if decoder.ffn is None else over(ffn),
        position=over([heard(block) for block in blocks]),
        mtp=None if decoder.mtp is None else MTP(depth=decoder.mtp.depth),
    )


def whole(mixer: Mixer) -> Mixer:
    """A mixer with the width of its values said."""
    return replace(mixer, d_value=mixer.value_width) if isinstance(mixer, MLA) else mixer


def heard(block: Block) -> Position:
    """The position of a block; none where it has no effect, for a state knows the order of tokens by itself."""
    position, mixer = block.position, block.mixer
    silent = mixer.turned is None and mixer.scored is None
    return NoPosition() if silent and not position.added and not position.layer_params() else position


def untrained(part: MoE) -> MoE:
    """The same experts for who only reads and writes: without what keeps loads even in training."""
    fixed = None if part.bias_step is None else 0.0
    even = {"bias_step": fixed, "bias_by": "sign", "balance_loss": 0.0, "balance_over": "batch", "z_loss": 0.0}
    return replace(part, renormalise=part.renormalised, **even)


def write_checkpoint(
    out: Path,
    family: Family,
    values: dict[str, Any],
    decoder: Decoder,
    source: Source | Folded,
    shard_bytes: int | None = None,
) -> None:
    """Write config.json and the tensors of `source`, which are ours, into the folder `out` in a family's names."""
    config = Config(values)
    family.to_spec(config)
    rules = family.rules_for(decoder, config)
    write_each(rules, shapes(decoder))
    pieces = []
    for one in rules:
        size = sum(source.nbytes(name) for name in one.ours)
        pieces.append((size, lambda one=one: theirs_of(one, source)))
    write_tensors(out, pieces, **({} if shard_bytes is None else {"shard_bytes": shard_bytes}))
    write_text(out / CONFIG, json.dumps(values, indent=2, sort_keys=True) + "\n")
