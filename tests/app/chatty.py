"""A tiny checkpoint that can be talked to: seeded weights, byte-level tokens, a chat template with tools."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", " a", " and", "in", "er", '": "', '", "', '{"', '"}', "<tool_call>", "</tool_call>", "name", "true")
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'forbidden' %}{{ raise_exception('no such role') }}{% endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer() -> Tokenizer:
    """Bytes, a few merged words, and the marks of a chat, which come first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    return made


def checkpoint(folder: Path, seed: int = 0, hidden: int = 32, context: int = 512) -> Path:
    """Write the checkpoint into `folder`; its sharp weights make answers that differ by token."""
    torch.manual_seed(seed)
    made = tokenizer()
    config = LlamaConfig(
        vocab_size=made.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=made.token_to_id("<|endoftext|>"),
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    told = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder
