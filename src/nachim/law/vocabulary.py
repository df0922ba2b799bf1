"""Vocabulary: the parameters of embedding and head as a scale of their own."""

from __future__ import annotations

from typing import ClassVar

from nachim.law.powers import Powers, Term


class Vocabulary(Powers):
    """L = E + A1·x^-alpha1 + A2·N_v^-alpha2 + B·D^-beta (arXiv 2407.13623 sec. 3.3, its parametric fit).

    `x` is the scale without the vocabulary, `vocab_params` N_v is the vocabulary's size times d_model. Losses must
    be comparable across vocabularies: bits per byte (the paper normalises by a unigram model, and has -E for E).
    """

    name: ClassVar[str] = "vocabulary"
    formula: ClassVar[str] = "E + A1·x^-alpha1 + A2·N_v^-alpha2 + B·D^-beta"
    source: ClassVar[str] = "arXiv 2407.13623 sec. 3.3"
    inputs: ClassVar[tuple[str, ...]] = ("x", "vocab_params", "tokens")
    terms: ClassVar[tuple[Term, ...]] = (
        Term("A1", alpha1="x"),
        Term("A2", alpha2="vocab_params"),
        Term("B", beta="tokens"),
    )
