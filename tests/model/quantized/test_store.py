"""The folder of a quantised model: it opens to what its codes stand for, and a damaged one does not open."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import nachim
from nachim.model.load import open_run
from nachim.model.quantized import store
from nachim.spec import Int4, Int8, UserError
from tests.model.quantized.low import DENSE, SCHEMES, SPARSE, written

IDS = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("spec", [DENSE, SPARSE], ids=["dense", "experts"])
def test_a_folder_opens_to_what_its_codes_stand_for(tmp_path, scheme, spec):
    dense = written(tmp_path, spec, scheme)
    with torch.inference_mode():
        assert torch.equal(nachim.load(tmp_path)(IDS), dense(IDS))


@pytest.mark.parametrize("scheme", [Int8(), Int4(group=32)], ids=str)
def test_in_bf16_it_is_the_dense_model_to_rounding(tmp_path, scheme):
    dense = written(tmp_path, DENSE, scheme)
    with torch.inference_mode():
        wanted, low = dense(IDS), nachim.load(tmp_path, "bfloat16")(IDS).float()
        rounding = (dense.bfloat16()(IDS).float() - wanted).abs().mean()
    assert (low - wanted).abs().mean() < 1.5 * rounding


def test_a_damaged_folder_does_not_open(tmp_path):
    written(tmp_path, DENSE, Int8())
    whole = (tmp_path / store.WEIGHTS).read_bytes()
    (tmp_path / store.WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"is not the file that quantized\.json was written beside"):
        nachim.load(tmp_path)
    (tmp_path / store.WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"is not the file that quantized\.json was written beside"):
        nachim.load(tmp_path)


def test_tensors_must_be_those_of_the_decoder(tmp_path):
    written(tmp_path, DENSE, Int8())
    held = load_file(tmp_path / store.WEIGHTS)
    name = "blocks.0.ffn.down.weight"

    def told(change: dict[str, torch.Tensor]) -> None:
        save_file({**held, **change}, tmp_path / store.WEIGHTS)
        facts = json.loads((tmp_path / store.TOLD).read_text())
        facts["weights"] = store.sha256(tmp_path / store.WEIGHTS)
        (tmp_path / store.TOLD).write_text(json.dumps(facts))

    told({f"{name}.codes": held[f"{name}.codes"][:-1].clone()})
    with pytest.raises(UserError, match=r"1 misshapen \(blocks.0.ffn.down.weight.codes"):
        nachim.load(tmp_path)
    told({f"{name}.scale": torch.full_like(held[f"{name}.scale"], float("inf"))})
    with pytest.raises(UserError, match=r"the scales of blocks.0.ffn.down.weight are not finite"):
        nachim.load(tmp_path)


def test_who_wants_the_weights_themselves_is_sent_to_where_they_came_from(tmp_path):
    written(tmp_path, DENSE, Int8())
    with pytest.raises(UserError, match="is quantised, which cannot be undone: give the folder that it was made of"):
        open_run(tmp_path)
