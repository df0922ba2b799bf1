"""Mixtures of experts: transformers' blocks, a plain loop over tokens, and what keeps their loads even."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from nachim.model import build
from nachim.model.decoder import initialise, tensors
from nachim.model.moe import MoEModule
from nachim.model.router import balance
from nachim.spec import MoE, UserError
from tests.spec.examples import CLIPPED, EXPERTS, decoder

D, F, X = 16, 12, 8
SHAPE = {"hidden_size": D, "num_experts_per_tok": 3, "num_attention_heads": 2}
MANY = {**SHAPE, "moe_intermediate_size": F, "num_experts": X}
DEEP = {**SHAPE, "moe_intermediate_size": F, "n_routed_experts": X, "n_shared_experts": 2, "routed_scaling_factor": 2.5}
GROUPS = {"n_group": 4, "topk_group": 2}
TOP3 = MoE(d_ff=F, experts=X, active=3)
SHARED = replace(TOP3, shared=2, scale=2.5)
THEIRS = {
    "mixtral": (
        TOP3,
        MixtralSparseMoeBlock,
        MixtralConfig(**SHAPE, intermediate_size=F, num_local_experts=X),
    ),
    "qwen3": (TOP3, Qwen3MoeSparseMoeBlock, Qwen3MoeConfig(**MANY, norm_topk_prob=True)),
    "qwen3, scores as they are": (
        replace(TOP3, renormalise=False),
        Qwen3MoeSparseMoeBlock,
        Qwen3MoeConfig(**MANY, norm_topk_prob=False),
    ),
    "qwen2": (
        replace(TOP3, shared=2, shared_gate=True, renormalise=False),
        Qwen2MoeSparseMoeBlock,
        Qwen2MoeConfig(**MANY, shared_expert_intermediate_size=2 * F),
    ),
    "deepseek v2 lite": (replace(SHARED, renormalise=False), DeepseekV2Moe, DeepseekV2Config(**DEEP)),
    "deepseek v2": (
        replace(SHARED, renormalise=False, groups=4, top_groups=2),
        DeepseekV2Moe,
        DeepseekV2Config(**DEEP, **GROUPS, topk_method="group_limited_greedy"),
    ),
    "deepseek v3": (
        replace(SHARED, scores="sigmoid", groups=4, top_groups=2, group_score="top2", bias_step=0.1),
        DeepseekV3MoE,
        DeepseekV3Config(**DEEP, **GROUPS, norm_topk_prob=True),
    ),
    "deepseek v3, scores as they are": (
        replace(SHARED, scores="sigmoid", renormalise=False, bias_step=0.1),
        DeepseekV3MoE,
        DeepseekV3Config(**DEEP, n_group=1, topk_group=1, norm_topk_prob=False),
    ),
}
PARTS = {
    "switch": MoE(d_ff=F, experts=X, active=1),
    "mixtral": replace(TOP3, active=2),
    "all": EXPERTS,
    "clipped": CLIPPED,
    "one expert": MoE(d_ff=F, experts=1, active=1),
}


def built(part: MoE, seed: int = 0, dtype: torch.dtype = torch.float32) -> MoEModule:
    """The module of `part` with random weights, and biases that change what is chosen."""
    module, generator = build(part, D).to(dtype), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
        if module.router.selection_bias is not None:
            module.router.selection_bias.normal_(std=0.3, generator=generator)
    return module


def translated(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of transformers' blocks."""
    names = {
        "router.weight": "gate.weight",
        "router.selection_bias": "gate.e_score_correction_bias",
        "experts.gate_up.weight": "experts.gate_up_proj",
        "experts.down.weight": "experts.down_proj",
        "shared_gate.weight": "shared_expert_gate.weight",
    }
    shared = "shared_expert." if "shared_gate.weight" in ours else "shared_experts."
    found = {names[name]: tensor for name, tensor in ours.items() if name in names}
    if "shared.gate_up.weight" in ours:
        gate, up = ours["shared.gate_up.weight"].chunk(2)
        down = ours["shared.down.weight"]
        found |= {shared + "gate_proj.weight": gate, shared + "up_proj.weight": up, shared + "down_proj.weight": down}
    return found


@pytest.mark.parametrize("name", THEIRS)
def test_answers_and_gradients_are_those_of_transformers(name):
    part, kind, config = THEIRS[name]
    config._experts_implementation = "eager"
    ours, reference = built(part), kind(config)
    told = reference.load_state_dict(translated(tensors(ours)))
    assert not told.missing_keys and not told.unexpected_keys
    x_BTD = torch.randn(2, 9, D, requires_grad=True)
    x_copy = x_BTD.detach().clone().requires_grad_()
    answer_BTD, expected = ours(x_BTD), reference(x_copy)
    close(answer_BTD, expected)
    weigh = torch.randn_like(expected)
    (answer_BTD * weigh).sum().backward()
    (expected * weigh).sum().backward()
    close(x_BTD.grad, x_copy.grad)
    gradients = translated({key: weight.grad for key, weight in ours.named_parameters()})
    for key, weight in reference.named_parameters():
        close(gradients[key], weight.grad)


def close(found: Tensor, expected: Tensor) -> None:
    """Equal within 1e-5 of the scale."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def one_by_one(module: MoEModule, x_BTD: Tensor) -> Tensor:
    """The same module, a token at a time and an expert at a time."""
    part, found = module.part, []
    gates, chosen = module.router(x_BTD)
    up, down = module.experts.gate_up.weight, module.experts.down.weight
    for x_D, gates_A, chosen_A in zip(x_BTD.flatten(0, 1), gates.flatten(0, 1), chosen.flatten(0, 1), strict=True):
        y_D = torch.zeros_like(x_D)
        for gate, expert in zip(gates_A, chosen_A, strict=True):
            hidden = up[expert] @ x_D
            if part.bias:
                hidden = hidden + module.experts.gate_up.bias[expert]
            left, right, sharp = hidden[: part.d_ff], hidden[part.d_ff :], 1.0
            if part.limit is not None:
                left, right, sharp = left.clip(max=part.limit), right.clip(-part.limit, part.limit) + 1, 1.702
            answer = down[expert] @ (left / (1 + torch.exp(-sharp * left)) * right)
            y_D = y_D + gate * (answer + module.experts.down.bias[expert] if part.bias else answer)
        if part.shared:
            weigh = torch.sigmoid(module.shared_gate(x_D)) if part.shared_gate else 1
            y_D = y_D + weigh * module.shared(x_D)
        found.append(y_D)
    return torch.stack(found).view_as(x_BTD)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_sorted_rows_give_what_a_loop_over_tokens_gives(part):
    module = built(part, dtype=torch.float64)
    x_BTD = torch.randn(2, 7, D, dtype=torch.float64, requires_grad=True)
    answers, gradients = [], []
    for forward in (module, lambda x: one_by_one(module, x)):
        module.zero_grad()
        x_BTD.grad = None
        answers.append(forward(x_BTD))
        answers[-1].square().sum().backward()
        gradients.append([x_BTD.grad, *(weight.grad for weight in module.parameters())])
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-10, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_kernel_gives_what_the_slices_give(dtype):
    part = MoE(d_ff=24, experts=4, active=2)
    stack, load_X = built(part, dtype=dtype).experts.gate_up, torch.tensor([3, 0, 7, 1])
    assert stack.aligned()
    assert not built(replace(part, d_ff=5), dtype=dtype).experts.down.aligned()
    x_RD = torch.randn(11, D).to(dtype).requires_grad_()
    found = []
    for multiply in (stack, stack.grouped):
        stack.weight.grad = x_RD.grad = None
        y_RF = multiply(x_RD, load_X)
        (y_RF * torch.arange(11)[:, None].to(dtype)).sum().backward()
        found.append((y_RF, x_RD.grad, stack.weight.grad))
    for one, other in zip(*found, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_gradients_are_the_finite_differences(part):
    module = built(replace(part, balance_loss=0.0, z_loss=0.0), dtype=torch.float64)
    x_BTD = torch.randn(1, 3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x_BTD, fast_mode=True)
    router = module.router.weight
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(module, {"router.weight": weight}, (x_BTD.detach(),)),
        router,
        fast_mode=True,
    )


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_declared_costs_are_the_counted_ones(part):
    spec = decoder(ffn=part)
    model, tokens = build(spec, spec.d_model), 14
    with FlopCounterMode(display=False) as counter:
        model.blocks[0].ffn(torch.randn(2, 7, spec.d_model, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == part.flops_per_token(spec.d_model) * tokens
    assert sum(weight.numel() for weight in model.parameters()) == spec.params_total
    expert = sum(weight[0].numel() for weight in model.blocks[0].ffn.experts.parameters())
    assert spec.params_total - spec.params_active == spec.n_layers * (part.experts - part.active) * expert


def test_no_token_is_dropped_when_all_choose_one_expert():
    module = built(MoE(d_ff=F, experts=X, active=1))
    x_BTD = torch.randn(2, 9, D).abs()
    with torch.no_grad():
        module.router.weight.zero_()
        module.router.weight[5] = 1.0
    gates_BTA, chosen_BTA = module.router(x_BTD)
    assert (chosen_BTA == 5).all()
    gate_up, down = module.experts.gate_up.weight[5], module.experts.down.weight[5]
    gate, up = (x_BTD @ gate_up.T).chunk(2, -1)
    torch.testing.assert_close(module(x_BTD), gates_BTA * ((nn.functional.silu(gate) * up) @ down.T))


def test_the_sole_expert_of_a_token_counts_by_its_score():
    x_BTD = torch.randn(1, 5, D)
    module = built(PARTS["switch"])
    gates_BTA, chosen_BTA = module.router(x_BTD)
    scores_BTX = (x_BTD @ module.router.weight.T).softmax(-1)
    torch.testing.assert_close(gates_BTA, scores_BTX.amax(-1, keepdim=True))
    assert torch.equal(chosen_BTA, scores_BTX.argmax(-1, keepdim=True))
    forced = built(replace(PARTS["switch"], renormalise=True))
    torch.testing.assert_close(forced.router(x_BTD)[0], torch.ones(1, 5, 1))


def test_groups_limit_where_a_token_goes():
    part = replace(TOP3, groups=4, top_groups=2)
    chosen_BTA = built(part).router(torch.randn(3, 50, D))[1]
    assert max(len(set(row)) for row in (chosen_BTA // 2).flatten(0, 1).tolist()) == 2
    free = built(TOP3).router(torch.randn(3, 50, D))[1]
    assert max(len(set(row)) for row in (free // 2).flatten(0, 1).tolist()) == 3


def test_the_balance_loss_is_that_of_transformers_for_one_choice_and_several():
    logits_TX = torch.randn(40, X)
    for active in (1, 2, 3):
        scores = logits_TX.softmax(-1)
        found = balance(scores[None], scores.topk(active, -1).indices[None])
        theirs = load_balancing_loss_func((logits_TX,), X, active)
        torch.testing.assert_close(found, theirs / active)  # they add up over the choices


def test_the_balance_loss_is_one_for_even_loads_and_the_experts_for_a_single_one():
    even = torch.eye(X).softmax(-1)[None]
    torch.testing.assert_close(balance(even, torch.arange(X)[None, :, None]), torch.tensor(1.0))
    alone = torch.zeros(1, 6, X)
    alone[..., 2] = 1.0
    torch.testing.assert_close(balance(alone, torch.full((1, 6, 1), 2)), torch.tensor(float(X)))


@pytest.mark.parametrize("over", ["batch", "sequence"])
def test_auxiliary_losses_are_their_formulas(over):
    part = MoE(d_ff=F, experts=X, active=2, scores="sigmoid", balance_loss=0.3, balance_over=over, z_loss=0.7)
    module, x_BTD = built(part), torch.randn(3, 5, D)
    module(x_BTD)
    logits = x_BTD @ module.router.weight.T
    scores = torch.sigmoid(logits)
    rows = [list(range(5 * b, 5 * b + 5)) for b in range(3)] if over == "sequence" else [list(range(15))]
    expected = torch.zeros(())
    for row in rows:
        one = scores.flatten(0, 1)[row]
        mean_X = (one / one.sum(-1, keepdim=True)).mean(0)
        counts = [sum(expert in token.topk(2).indices for token in one) for expert in range(X)]
        share = X / (2 * len(row)) * torch.tensor(counts)
        expected = expected + 0.3 * (share * mean_X).sum() / len(rows)
    expected = expected + 0.7 * logits.exp().sum(-1).log().square().mean()
    torch.testing.assert_close(module.router.auxiliary, expected)


def trained(part: MoE, seed: int = 0) -> nn.Module:
    """A drawn decoder of two layers of `part` whose head says something."""
    spec = decoder(ffn=part)
    model = build(spec, spec.d_model)
    initialise(model, seed)
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return model


def test_auxiliary_losses_reach_the_gradient_and_leave_the_value_alone():
    plain, ids_BT = MoE(d_ff=F, experts=X, active=2), torch.randint(300, (2, 9))
    models = [trained(part) for part in (plain, replace(plain, balance_loss=0.5, z_loss=0.1))]
    losses = [model.loss(ids_BT[:, :-1], ids_BT[:, 1:]) for model in models]
    assert losses[0].item() == losses[1].item()
    for loss in losses:
        loss.backward()
    model = models[1]
    model.zero_grad()
    model(ids_BT[:, :-1])
    added = torch.autograd.grad(
        sum(block.ffn.router.auxiliary for block in model.blocks), model.blocks[0].ffn.router.weight
    )[0]
    model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    plain_gradient = models[0].blocks[0].ffn.router.weight.grad
    assert added.abs().max() > 0
    torch.testing.assert_close(model.blocks[0].ffn.router.weight.grad, plain_gradient + added, rtol=1e-4, atol=1e-6)


def test_what_does_not_train_leaves_no_trace():
    model, ids_BT = trained(EXPERTS), torch.randint(300, (2, 9))
    model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    loads = [block.ffn.router.load.clone() for block in model.blocks]
    assert [int(load.sum()) for load in loads] == [2 * 8 * EXPERTS.active] * 2
    with torch.inference_mode():
        model(ids_BT)
    model.eval()
    model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    for load, block in zip(loads, model.blocks, strict=True):
        assert torch.equal(block.ffn.router.load, load)
        assert block.ffn.router.auxiliary is None


def test_biases_move_towards_even_loads_and_are_not_part_of_gates():
    part = MoE(d_ff=F, experts=4, active=2, bias_step=0.25)
    module = built(part)
    router = module.router
    router.selection_bias.zero_()
    router.load += torch.tensor([8, 2, 5, 5])
    assert router.after_step().item() == pytest.approx(8 / 5)
    assert router.selection_bias.tolist() == [-0.25, 0.25, 0.0, 0.0]
    assert not router.load.any()
    x_BTD = torch.randn(1, 30, D)
    with torch.no_grad():
        router.selection_bias.copy_(torch.tensor([0.0, 9.0, 9.0, 0.0]))
    gates_BTA, chosen_BTA = router(x_BTD)
    assert set(chosen_BTA.flatten().tolist()) == {1, 2}
    scores = (x_BTD @ router.weight.T).softmax(-1).gather(-1, chosen_BTA)
    torch.testing.assert_close(gates_BTA, scores / scores.sum(-1, keepdim=True))


def test_biases_may_move_by_how_far_loads_are_off():
    router = built(MoE(d_ff=F, experts=4, active=2, bias_step=0.25, bias_by="share")).router
    router.selection_bias.zero_()
    router.load += torch.tensor([8, 2, 5, 5])
    router.after_step()
    router.after_step()  # which saw nothing
    torch.testing.assert_close(router.selection_bias, 0.25 * torch.tensor([-3 / 5, 3 / 5, 0.0, 0.0]))


def test_a_step_tells_its_worst_layer_and_forgets_it():
    model = trained(MoE(d_ff=F, experts=4, active=1, bias_step=0.1))
    for block, load in zip(model.blocks, ([6, 2, 0, 0], [2, 2, 2, 2]), strict=True):
        block.ffn.router.load += torch.tensor(load)
    assert model.after_step() == {"imbalance": pytest.approx(3.0)}
    assert model.after_step() == {"imbalance": 0.0}
    assert build(decoder(), 32).after_step() == {}


def test_biases_stay_fp32_whatever_the_weights_become():
    module = built(MoE(d_ff=F, experts=4, active=2, bias_step=0.001))
    before = module.router.selection_bias.clone()
    module.to(torch.bfloat16)
    assert module.router.weight.dtype == torch.bfloat16
    assert torch.equal(module.router.selection_bias, before)
    gates_BTA, _ = module.router(torch.randn(1, 3, D).bfloat16())
    assert gates_BTA.dtype == torch.float32
    assert module(torch.randn(1, 3, D).bfloat16()).dtype == torch.bfloat16


def test_every_expert_is_drawn_with_the_spread_of_a_matrix():
    spec = decoder(ffn=MoE(d_ff=64, experts=4, active=2), d_model=64, n_layers=2)
    model = build(spec, 64)
    initialise(model, 0)
    weights = dict(model.named_parameters())
    for expert in range(4):
        assert weights["blocks.0.ffn.experts.gate_up.weight"][expert].std().item() == pytest.approx(1 / 8, rel=0.1)
        assert weights["blocks.0.ffn.experts.down.weight"][expert].std().item() == pytest.approx(1 / 16, rel=0.1)
    assert weights["blocks.0.ffn.router.weight"].std().item() == pytest.approx(1 / 8, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"groups": 3}, "MoE.groups is 3; it must divide experts=8"),
        ({"groups": 4, "top_groups": 5}, "MoE.top_groups is 5; there are only groups=4"),
        ({"groups": 4}, "MoE.active is 3; top_groups=1 of 2 experts hold fewer"),
        ({"groups": 8, "top_groups": 4, "group_score": "top2"}, "leaves one expert in each"),
        ({"active": 9}, "MoE.active is 9; there are only experts=8"),
        ({"bias_step": -0.1}, "MoE.bias_step is -0.1; it must not be negative"),
        ({"bias_by": "share"}, "MoE.bias_by is 'share', which needs a bias_step"),
        ({"z_loss": -1.0}, "MoE.z_loss is -1.0; it must not be negative"),
        ({"shared_gate": True}, "MoE.shared_gate is set without shared experts"),
        ({"shared": 1, "bias": True}, "MoE.shared is 1; shared experts have neither bias nor limit"),
        ({"limit": 0.0}, "MoE.limit is 0.0; it must be above 0"),
        ({"scores": "tanh"}, "MoE.scores is 'tanh'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, said):
    with pytest.raises(UserError) as caught:
        replace(TOP3, **changes)
    assert said in str(caught.value)
