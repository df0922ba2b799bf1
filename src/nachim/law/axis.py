"""A plain power law with a floor, on one axis: for runs that vary one thing alone."""

from __future__ import annotations

from typing import ClassVar

from nachim.law.powers import Powers, Term


class ScalePower(Powers):
    """L = E + A·x^-alpha, runs that all saw as many tokens (arXiv 2001.08361 eq. 1.1, plus a floor)."""

    name: ClassVar[str] = "power-scale"
    formula: ClassVar[str] = "E + A·x^-alpha"
    source: ClassVar[str] = "arXiv 2001.08361 eq. 1.1, with the floor of arXiv 2010.14701 eq. 1.1"
    inputs: ClassVar[tuple[str, ...]] = ("x",)
    terms: ClassVar[tuple[Term, ...]] = (Term("A", alpha="x"),)


class TokensPower(Powers):
    """L = E + B·D^-beta, all runs of one model (arXiv 2001.08361 eq. 1.2 plus a floor)."""

    name: ClassVar[str] = "power-tokens"
    formula: ClassVar[str] = "E + B·D^-beta"
    source: ClassVar[str] = "arXiv 2001.08361 eq. 1.2, with the floor of arXiv 2010.14701 eq. 1.1"
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    terms: ClassVar[tuple[Term, ...]] = (Term("B", beta="tokens"),)


class FlopsPower(Powers):
    """L = E + A·C^-gamma, all runs of one recipe of scale against tokens (arXiv 2001.08361 eq. 1.3 plus a floor)."""

    name: ClassVar[str] = "power-flops"
    formula: ClassVar[str] = "E + A·C^-gamma"
    source: ClassVar[str] = "arXiv 2001.08361 eq. 1.3, with the floor of arXiv 2010.14701 eq. 1.1"
    inputs: ClassVar[tuple[str, ...]] = ("flops",)
    terms: ClassVar[tuple[Term, ...]] = (Term("A", gamma="flops"),)
