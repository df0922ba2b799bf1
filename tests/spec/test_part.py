"""A part is a value: it travels as JSON, comes back equal, and has one fingerprint everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nachim.spec import AdamW, Attention, Cosine, MuP, Part, RoPE, Run, SwiGLU, diff
from tests.spec.examples import ALL, MACHINE, RUN

# Sealed: stored runs are named by it.
GOLDEN = "449fe976a7e3e4c59a9e270af59a71378bae46e72ae2bec6fadaed4156e2341a"
CANONICAL = (
    '{"bias":"none","d_head":64,"n_heads":12,"n_kv_heads":4,"part":"Attention","previous_key":false,"qk_norm":true,'
    '"window":null}'
)
SEALED_MODEL = "a658ecd95a397751333008f71042e9f3012c1bae43fb32c8d1baee12afc8bb3c"  # before it had a parametrisation
PRINT = "from tests.spec.examples import RUN; print(RUN.fingerprint)"


@dataclass(frozen=True, kw_only=True)
class Compass(Part):
    """A part that holds a tuple of parts, of numbers, and of nothing."""

    turns: tuple[RoPE, ...] = ()
    marks: tuple[int, ...] = ()
    label: str | None = None


def classes(root: type[Part] = Part) -> set[type[Part]]:
    """Every part class the product defines."""
    found = {child for child in root.__subclasses__() if child.__module__.startswith("nachim.")}
    return found.union(*(classes(child) for child in found))


def concrete() -> list[type[Part]]:
    """Every part of the product that is used itself: all but those that call themselves the base of others."""
    found = [cls for cls in classes() if not (cls.__doc__.startswith("Base of ") and cls.__subclasses__())]
    return sorted((cls for cls in found if cls.__module__.startswith("nachim.spec.")), key=lambda cls: cls.__name__)


def test_there_is_an_example_of_every_part():
    assert {type(part) for part in ALL} >= set(concrete())


@pytest.mark.parametrize("cls", concrete(), ids=lambda cls: cls.__name__)
def test_every_field_has_an_example_that_is_not_its_default(cls):
    examples = [part for part in ALL if type(part) is cls]
    for field in dataclasses.fields(cls):
        assert any(getattr(part, field.name) != field.default for part in examples), field.name


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_a_part_comes_back_from_json_equal(part, tmp_path):
    back = type(part).from_json(json.loads(json.dumps(part.to_json())))
    assert back == part
    assert hash(back) == hash(part)
    assert back.fingerprint == part.fingerprint
    assert diff(part, back) == []
    part.save(tmp_path / "deep" / "part.json")
    assert type(part).load(tmp_path / "deep" / "part.json") == part
    assert Part.load(str(tmp_path / "deep" / "part.json")) == part


def test_tuples_of_parts_come_back_as_tuples():
    part = Compass(turns=(RoPE(), RoPE(theta=3.0)), marks=(1, 2), label=None)
    assert Compass.from_json(json.loads(json.dumps(part.to_json()))) == part


@given(st.floats(1e-300, 1e300), st.floats(0, 1, exclude_max=True), st.floats(0, 1e300))
def test_any_float_comes_back_to_the_last_bit(lr, beta, decay):
    part = AdamW(lr=lr, beta2=beta, weight_decay=decay)
    assert AdamW.from_json(json.loads(json.dumps(part.to_json()))) == part


def test_a_whole_number_stands_for_a_float():
    part = AdamW(lr=1, weight_decay=0)
    assert (type(part.lr), type(part.weight_decay)) == (float, float)
    assert part == AdamW(lr=1.0, weight_decay=0.0)
    assert part.fingerprint == AdamW(lr=1.0, weight_decay=0.0).fingerprint
    assert AdamW.from_json({"part": "AdamW", "lr": 1}) == AdamW(lr=1.0)


def test_a_part_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUN.model.d_model = 8


def test_the_fingerprint_is_the_hash_of_the_canonical_json():
    part = Attention(n_heads=12, n_kv_heads=4, d_head=64, qk_norm=True)
    assert part.fingerprint == hashlib.sha256(CANONICAL.encode()).hexdigest() == GOLDEN


def test_a_field_that_came_later_leaves_sealed_fingerprints_alone():
    model = RUN.model
    assert model.fingerprint == SEALED_MODEL
    assert "parametrisation" not in model.to_json()
    other = dataclasses.replace(model, parametrisation=MuP(base_width=16, base_head=8))
    assert other.fingerprint != SEALED_MODEL
    assert type(model).from_json(json.loads(json.dumps(other.to_json()))) == other
    assert [change.path for change in diff(model, other)] == ["parametrisation"]


def test_each_field_and_each_class_changes_the_fingerprint():
    parts = [*ALL, Attention(n_heads=4, n_kv_heads=2, d_head=8), RoPE(theta=2.0), SwiGLU(d_ff=89), Cosine()]
    parts += [dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, seed=seed)) for seed in (0, 1)]
    assert len({part.fingerprint for part in parts}) == len(parts)


def test_the_fingerprint_is_the_same_in_every_process():
    for seed in ("0", "4242"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", PRINT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.strip() == RUN.fingerprint


def test_the_order_of_keys_in_a_file_is_not_part_of_the_run():
    shuffled = json.loads(json.dumps(RUN.to_json(), sort_keys=True))
    assert list(shuffled) != list(RUN.to_json())
    assert Run.from_json(shuffled).fingerprint == RUN.fingerprint


def test_a_difference_reads_as_a_sentence():
    replace = dataclasses.replace
    model = replace(RUN.model, n_layers=4, ffn=replace(RUN.model.ffn, d_ff=96))
    other = replace(RUN, model=model, train=replace(RUN.train, schedule=Cosine(final=0.5), micro_batch_tokens=None))
    assert [str(change) for change in diff(RUN, other)] == [
        "model.n_layers: 3 -> 4",
        "model.ffn.d_ff: 88 -> 96",
        "train.schedule: WSD(warmup_tokens=640, decay=0.3) -> Cosine(warmup_tokens=0, final=0.5)",
        "train.micro_batch_tokens: 32 -> None",
    ]
    assert [(c.path, c.old, c.new) for c in diff(other, RUN)][:1] == [("model.n_layers", 4, 3)]
    assert [change.path for change in diff(RUN, MACHINE)] == ["part"]
