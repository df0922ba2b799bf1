"""What a family of Hugging Face models is: a config read and written, and its tensors' names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nachim.model.hf.config import Config
from nachim.model.hf.rules import Rule
from nachim.spec import Decoder


@dataclass(frozen=True)
class Family:
    """One `model_type` of config.json.

    `to_spec` reads a config and refuses, through `Config.only` and `Config.refuse`, what is not computed here exactly.
    `to_config` writes a decoder as well as the family can, for sequences up to a context; whether that is exact is
    found out by reading it back, so it need not check anything. `rules` gives the tensors' names for a decoder and the
    config it has in this family; head and tied tables are left out by whoever applies them. Tensors whose names match
    one of `ignored` hold nothing that is learned. A checkpoint may lack the prefix `base` on all names but the head's.
    """

    model_type: str
    architecture: str
    to_spec: Callable[[Config], Decoder]
    to_config: Callable[[Decoder, int], dict[str, Any]]
    rules: Callable[[Decoder, Config], Iterable[Rule]]
    base: str = "model."
    ignored: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)

    def ignores(self, name: str) -> bool:
        """Whether the tensor `name` of a checkpoint holds nothing that is learned."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)

    def rules_for(self, decoder: Decoder, config: Config) -> list[Rule]:
        """Its rules, without that of a head that is the embedding."""
        return [one for one in self.rules(decoder, config) if not (decoder.tied and one.ours == ("head.weight",))]
