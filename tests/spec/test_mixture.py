"""Mixtures and what holds weights: values that make no sense are refused, and sealed runs keep their fingerprints."""

from __future__ import annotations

import dataclasses

import pytest

from nachim.spec import BPE, EWC, Ingredient, Mixture, Reweight, Run, Stdlib, TokenizerFile, UserError
from tests.spec.examples import DATA, HELD, MIXED, RUN

CODE = Ingredient(name="code", corpus=Stdlib(), weight=1.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dataclasses.replace(CODE, weight=-0.1), "Ingredient.weight is -0.1; it must not be negative"),
        (lambda: dataclasses.replace(CODE, name="a/b"), "Ingredient.name is 'a/b'; it must be a word without a slash"),
        (lambda: dataclasses.replace(CODE, name=""), "Ingredient.name is ''"),
        (lambda: Mixture(ingredients=()), "Mixture.ingredients have no weight"),
        (lambda: Mixture(ingredients=(dataclasses.replace(CODE, weight=0.0),)), "have no weight; one of them must"),
        (lambda: Mixture(ingredients=(CODE, CODE)), "are named code, code; each needs a name of its own"),
        (lambda: Reweight(at_tokens=0, weights=(1.0,)), "Reweight.at_tokens is 0"),
        (lambda: Reweight(at_tokens=5, weights=(0.0, 0.0)), "Reweight.weights are .0.0, 0.0.; none may be negative"),
        (lambda: Reweight(at_tokens=5, weights=(-1.0, 2.0)), "one must be above 0"),
        (
            lambda: dataclasses.replace(MIXED, changes=(Reweight(at_tokens=5, weights=(1.0,)),)),
            "Mixture.changes must give 2 weights each",
        ),
        (lambda: dataclasses.replace(MIXED, changes=MIXED.changes * 2), "come at the tokens .3200, 3200."),
        (lambda: EWC(folder="f", strength=0.0), "EWC.strength is 0.0; it must be above 0"),
        (lambda: dataclasses.replace(HELD, start=None), "Run.ewc holds weights near others, but the run draws its own"),
        (lambda: TokenizerFile(path="t.json", vocab_size=0), "TokenizerFile.vocab_size is 0"),
        (
            lambda: dataclasses.replace(RUN, data=dataclasses.replace(DATA, tokenizer=BPE(vocab_size=512))),
            "has vocab_size=300, data 512",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_run_without_them_is_written_as_before():
    assert "ewc" not in RUN.to_json()
    assert HELD.to_json()["ewc"]["strength"] == 3.0
    mixed = dataclasses.replace(RUN, data=dataclasses.replace(DATA, corpus=MIXED))
    assert Run.from_json(mixed.to_json()) == mixed
