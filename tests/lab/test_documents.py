"""Losses that mind documents: a packed sequence is worth its documents alone, and filling is worth nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nachim.evaluate.bpb import Windows, measure
from nachim.lab.work import Place, carry_out, judge, loss_of, next_token_loss, open_batches
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.model.load import load
from nachim.spec import BPE, MTP, AdamW, Cosine, Data, Files, Run, Train, Validation
from tests.spec.examples import decoder

END = 0
DOCUMENTS = [[7, 9, 5, 3], [4, 4, 8], [11, 12]]
MASKED = Data(tokenizer=BPE(vocab_size=300), seq_len=14, packing="best-fit", mask_documents=True)


@pytest.fixture(scope="module")
def model():
    made = build(decoder(), 32)
    initialise(made, 0)
    torch.nn.init.normal_(made.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return made


def packed(documents, length=14):
    """An end-of-text token, the documents each with one after it, and filling."""
    row = [END]
    for document in documents:
        row += [*document, END]
    return torch.tensor([row + [END] * (length + 1 - len(row))])


def alone(model, document):
    """Nats of each token of a document and of its end."""
    ids = torch.tensor([[END, *document]])
    targets = torch.tensor([*document, END])
    return F.cross_entropy(model(ids)[0], targets, reduction="none")


def test_the_loss_is_that_of_the_documents_alone(model):
    wanted = torch.cat([alone(model, document) for document in DOCUMENTS]).mean()
    found = loss_of(MASKED, END)(model, packed(DOCUMENTS))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, [model.embedding.weight], retain_graph=True)
    (reference,) = torch.autograd.grad(wanted, [model.embedding.weight])
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_without_the_mask_documents_are_seen_and_filling_is_still_worth_nothing(model):
    seen = loss_of(dataclasses.replace(MASKED, mask_documents=False), END)
    masked = loss_of(MASKED, END)
    one, two = packed(DOCUMENTS[:1]), packed(DOCUMENTS[:1], length=20)
    assert seen(model, one).item() == pytest.approx(masked(model, one).item(), rel=1e-5)
    assert seen(model, one).item() == pytest.approx(seen(model, two).item(), rel=1e-5)
    assert abs(seen(model, packed(DOCUMENTS)).item() - masked(model, packed(DOCUMENTS)).item()) > 1e-3


def test_a_stream_without_the_mask_has_the_plain_loss():
    assert loss_of(dataclasses.replace(MASKED, packing="stream", mask_documents=False), END) is next_token_loss


def test_further_tokens_know_of_filling(model):
    ahead = build(dataclasses.replace(decoder(), mtp=MTP(depth=1)), 32)
    initialise(ahead, 0)
    assert torch.isfinite(loss_of(MASKED, END)(ahead, packed(DOCUMENTS)))


def test_validation_minds_documents_too(model):
    row = [END]
    for document in DOCUMENTS:
        row += [*document, END]
    windows = Windows(np.array([row]), target_bytes=10, end=END)
    wanted = torch.cat([alone(model, document) for document in DOCUMENTS]).mean().item()
    assert measure(model, windows)["loss"] == pytest.approx(wanted, rel=1e-5)
    assert measure(model, dataclasses.replace(windows, end=None))["loss"] != pytest.approx(wanted, rel=1e-4)


def test_a_run_on_packed_documents_is_trained_and_judged_by_them(tmp_path):
    chance = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(60):
        words = chance.choice([f"w{n}" for n in range(200)], int(chance.integers(20, 80)))
        (tmp_path / "in" / f"{i}.txt").write_text(" ".join(words))
    corpus = Files(path=str(tmp_path / "in"), validation_bytes=2000)
    data = dataclasses.replace(MASKED, corpus=corpus, seq_len=32)
    train = Train(tokens=4 * 128, batch_tokens=128, optimizer=AdamW(lr=0.01), schedule=Cosine(warmup_tokens=128))
    run = Run(model=decoder(), data=data, train=train, validation=Validation(tokens=512))
    place = Place(cache=tmp_path / "cache", checkpoint_seconds=1e9)
    result = carry_out(run, tmp_path / "run", place, lambda run, step, loss: None)
    assert result["steps"] == 4 and np.isfinite(result["validation"]["bpb"])
    model, batches = load(tmp_path / "run"), open_batches(data, place.cache)
    assert judge(batches, run)(model)["loss"] == pytest.approx(result["validation"]["loss"], rel=1e-5)
    seen = dataclasses.replace(run, data=dataclasses.replace(data, mask_documents=False))
    assert abs(judge(batches, seen)(model)["loss"] - result["validation"]["loss"]) > 1e-5
