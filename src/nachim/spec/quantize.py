"""Weights in few bits: which values a matrix may have, and the bytes that takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class Scheme(Part, ABC):
    """Base of ways to code the weights of a matrix [outputs, inputs]: `bits` each, and scales that groups share."""

    bits: ClassVar[int]

    def width(self, inputs: int) -> int:
        """Weights of a row that share a scale. Raises UserError where groups do not divide the row."""
        return inputs

    @abstractmethod
    def scale_bytes(self, outputs: int, groups: int) -> int:
        """Bytes of everything beside the codes, for `groups` a row."""

    def bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a matrix's codes and scales. Raises UserError where groups do not divide its rows."""
        return outputs * inputs * self.bits // 8 + self.scale_bytes(outputs, inputs // self.width(inputs))


@dataclass(frozen=True, kw_only=True)
class Int8(Scheme):
    """Whole numbers from -127 to 127 times one bf16 scale a row, the largest magnitude of the row over 127."""

    bits: ClassVar[int] = 8

    def scale_bytes(self, outputs: int, groups: int) -> int:
        return 2 * outputs


@dataclass(frozen=True, kw_only=True)
class Grouped(Scheme):
    """Base of those in four bits, `group` weights that follow one another in a row sharing a scale."""

    bits: ClassVar[int] = 4

    group: int

    def check(self) -> None:
        self.require_positive("group")
        if self.group % 2:
            self.refuse("group", f"is {self.group}; it must be even, for two codes make a byte")

    def width(self, inputs: int) -> int:
        if inputs % self.group:
            self.refuse("group", f"is {self.group}, which does not divide the {inputs} inputs of a matrix")
        return self.group


@dataclass(frozen=True, kw_only=True)
class Int4(Grouped):
    """(code - zero) times scale, codes from 0 to 15, scales in bf16.

    The zero of a group is a whole number from 0 to 15, a byte, so that the group reaches from its least weight to its
    largest; where it is `symmetric` the zero is 8 and the weight of the largest magnitude is coded as 0, its scale
    having the sign that this takes, as in the q4_0 blocks of GGUF.
    """

    group: int = 128
    symmetric: bool = False

    def scale_bytes(self, outputs: int, groups: int) -> int:
        return outputs * groups * (2 if self.symmetric else 3)


@dataclass(frozen=True, kw_only=True)
class NF4(Grouped):
    """One of 16 levels, quantiles of the normal law, times the group's largest magnitude (arXiv 2305.14314, app. E).

    With `double` these magnitudes are themselves 8-bit floats (e4m3), over what all of a matrix have on average, with
    an fp32 scale for each 256 of them (sec. 3); otherwise they are in fp32.
    """

    BLOCK: ClassVar[int] = 256
    """Magnitudes that share a scale."""

    group: int = 64
    double: bool = True

    def scale_bytes(self, outputs: int, groups: int) -> int:
        count = outputs * groups
        return count + 4 * (-(-count // self.BLOCK) + 1) if self.double else 4 * count


@dataclass(frozen=True, kw_only=True)
class Quantized(Part):
    """What is said beside the weights of a quantised model: how they were coded, which, and the files' content.

    `source` is the SHA-256 of the weights before, `weights` that of the file they are in now.
    """

    scheme: Scheme
    method: Literal["rtn", "gptq", "awq"]
    matrices: tuple[str, ...]
    source: str
    weights: str
