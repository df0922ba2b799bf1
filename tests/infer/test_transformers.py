"""Greedy tokens and log-probabilities are those of transformers, for a family of each kind."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
)

import nachim
from tests.infer.tiny import prompts
from tests.model.hf.parity import SMALL, reference

NARROW = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=6),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4),
    "mamba": MambaConfig(**NARROW, state_size=4, intermediate_size=64),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_greedy_text_is_that_of_transformers(config: PretrainedConfig, tmp_path):
    config.eos_token_id = config.pad_token_id = None
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    engine = nachim.Engine(tmp_path, context=64)
    asked = prompts(engine.model.spec, 19, 4)
    found = engine.generate(asked, max_tokens=7, temperature=0.0, logprobs=True, top_logprobs=40, ignore_eos=True)
    for prompt, one in zip(asked, found, strict=True):
        with torch.no_grad():
            logits_TV = theirs(torch.tensor([[*prompt, *one.tokens]]), use_cache=False).logits[0]
        wanted_TV = logits_TV[len(prompt) - 1 : -1].log_softmax(-1)
        assert list(one.tokens) == wanted_TV.argmax(-1).tolist()
        for place, top in enumerate(one.top):
            whole_V = torch.tensor([top[token] for token in range(40)])
            torch.testing.assert_close(whole_V, wanted_TV[place], atol=2e-4, rtol=0)
