"""Beams are those of transformers, and all there are where the beam is wide enough."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import LlamaConfig

import nachim
from nachim.infer.beam import search
from nachim.infer.request import Sampling
from nachim.spec import UserError
from tests.infer.tiny import PLAIN, engine, loaded, prompts
from tests.model.hf.parity import SMALL, reference


@pytest.mark.parametrize(("ends", "penalty"), [(None, 1.0), (7, 1.0), (7, 0.0), (3, 2.0)])
def test_beams_are_those_of_transformers(ends, penalty, tmp_path):
    config = LlamaConfig(**SMALL, eos_token_id=ends, pad_token_id=0)
    theirs = reference(config)
    with torch.no_grad():
        theirs.lm_head.weight.mul_(0.3)  # laws so flat that beams compete
    theirs.save_pretrained(tmp_path)
    prompt = prompts(nachim.load(tmp_path).spec, 6)[0]
    with torch.no_grad():
        wanted = theirs.generate(
            torch.tensor([prompt]),
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=6,
            length_penalty=penalty,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            attention_mask=torch.ones(1, 6, dtype=torch.int64),
        )
    found = search(nachim.Engine(tmp_path), prompt, beams=4, max_tokens=6, n=3, length_penalty=penalty)
    for one, tokens, score in zip(found, wanted.sequences.tolist(), wanted.sequences_scores.tolist(), strict=True):
        tokens = tokens[6:]
        assert list(one.tokens) == (tokens[: tokens.index(ends) + 1] if ends in tokens else tokens)
        assert sum(one.logprobs) / len(one.tokens) ** penalty == pytest.approx(score, abs=1e-4)


def test_a_beam_wide_enough_finds_the_likeliest_of_all():
    prompt, model = prompts(PLAIN, 5)[0], loaded().model
    with torch.inference_mode():
        first_V = model(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        both_VV = (
            model(torch.tensor([[*prompt, token] for token in range(61)]))[:, -1].log_softmax(-1) + first_V[:, None]
        )
    best = both_VV.flatten().topk(4).indices.tolist()
    found = search(engine(), prompt, beams=61, max_tokens=2, n=4)
    assert [one.tokens for one in found] == [divmod(index, 61) for index in best]
    assert all(one.finish_reason == "length" for one in found)
    assert all(sum(a.logprobs) >= sum(b.logprobs) for a, b in itertools.pairwise(found))


def test_what_cannot_be_searched_is_refused():
    one = engine()
    for beams, n in ((0, 1), (2, 3), (65, 1)):
        with pytest.raises(UserError, match=f"beams is {beams}"):
            search(one, [1, 2], beams=beams, max_tokens=2, n=n)
    one.add([1, 2, 3], Sampling())
    with pytest.raises(UserError, match="the engine is serving"):
        search(one, [1, 2], beams=2, max_tokens=2)
