"""Latent attention: transformers' numbers, one answer whether keys are rebuilt or not, and the costs it declares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from nachim.budget.activations import kept
from nachim.budget.layout import Job, Layout
from nachim.model import build
from nachim.model.cache import documents_of
from nachim.model.frame import Frame
from nachim.model.mla import MLAModule
from nachim.spec import MLA, ALiBi, CompleteP, Decoder, NoPosition, RoPE, SwiGLU, UserError, YaRN
from tests.model.contract import drawn, hold
from tests.model.deepseek import theirs
from tests.plainly import plainly

D, T, H = 24, 11, 4
PARTS = {
    "low-rank queries": MLA(n_heads=H, d_head=8, rank=12, rope_dim=4, q_rank=10),
    "narrow values": MLA(n_heads=H, d_head=8, rank=12, rope_dim=4, d_value=6, eps=1e-5),
    "wide values": MLA(n_heads=H, d_head=4, rank=20, rope_dim=6, q_rank=10, d_value=16),
}
YARN = YaRN(factor=4.0, original=16, mscale=0.7, mscale_all_dim=1.1)


def decoder(part: MLA, **fields: object) -> Decoder:
    """A small decoder of latent attention."""
    return Decoder(
        **{"vocab_size": 40, "d_model": D, "n_layers": 2, "attention": part, "ffn": SwiGLU(d_ff=20)} | fields
    )


def module(part: MLA) -> MLAModule:
    """`part` computed, its gains away from one."""
    made = build(part, D)
    for weight in made.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
    return made


@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("family", ["v2", "v3"])
def test_outputs_and_gradients_are_those_of_transformers(family, name, scaling):
    part = replace(PARTS[name], eps=1e-6)
    rope = {"rope_type": "default", "rope_theta": 500.0}
    if scaling is not None:
        rope |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7}
        rope |= {"mscale_all_dim": 1.1, "beta_fast": 32, "beta_slow": 1}
    config = {"v2": DeepseekV2Config, "v3": DeepseekV3Config}[family](
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=H,
        kv_lora_rank=part.rank,
        q_lora_rank=part.q_rank,
        qk_nope_head_dim=part.d_head,
        qk_rope_head_dim=part.rope_dim,
        v_head_dim=part.value_width,
        rope_parameters=rope,
        max_position_embeddings=64,
    )
    config._attn_implementation = "eager"
    attention, rotary = {
        "v2": (v2.DeepseekV2Attention, v2.DeepseekV2RotaryEmbedding),
        "v3": (v3.DeepseekV3Attention, v3.DeepseekV3RotaryEmbedding),
    }[family]
    spec = decoder(part, position=RoPE(theta=500.0, scaling=scaling))
    block = build(spec, D).blocks[0]
    ours, reference = block.attention, attention(config, 0)
    for weight in ours.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
    reference.load_state_dict(theirs(part, ours.state_dict()))

    x_BTD = torch.randn(2, T, D, requires_grad=True)
    other_BTD = x_BTD.detach().clone().requires_grad_()
    future_TT = torch.full((T, T), float("-inf")).triu(1)[None, None]
    angles = rotary(config)(x_BTD, torch.arange(T)[None])
    y_BTD = ours(x_BTD, Frame((2, T), x_BTD.device), block.position)
    expected_BTD = reference(other_BTD, position_embeddings=angles, attention_mask=future_TT)[0]
    torch.testing.assert_close(y_BTD, expected_BTD, rtol=1e-4, atol=1e-5)
    seed_BTD = torch.randn_like(y_BTD)
    (y_BTD * seed_BTD).sum().backward()
    (expected_BTD * seed_BTD).sum().backward()
    torch.testing.assert_close(x_BTD.grad, other_BTD.grad, rtol=1e-4, atol=1e-4)
    gradients = theirs(part, {name: weight.grad for name, weight in ours.named_parameters()})
    for name, weight in reference.named_parameters():
        torch.testing.assert_close(
            weight.grad, gradients[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


DOCUMENTS = {
    "one document": None,
    "packed": torch.tensor([[4] * 5 + [2] * (T - 5), [0] * (T - 2) + [1] * 2]),
    "left padding": documents_of(torch.tensor([[0] * 3 + [1] * (T - 3), [1] * T])),
}
POSITIONS = {"rope": RoPE(), "alibi": ALiBi(), "none": NoPosition()}


@pytest.mark.parametrize("new", [1, 3, 8])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("name", PARTS)
def test_absorbed_is_rebuilt(name, documents, position, new):
    made, turning = module(PARTS[name]), build(POSITIONS[position], D)
    x_BTD = torch.randn(2, T, D)
    whole = Frame((2, T), x_BTD.device, 0, DOCUMENTS[documents])
    last = Frame((2, new), x_BTD.device, T - new, DOCUMENTS[documents])
    with torch.inference_mode():
        latent_BTC, q_BHTE = made.latents(x_BTD, whole, turning), made.queries(x_BTD, whole, turning)
        everything_BHTE = made.rebuilt(q_BHTE, latent_BTC, whole, turning)[:, :, -new:]
        q_BHTE = made.queries(x_BTD[:, -new:], last, turning)
        rebuilt_BHTE = made.rebuilt(q_BHTE, latent_BTC, last, turning)
        absorbed_BHTE = made.absorbed(q_BHTE, latent_BTC, last, turning)
    torch.testing.assert_close(absorbed_BHTE, rebuilt_BHTE, rtol=0, atol=1e-5)
    torch.testing.assert_close(absorbed_BHTE, everything_BHTE, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_a_decoder_of_it_keeps_the_contract(name):
    hold(decoder(PARTS[name]))


def test_a_bias_on_scores_reaches_both_forms():
    hold(decoder(PARTS["low-rank queries"], position=ALiBi()))


def test_decoding_rebuilds_no_key_and_no_value():
    spec = decoder(PARTS["low-rank queries"])
    model, ids_BT = drawn(spec), torch.randint(40, (2, T))
    with torch.inference_mode():
        expected_BTV = model(ids_BT)
        cache = model.start()
        model(ids_BT[:, : T - 3], cache=cache)
        for block in model.blocks:
            block.attention.kv_up.register_forward_pre_hook(lambda *_: pytest.fail("rebuilt"))
        for t in range(T - 3, T):
            logits_BTV = model(ids_BT[:, t : t + 1], cache=cache)
            torch.testing.assert_close(logits_BTV[:, 0], expected_BTV[:, t], rtol=1e-4, atol=1e-5)
    assert [set(layer) for layer in cache.layers] == [{"latent"}] * 2
    assert cache.layers[0]["latent"].shape == (2, T, 12 + 4)


def test_of_both_forms_the_cheaper_one_is_taken():
    """A long prompt's later pieces are rebuilt when many tokens share the work, absorbed when few do."""
    part = MLA(n_heads=2, d_head=8, rank=32, rope_dim=4)
    made = build(part, D)
    for start, new in ((64, 1), (64, 5), (64, 300), (3, 40), (0, 9), (0, 1)):
        frame = Frame((1, new), torch.device("cpu"), start)
        rebuilding = 2 * part.n_heads * part.rank * (part.d_head + part.value_width)
        rebuilt = frame.S * rebuilding + new * part.mixing_flops(frame.S)
        absorbed = new * rebuilding + new * part.decode_flops(frame.S)
        assert made.absorbs(frame) == (absorbed <= rebuilt and start > 0), (start, new)


@pytest.mark.parametrize("name", PARTS)
def test_declared_flops_are_the_counted_ones(name):
    spec = decoder(PARTS[name])
    model, ids_BT = drawn(spec), torch.zeros(2, 9, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(ids_BT, ids_BT).backward()
    assert counter.get_total_flops() == (spec.flops_per_token(9) + spec.head_flops_per_token) * ids_BT.numel()
    with torch.no_grad():
        cache = model.start()
        model(ids_BT, cache=cache)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(ids_BT[:, :1], cache=cache)
    assert counter.get_total_flops() == 2 * spec.decode_flops(10)


def test_what_is_declared_is_what_autograd_keeps():
    """One layer in fp32, values as wide as keys, so that none are widened for the CPU's kernel."""
    spec = decoder(MLA(n_heads=4, d_head=12, rank=24, rope_dim=4, q_rank=20, d_value=16), ffn=None)
    model, own = drawn(spec), {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            own[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x_BTD = torch.randn(2, 64, D, requires_grad=True)
    frame = Frame((2, 64), x_BTD.device)
    with plainly(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.blocks[0](x_BTD, frame)
    shared = 2 * 64 * 4 * 4  # cosines and sines
    counted = sum(tensor.untyped_storage().nbytes() for tensor in own.values()) - shared
    job = Job(model=spec, seq_len=64, batch_tokens=128, precision="fp32")
    assert kept(spec.blocks[0], job, Layout(micro_batch=2), "cpu").stored == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_finite_differences(name):
    made = module(PARTS[name]).double()
    names = [name for name, _ in made.named_parameters()]
    frame, turning = Frame((1, 4), torch.device("cpu")), build(RoPE(), D)

    def forward(x_BTD: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, weights, strict=True)), (x_BTD, frame, turning))

    x_BTD = torch.randn(1, 4, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (x_BTD, *made.parameters()), fast_mode=True)


def test_a_parametrisation_reaches_its_scores():
    part = PARTS["low-rank queries"]
    scaled = build(decoder(part, parametrisation=CompleteP(base_width=D, base_head=3, base_depth=2)), D)
    assert scaled.blocks[0].attention.scale == pytest.approx(part.key_width**-0.5 * (3 / 12) ** 0.5)


def test_values_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"MLA.eps is 0.0; it must be above 0"):
        replace(PARTS["narrow values"], eps=0)
