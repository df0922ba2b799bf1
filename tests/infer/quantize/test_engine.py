"""Quantised models in the engine: an answer is the same bits in every batch, by kernels and by decoding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nachim.infer.engine import Engine
from nachim.spec import NF4, Int4, Int8
from tests.infer.tiny import prompts, said
from tests.model.quantized.low import DENSE, SPARSE, written

OPTIONS = {"block": 16, "cache_tokens": 1024, "context": 64}


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [(Int8(), "bfloat16"), (Int4(group=32), "bfloat16"), (Int4(group=32), "float32"), (NF4(group=32), "bfloat16")],
    ids=str,
)
@pytest.mark.parametrize("spec", [DENSE, SPARSE], ids=["dense", "experts"])
def test_an_answer_is_the_same_bits_in_every_batch(tmp_path, spec, scheme, dtype):
    written(tmp_path, spec, scheme)
    engine, asked = Engine(tmp_path, dtype, **OPTIONS), prompts(spec, 3, 17, 20)
    how = {"max_tokens": 3, "temperature": 0.0, "logprobs": True}
    together = said(engine.generate(asked, **how))
    assert together == [one for prompt in asked for one in said(engine.generate([prompt], **how))]


def test_log_probabilities_are_those_of_the_decoded_model(tmp_path):
    dense = written(tmp_path, DENSE, Int4(group=32))
    (prompt,) = prompts(DENSE, 9)
    (answer,) = Engine(tmp_path, **OPTIONS).generate([prompt], max_tokens=4, temperature=0.0, logprobs=True)
    tokens = torch.tensor([[*prompt, *answer.tokens]])
    with torch.inference_mode():
        logprobs = F.log_softmax(dense(tokens)[0, 8:-1], -1)
    wanted = logprobs.gather(1, tokens[0, 9:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(answer.logprobs), wanted, rtol=0, atol=1e-5)
    assert answer.tokens == tuple(logprobs.argmax(-1).tolist())
