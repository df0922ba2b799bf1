"""The decoder against decoders written by others, in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from nachim.model import DecoderModule, build
from nachim.spec import Decoder, RMSNorm, RoPE
from tests.spec.examples import decoder

NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "ffn.down.weight": "mlp.down_proj.weight",
}


def translated(spec: Decoder, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names of the Hugging Face Llama family, fused matrices taken apart."""
    part, found = spec.attention, {}
    for name, weight in weights.items():
        layer, inner = "", name
        if name.startswith("blocks."):
            _, number, inner = name.split(".", 2)
            layer = f"model.layers.{number}."
        if inner == "attention.qkv.weight":
            rows = [heads * part.d_head for heads in (part.n_heads, part.n_kv_heads, part.n_kv_heads)]
            for letter, matrix in zip("qkv", weight.split(rows), strict=True):
                found[f"{layer}self_attn.{letter}_proj.weight"] = matrix
        elif inner == "ffn.gate_up.weight":
            for half, matrix in zip(("gate", "up"), weight.split(spec.ffn.d_ff), strict=True):
                found[f"{layer}mlp.{half}_proj.weight"] = matrix
        else:
            found[layer + NAMES[inner]] = weight
    return found


def theirs(spec: Decoder) -> nn.Module:
    """The Hugging Face decoder of the same shape: Qwen3 where heads are normalised, else Llama."""
    llama = not spec.attention.qk_norm
    config = (LlamaConfig if llama else Qwen3Config)(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=spec.ffn.d_ff,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.attention.n_heads,
        num_key_value_heads=spec.attention.n_kv_heads,
        head_dim=spec.attention.d_head,
        rms_norm_eps=spec.norm.eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.position.theta},
        tie_word_embeddings=spec.tied,
        attn_implementation="eager",
    )
    return (LlamaForCausalLM if llama else Qwen3ForCausalLM)(config).eval()


def pair(spec: Decoder) -> tuple[DecoderModule, nn.Module]:
    """Our decoder and theirs with the same random weights, every gain away from one."""
    ours = build(spec, spec.d_model)
    for weight in ours.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.2)
    reference = theirs(spec)
    missing, unexpected = reference.load_state_dict(translated(spec, ours.state_dict()), strict=False)
    assert not unexpected
    assert not [name for name in missing if "rotary" not in name]
    return ours, reference


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1], ids=["multi-head", "grouped", "multi-query"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
def test_logits_and_gradients_are_those_of_transformers(qk_norm, n_kv_heads, tied):
    spec = decoder(qk_norm=qk_norm, n_kv_heads=n_kv_heads, tied=tied, d_head=12, position=RoPE(theta=500.0))
    ours, reference = pair(spec)
    ids_BT = torch.randint(spec.vocab_size, (3, 21))
    torch.testing.assert_close(ours(ids_BT), reference(ids_BT).logits, rtol=1e-5, atol=2e-5)
    ours.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    reference(ids_BT, labels=ids_BT).loss.backward()
    wanted = translated(spec, {name: weight.grad for name, weight in ours.named_parameters()})
    for name, weight in reference.named_parameters():
        torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_norms_eps_is_the_specs():
    spec = decoder(norm=RMSNorm(eps=0.3))
    ours, reference = pair(spec)
    ids_BT = torch.arange(12)[None]
    torch.testing.assert_close(ours(ids_BT), reference(ids_BT).logits, rtol=1e-5, atol=2e-5)
