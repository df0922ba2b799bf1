"""Multi-token prediction: transformers' numbers, no look at other documents, drafts as in training, declared costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from nachim.evaluate.bpb import Windows, measure
from nachim.model import DecoderModule
from nachim.model.cache import documents_of
from nachim.model.decoder import role
from nachim.model.mtp import NONE, further
from nachim.spec import MLA, MTP, Decoder, LayerNorm, Muon, Pattern, PostNorm, SwiGLU, UserError
from nachim.train.optimizer import build_optimizer
from tests.model.contract import drawn, hold
from tests.model.deepseek import theirs
from tests.spec.examples import decoder

T = 14
DEEP = decoder(mtp=MTP(depth=3, weight=0.5), d_model=16, n_heads=2, n_kv_heads=1, vocab_size=40)
SHAPES = {
    "one module": replace(DEEP, mtp=MTP()),
    "three modules": DEEP,
    "tied, without a last norm": replace(DEEP, mtp=MTP(depth=2), tied=True, residual=PostNorm(), norm=LayerNorm()),
    "the last of two kinds": replace(
        DEEP,
        mtp=MTP(depth=2),
        attention=Pattern(parts=(DEEP.attention, MLA(n_heads=2, d_head=8, rank=6, rope_dim=4))),
        ffn=Pattern(parts=(SwiGLU(d_ff=20), SwiGLU(d_ff=12))),
    ),
}


def streams(model: DecoderModule, ids_BT: Tensor, depths: int, documents_BT: Tensor | None = None) -> list[Tensor]:
    """The decoder's stream, and that of each module of the first `depths`, of all tokens that it can read."""
    found = [model.stream(ids_BT, documents_BT)]
    for depth in range(1, depths + 1):
        next_BT = ids_BT[:, depth:]
        documents = None if documents_BT is None else documents_BT[:, : next_BT.shape[1]]
        found.append(model.ahead(found[-1][:, : next_BT.shape[1]], next_BT, documents, depth=depth))
    return found


def test_the_modules_are_those_of_transformers():
    """DeepSeek-V3 with three modules; its matrix takes the embedding before the stream, ours after it."""
    part = MLA(n_heads=4, d_head=8, rank=12, rope_dim=4, q_rank=10, d_value=6)
    spec = Decoder(
        vocab_size=40, d_model=24, n_layers=2, attention=part, ffn=SwiGLU(d_ff=20), mtp=MTP(depth=3, weight=0.5)
    )
    config = DeepseekV3Config(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=12,
        q_lora_rank=10,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        first_k_dense_replace=2,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=5,
        num_mtp_layers=3,
        max_position_embeddings=64,
        pad_token_id=None,
        attn_implementation="eager",
    )
    ours, main = drawn(spec), DeepseekV3ForCausalLM(config).eval()
    modules = MtpModel(main, 3).eval()
    for layer in modules.layers:  # a module's block is like the decoder's last: here a dense one
        layer.mtp_block.mlp = type(main.model.layers[0].mlp)(config)
    weights = {name: weight.detach() for name, weight in ours.named_parameters()}
    main.load_state_dict(translated(part, weights, "blocks.", "model.layers."))
    told = modules.load_state_dict(translated(part, weights, "mtp.", "layers."), strict=False)
    assert not told.unexpected_keys
    assert set(told.missing_keys) == {"embed_tokens.weight", "shared_head.weight"}

    ids_BT = torch.randint(40, (1, T))
    with torch.no_grad():
        state_BTD = main.model(ids_BT).last_hidden_state
        torch.testing.assert_close(ours.normed(ours.stream(ids_BT)), state_BTD, rtol=1e-4, atol=1e-5)
        for depth, x_BTD in enumerate(streams(ours, ids_BT, 3)[1:], 1):
            tokens = ids_BT.shape[1] - depth
            positions_BT, cache = torch.arange(depth, depth + tokens)[None], MtpCache()
            state_BTD = modules.forward_layer(
                depth - 1, state_BTD[:, :tokens], positions_BT, cache, input_ids=ids_BT[:, depth:]
            )
            expected_BTV = modules._project_to_logits(state_BTD)
            torch.testing.assert_close(ours.logits(x_BTD, depth), expected_BTV, rtol=1e-4, atol=1e-4)


def translated(part: MLA, weights: dict[str, Tensor], ours: str, layers: str) -> dict[str, Tensor]:
    """The weights whose names begin with `ours`, and with the decoder's what stands around, by transformers' names."""
    outer = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    inner = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn.down": "mlp.down_proj"}
    beside = {"stream_norm": "hnorm", "token_norm": "enorm", "norm": "post_norm"}
    found = {f"{outer[n]}.weight": w for name, w in weights.items() if (n := name.removesuffix(".weight")) in outer}
    found = found if ours == "blocks." else {}
    for name, weight in weights.items():
        if not name.startswith(ours):
            continue
        number, rest = name.removeprefix(ours).removesuffix(".weight").split(".", 1)
        block = f"{layers}{number}." + "mtp_block." * (ours == "mtp.")
        rest = rest.removeprefix("block.")
        if rest == "join":
            found[f"{layers}{number}.eh_proj.weight"] = weight.roll(weight.shape[0], 1)
        elif ours == "mtp." and rest in beside:
            found[f"{layers}{number}.{beside[rest]}.weight"] = weight
        elif rest == "ffn.gate_up":
            for half, matrix in zip(("gate", "up"), weight.chunk(2), strict=True):
                found[f"{block}mlp.{half}_proj.weight"] = matrix
        elif rest in inner:
            found[f"{block}{inner[rest]}.weight"] = weight
        else:
            (one,) = theirs(part, {rest.removeprefix("attention.") + ".weight": weight}).items()
            found[f"{block}self_attn.{one[0]}"] = one[1]
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_a_decoder_with_modules_keeps_the_contract(name):
    hold(SHAPES[name])


def added_loss(model: DecoderModule, sequences: list[Tensor]) -> Tensor:
    """What the modules add to the loss over some sequences [1, T + 1], by hand: at i module k says token i + k + 1."""
    mtp, total = model.spec.mtp, torch.zeros(())
    for depth in range(1, mtp.depth + 1):
        nats = []
        for ids_BT in sequences:
            last = ids_BT.shape[1] - depth - 1
            if last > 0:
                logits_BTV = model.logits(streams(model, ids_BT, depth)[depth][:, :last], depth)
                nats.append(-logits_BTV.log_softmax(-1)[0, range(last), ids_BT[0, depth + 1 :]])
        total = total + mtp.weight / mtp.depth * torch.cat(nats).mean()
    return total


def main_loss(model: DecoderModule, ids_BT: Tensor) -> Tensor:
    """The decoder's own."""
    return F.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())


@pytest.mark.parametrize("name", SHAPES)
def test_the_loss_is_the_decoders_and_the_weighted_mean_of_the_modules(name):
    """Its value is the decoder's alone, its gradient that of both."""
    model, ids_BT = drawn(SHAPES[name]), torch.randint(40, (3, T + 1))
    main, added = main_loss(model, ids_BT), added_loss(model, list(ids_BT.split(1)))
    loss = model.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    torch.testing.assert_close(loss, main)
    weights = list(model.parameters())
    wanted = torch.autograd.grad(main + added, weights)
    for found, expected in zip(torch.autograd.grad(loss, weights), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_no_module_looks_into_another_document(name):
    """Packed documents cost what they cost alone, be they shorter than a module looks ahead."""
    model, ids_BT = drawn(SHAPES[name]), torch.randint(40, (1, T + 1))
    lengths = (5, 1, 6, 2)
    documents_BT = torch.repeat_interleave(torch.tensor([3, 8, 5, 0]), torch.tensor(lengths))[None]
    pieces = list(ids_BT.split((*lengths[:-1], lengths[-1] + 1), 1))
    found = model.further_loss(model.stream(ids_BT[:, :-1], documents_BT), ids_BT[:, 1:], documents_BT)
    torch.testing.assert_close(found, added_loss(model, pieces))


def test_what_a_module_is_given_and_is_to_say():
    targets_BT = torch.tensor([[11, 12, 13, 14, 15]])
    documents_BT = torch.tensor([[1, 1, 1, 0, 0]])
    next_BT, wanted_BT = further(targets_BT, None, 1)
    assert torch.equal(next_BT, targets_BT)
    assert wanted_BT.tolist() == [[12, 13, 14, 15, NONE]]
    assert further(targets_BT, documents_BT, 1)[1].tolist() == [[12, NONE, NONE, 15, NONE]]
    next_BT, wanted_BT = further(targets_BT, None, 3)
    assert next_BT.tolist() == [[13, 14, 15, 15, 15]]
    assert wanted_BT.tolist() == [[14, 15, NONE, NONE, NONE]]
    assert further(targets_BT, documents_BT, 3)[1].tolist() == [[NONE] * 5]
    assert further(targets_BT, torch.tensor([[1, 0, 1, 1, 1]]), 1)[1].tolist() == [[NONE, NONE, 14, 15, NONE]]


def test_a_sequence_too_short_for_any_module_adds_nothing():
    model, ids_BT = drawn(DEEP), torch.randint(40, (2, 2))
    assert model.further_loss(model.stream(ids_BT[:, :-1]), ids_BT[:, 1:]) == 0


DOCUMENTS = {
    "one document": None,
    "packed": torch.tensor([[4] * 5 + [2] * (T - 5), [0] * (T - 2) + [1] * 2]),
    "left padding": documents_of(torch.tensor([[0] * 3 + [1] * (T - 3), [1] * T])),
}


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("name", SHAPES)
def test_drafts_are_what_training_computes(name, documents):
    """Read in pieces, with a cache of the decoder's and one of each module's own."""
    model, ids_BT, documents_BT = drawn(SHAPES[name]), torch.randint(40, (2, T)), DOCUMENTS[documents]
    with torch.inference_mode():
        expected = streams(model, ids_BT, model.spec.mtp.depth, documents_BT)
        logits_BTV = model.logits(expected[1], 1)
        cache, drafts = model.start(), model.start(1)
        assert len(drafts.layers) == 1
        first, found = 0, []
        for count in (6, 1, 2, 1, T - 11):
            piece, after = slice(first, first + count), slice(first + 1, first + count + 1)
            numbers_BT = None if documents_BT is None else documents_BT[:, piece]
            x_BTD = model.stream(ids_BT[:, piece], numbers_BT, cache)
            logits_BV = model.draft(x_BTD, ids_BT[:, after], drafts, numbers_BT)
            first += count
            torch.testing.assert_close(logits_BV, logits_BTV[:, first - 1], rtol=1e-4, atol=1e-4)
            found.append(x_BTD)
        for depth in range(2, model.spec.mtp.depth + 1):
            drafts, parts = model.start(depth), []
            for piece in torch.arange(T - depth).split((5, 1, 3, T - depth - 9)):
                numbers_BT = None if documents_BT is None else documents_BT[:, piece]
                x_BTD, next_BT = expected[depth - 1][:, piece], ids_BT[:, piece + depth]
                parts.append(model.ahead(x_BTD, next_BT, numbers_BT, drafts, depth=depth))
            torch.testing.assert_close(torch.cat(parts, 1), expected[depth], rtol=1e-4, atol=1e-4)


def test_a_decoder_that_drafts_for_itself_writes_what_it_writes_alone():
    """Greedy: two tokens a pass where the draft is what the decoder says too."""
    model, prompt_BT = drawn(replace(DEEP, mtp=MTP())), torch.randint(40, (1, 5))
    with torch.no_grad():  # a head that likes few tokens, so that some drafts are right
        model.head.weight[3:] *= 0.1
    with torch.inference_mode():
        plain, cache = prompt_BT, model.start()
        logits_BTV = model(prompt_BT, cache=cache)
        for _ in range(24):
            next_BT = logits_BTV[:, -1:].argmax(-1)
            plain, logits_BTV = torch.cat((plain, next_BT), 1), model(next_BT, cache=cache)
        written, right = self_drafted(model, prompt_BT, 24)
    assert torch.equal(written[:, : plain.shape[1]], plain)
    assert 0 < right < 24


def self_drafted(model: DecoderModule, prompt_BT: Tensor, tokens: int) -> tuple[Tensor, int]:
    """At least `tokens` more tokens, and how many of their drafts were right; after a wrong one the cache goes back."""
    written, cache, drafts, right = prompt_BT, model.start(), model.start(1), 0
    x_BTD = model.stream(prompt_BT, cache=cache)
    sure_BT = model.logits(x_BTD[:, -1:]).argmax(-1)
    while written.shape[1] < prompt_BT.shape[1] + tokens:
        written = torch.cat((written, sure_BT), 1)
        draft_BT = model.draft(x_BTD, written[:, -x_BTD.shape[1] :], drafts).argmax(-1)[:, None]
        before = cache.select(torch.tensor([0]))
        x_BTD = model.stream(torch.cat((sure_BT, draft_BT), 1), cache=cache)
        said_BT = model.logits(x_BTD).argmax(-1)
        if said_BT[0, 0] == draft_BT[0, 0]:
            written, sure_BT, right = torch.cat((written, draft_BT), 1), said_BT[:, 1:], right + 1
        else:
            cache = before
            x_BTD = model.stream(sure_BT, cache=cache)
            sure_BT = said_BT[:, :1]
    return written, right


@pytest.mark.parametrize("seq_len", [1, 9])
@pytest.mark.parametrize("name", SHAPES)
def test_declared_flops_are_the_counted_ones(name, seq_len):
    spec, ids_BT = SHAPES[name], torch.zeros(2, seq_len, dtype=torch.int64)
    model = drawn(spec)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(ids_BT, ids_BT).backward()
    declared = spec.flops_per_token(seq_len) + spec.head_flops_per_token
    assert counter.get_total_flops() == declared * ids_BT.numel()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids_BT)
    forward = 2 * spec.matmul_params + spec.mixing_flops(seq_len) + spec.logit_flops
    assert counter.get_total_flops() == forward * ids_BT.numel()


def test_validation_measures_the_decoder_alone():
    model = drawn(DEEP)
    alone = drawn(replace(DEEP, mtp=None))
    alone.load_state_dict({name: w for name, w in model.state_dict().items() if not name.startswith("mtp.")})
    windows = Windows(torch.randint(40, (3, T + 1)).numpy(), 50)
    assert measure(model, windows) == measure(alone, windows)


def test_optimizers_take_a_module_for_what_it_is():
    weights = dict(drawn(DEEP).named_parameters())
    muon = build_optimizer(Muon(lr=0.01), weights, DEEP).members["muon"]
    taken = {id(weight) for group in muon.param_groups for weight in group["params"]}
    assert id(weights["mtp.1.join.weight"]) in taken
    assert id(weights["mtp.2.block.ffn.down.weight"]) in taken
    assert id(weights["head.weight"]) not in taken
    assert role("mtp.0.norm.weight", weights["mtp.0.norm.weight"]) == "last gain"
    assert role("mtp.0.stream_norm.weight", weights["mtp.0.stream_norm.weight"]) == "gain"
    assert role("mtp.0.join.weight", weights["mtp.0.join.weight"]) == "hidden"


def test_a_module_that_is_not_there_is_refused():
    x_BTD, ids_BT = torch.zeros(1, 2, 16), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(UserError, match="no module that looks 4 further: its mtp is MTP"):
        drawn(DEEP).ahead(x_BTD, ids_BT, depth=4)
    with pytest.raises(UserError, match="no module that looks 1 further: its mtp is None"):
        drawn(replace(DEEP, mtp=None)).draft(x_BTD, ids_BT)
