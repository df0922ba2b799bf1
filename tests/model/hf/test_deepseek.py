"""DeepSeek-V2 and V3 against transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV2Config, DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

import nachim
from nachim.model.decoder import tensors
from nachim.model.hf import config_for, open_checkpoint, read_config, write_checkpoint
from nachim.model.hf.source import Source, save
from nachim.spec import MTP, UserError
from nachim.spec.known import known
from tests.model.contract import drawn
from tests.model.hf.parity import SMALL, TOLERANCE, hold, hold_bitwise, reference

LATENT = SMALL | {
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
YARN |= {"beta_fast": 32, "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 1.1}
GROUPS = {"n_group": 4, "topk_group": 2}
CONFIGS = {
    "V2, groups, YaRN": DeepseekV2Config(
        **LATENT, **GROUPS, topk_method="group_limited_greedy", rope_parameters=YARN, rms_norm_eps=1e-5
    ),
    "V2 Lite, tied, experts everywhere": DeepseekV2Config(
        **LATENT | {"q_lora_rank": None, "first_k_dense_replace": 0, "tie_word_embeddings": True}
    ),
    "V3, groups, YaRN": DeepseekV3Config(**LATENT, **GROUPS, rope_parameters=YARN),
    "V3, one group, gates as they are": DeepseekV3Config(
        **LATENT | {"q_lora_rank": None}, n_group=1, topk_group=1, norm_topk_prob=False
    ),
    "V3, halves, no experts": DeepseekV3Config(**LATENT | {"first_k_dense_replace": 2}, rope_interleave=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


SHAPE = {"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02}
SHAPE |= {"kv_lora_rank": 512, "max_position_embeddings": 163_840, "moe_layer_freq": 1, "num_attention_heads": 128}
SHAPE |= {"num_key_value_heads": 128, "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128}
SHAPE |= {"qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10_000, "tie_word_embeddings": False}
SHAPE |= {"torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128, "n_group": 8}
PUBLISHED = {
    "deepseek-v2": SHAPE
    | {"model_type": "deepseek_v2", "aux_loss_alpha": 0.001, "first_k_dense_replace": 1, "hidden_size": 5120}
    | {"intermediate_size": 12_288, "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2}
    | {"norm_topk_prob": False, "num_experts_per_tok": 6, "num_hidden_layers": 60, "routed_scaling_factor": 16.0}
    | {"rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707}}
    | {"scoring_func": "softmax", "seq_aux": True, "topk_group": 3, "topk_method": "group_limited_greedy"}
    | {"vocab_size": 102_400},
    "deepseek-v3": SHAPE
    | {"model_type": "deepseek_v3", "ep_size": 1, "first_k_dense_replace": 3, "hidden_size": 7168}
    | {"intermediate_size": 18_432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1}
    | {"norm_topk_prob": True, "num_experts_per_tok": 8, "num_hidden_layers": 61, "routed_scaling_factor": 2.5}
    | {"rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}}
    | {"scoring_func": "sigmoid", "topk_group": 4, "topk_method": "noaux_tc", "num_nextn_predict_layers": 1}
    | {"vocab_size": 129_280},
}
for values in PUBLISHED.values():
    values["rope_scaling"] |= {"original_max_position_embeddings": 4096, "type": "yarn"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_the_hub_are_the_published_models(name):
    _, config, decoder = read_config(PUBLISHED[name])
    assert not config.unknown
    alone = replace(decoder, mtp=None)
    for count in ("params_total", "params_active", "matmul_params"):
        assert getattr(alone, count) == getattr(known(name).decoder, count)
    assert decoder.cache_bytes(1000) == known(name).decoder.cache_bytes(1000)
    kind = {"deepseek-v2": DeepseekV2Config, "deepseek-v3": DeepseekV3Config}[name]
    assert read_config(kind(**PUBLISHED[name]).to_dict())[2] == decoder
    family, values = config_for(decoder, 163_840)
    assert family.model_type == PUBLISHED[name]["model_type"]
    assert read_config(values)[2] == decoder
    module = decoder.params_total - alone.params_total  # README_WEIGHTS.md of DeepSeek-V3: 11.5 B beside shared tables
    assert module == 0 if name == "deepseek-v2" else module == pytest.approx(11.5e9, rel=0.01)


def test_absent_keys_have_the_defaults_of_the_config_class():
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")
    for kind in (DeepseekV2Config, DeepseekV3Config):
        written = kind(num_experts_per_tok=8).to_dict()
        few = {key: written[key] for key in (*keys, "model_type", "num_experts_per_tok")}
        assert read_config(few)[2] == read_config(written)[2]


def test_a_decoder_that_was_trained_here_with_even_loads_is_written():
    """What keeps loads even while training is no part of a config; nor is what modules for further tokens weigh in it,
    which V2 does not have."""
    decoder = read_config(CONFIGS["V3, groups, YaRN"].to_dict())[2]
    experts = decoder.blocks[-1].ffn
    trained = replace(decoder, ffn=replace(experts, bias_step=0.001, balance_loss=1e-4, balance_over="sequence"))
    family, values = config_for(trained, 64)
    assert family.model_type == "deepseek_v3"
    assert read_config(values)[2].blocks[0].ffn == replace(experts, bias_step=0.0)
    square = replace(trained, attention=replace(trained.attention, d_value=None))
    assert config_for(square, 64)[1]["v_head_dim"] == square.attention.d_head
    family, values = config_for(replace(trained, mtp=MTP(depth=2, weight=0.1)), 64)
    assert (family.model_type, values["num_nextn_predict_layers"]) == ("deepseek_v3", 2)
    older = read_config(CONFIGS["V2, groups, YaRN"].to_dict())[2]
    with pytest.raises(UserError, match=r"mtp is MTP\(depth=1, weight=0.3\), not None"):
        config_for(replace(older, mtp=MTP()), 64)


@pytest.mark.parametrize("tied", [False, True])
def test_modules_for_further_tokens_are_those_of_transformers_and_come_back(tied, tmp_path, monkeypatch):
    """Written here, they open in transformers as its own; read again they are the same, bit for bit."""
    config = DeepseekV3Config(**LATENT, **GROUPS, rope_parameters=YARN, num_mtp_layers=2, tie_word_embeddings=tied)
    family, read, decoder = read_config(config.to_dict())
    assert decoder.mtp == MTP(depth=2)
    ours = drawn(decoder)
    save({name: held.detach() for name, held in tensors(ours).items()}, tmp_path / "ours.safetensors")
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "out", family, read.values, decoder, Source([tmp_path / "ours.safetensors"]))
    hold_bitwise(open_checkpoint(tmp_path / "out").weights(), Source([tmp_path / "ours.safetensors"]))

    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[23]\..*"])
    main = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager", dtype=torch.float32)
    modules = MtpModel.from_pretrained(main.eval()).eval()
    ids_BT = torch.arange(12)[None] * 7 % 40
    again = nachim.load(tmp_path / "out")
    with torch.no_grad():
        x_BTD, state_BTD = again.stream(ids_BT), main.model(ids_BT).last_hidden_state
        for depth in (1, 2):
            tokens = ids_BT.shape[1] - depth
            places_BT, next_BT = torch.arange(depth, depth + tokens)[None], ids_BT[:, depth:]
            x_BTD = again.ahead(x_BTD[:, :tokens], next_BT, positions=places_BT, depth=depth)
            state_BTD = modules.forward_layer(
                depth - 1, state_BTD[:, :tokens], places_BT, MtpCache(), input_ids=next_BT
            )
            expected_BTV = modules._project_to_logits(state_BTD)
            error = (again.logits(x_BTD, depth) - expected_BTV).abs().max()
            assert error <= TOLERANCE * expected_BTV.abs().max()


def test_a_module_s_copy_of_a_table_that_differs_is_refused(tmp_path):
    config = DeepseekV3Config(**LATENT, n_group=1, topk_group=1)
    family, read, decoder = read_config(config.to_dict())
    save({name: held.detach() for name, held in tensors(drawn(decoder)).items()}, tmp_path / "ours.safetensors")
    write_checkpoint(tmp_path, family, read.values, decoder, Source([tmp_path / "ours.safetensors"]))
    (tmp_path / "ours.safetensors").unlink()
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.2.shared_head.head.weight"][3, 4] += 1
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.2\.shared_head\.head\.weight differs from lm_head\.weight, which"):
        open_checkpoint(tmp_path)
    del stored["model.layers.2.shared_head.head.weight"], stored["model.layers.2.hnorm.weight"]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="2 missing"):
        open_checkpoint(tmp_path)


def test_a_checkpoint_whose_modules_were_left_out_opens_without_them(tmp_path):
    """As transformers writes it; what stands as layer 61 of fewer is of no module, and transformers passes it by."""
    model = reference(CONFIGS["V3, one group, gates as they are"])
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.61.eh_proj.weight"] = torch.zeros(32, 64)
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(tmp_path)
    assert found.config.values["num_nextn_predict_layers"] == 1
    assert found.decoder.mtp is None
    assert config_for(found.decoder, 64, found.config.values)[1] == found.config.values
    ids_BT = torch.arange(9)[None]
    with torch.no_grad():
        expected_BTV = model(ids_BT, use_cache=False).logits
        error = (nachim.load(tmp_path)(ids_BT) - expected_BTV).abs().max()
    assert error <= TOLERANCE * expected_BTV.abs().max()
    stored["model.layers.3.eh_proj.weight"] = stored.pop("model.layers.61.eh_proj.weight")
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 extra \(model.layers.3.eh_proj.weight\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2"),
        ({"n_shared_experts": 0}, "n_shared_experts=0; these families have at least one"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2"),
        ({"scoring_func": "sigmoid"}, "scoring_func='sigmoid'"),
        ({"norm_topk_prob": True}, "norm_topk_prob=True"),
        ({"topk_method": "noaux_tc"}, "topk_method='noaux_tc'"),
    ],
)
def test_what_is_not_computed_exactly_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        read_config({**PUBLISHED["deepseek-v2"], **changes})
