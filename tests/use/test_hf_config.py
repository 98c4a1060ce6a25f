"""config.json: all that changes what a network computes is read, or refused by its name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exports import CHARACTERS, exported, tiny_model

from lathe.use.hf.config import our_config
from lathe.use.hf.export import export
from lathe.use.hf.families import FAMILIES
from lathe.use.hf.weights import load_model, read_config
from model import GPT, GPTConfig, rope_frequencies

PATH = Path("config.json")
SIZES = dict(
    vocab_size=97,
    max_position_embeddings=32,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def described(name: str = "Llama", **settings) -> GPTConfig:
    """Our configuration of a config.json of this family with these fields."""
    content = {
        "architectures": [f"{name}ForCausalLM"],
        "rope_parameters": ROPE,
        **SIZES,
        **settings,
    }
    return our_config(content, PATH).config


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_a_config_leaves_out_is_as_in_transformers(architecture):
    transformers = pytest.importorskip("transformers")
    config_class = getattr(
        transformers, architecture.replace("ForCausalLM", "Config").replace("LMHeadModel", "Config")
    )
    family = FAMILIES[architecture]
    theirs = config_class()
    assert theirs.model_type == family.model_type
    for name, default in family.defaults.items():
        if name == "rope_theta":
            assert (
                config_class(rope_parameters={"rope_type": "default"}).rope_parameters["rope_theta"]
                == default
            )
        elif name == "sliding_window":
            assert config_class(use_sliding_window=True).sliding_window == default
        elif name == "norm_epsilon" and architecture == "OlmoForCausalLM":
            assert not hasattr(theirs, name)  # the number stands in its code
        elif name == "no_rope_layers":
            assert theirs.no_rope_layers == [
                int((i + 1) % 4 != 0) for i in range(theirs.num_hidden_layers)
            ]
        else:
            assert getattr(theirs, name) == default, name
    for name in (*family.neutral, *filter(None, family.biases)):
        assert hasattr(theirs, name) or name in ("norm_epsilon", "mlp_type", "norm_type"), name


@pytest.mark.parametrize(
    "name, settings, words",
    [
        (
            "Mistral",
            dict(sliding_window=8),
            "sliding_window is 8.*set max_position_embeddings, 32 now, to 8",
        ),
        ("Mistral", dict(max_position_embeddings=8192), "sliding_window is 4096"),
        ("Mistral", dict(use_sliding_window=False, sliding_window=8), "sliding_window is 8"),
        ("Phi3", dict(sliding_window=8), "sliding_window is 8"),
        ("Starcoder2", dict(sliding_window=8, hidden_act="gelu"), "sliding_window is 8"),
        ("Qwen2", dict(use_sliding_window=True, sliding_window=8), "sliding_window is 8"),
        ("Qwen2", dict(layer_types=["full_attention", "sliding_attention"]), "layer_types is"),
        ("SmolLM3", dict(no_rope_layers=[1, 0]), "no_rope_layers"),
        ("SmolLM3", dict(num_hidden_layers=4), "no_rope_layers"),
        ("Granite", {}, "attention_multiplier is 1.0"),
        (
            "Granite",
            dict(attention_multiplier=8**-0.5, logits_scaling=8.0),
            "logits_scaling is 8.0",
        ),
        (
            "Granite",
            dict(attention_multiplier=8**-0.5, embedding_multiplier=12),
            "embedding_multiplier is 12",
        ),
        ("Olmo", dict(clip_qkv=8.0), "clip_qkv is 8.0"),
        ("Apertus", {}, "activation is xielu"),
        ("Mistral", dict(attention_bias=True), "attention_bias is True"),
        ("Llama", dict(final_logit_softcapping=30.0), "final_logit_softcapping is 30.0"),
        ("Llama", dict(quantization_config={"bits": 4}), "quantization_config is {'bits': 4}"),
        ("Llama", dict(qk_layernorm=True), "qk_layernorm is True"),
        ("Llama", dict(partial_rotary_factor=0.25), "partial_rotary_factor is 0.25"),
        ("Llama", dict(tie_word_embeddings="yes"), "tie_word_embeddings is yes, not true or false"),
        (
            "Llama",
            dict(model_type="mistral"),
            "architectures is LlamaForCausalLM, and model_type mistral",
        ),
        (
            "Llama",
            dict(rope_theta=777.0),
            "rope_theta is 5000.0 in rope_parameters and 777.0 in config.json",
        ),
        (
            "Llama",
            dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
            "rope_type is yarn in rope_scaling",
        ),
        ("Llama", dict(rope_parameters={"rope_type": "longrope"}), "rope_scaling is .*longrope"),
        ("Llama", dict(rope_parameters=ROPE | {"factor": 2.0}), "rope_scaling has factor=2.0"),
        (
            "Llama",
            dict(rope_parameters=ROPE | {"rope_type": "llama3"}),
            "llama3: factor is None, not a number",
        ),
        (
            "Llama",
            dict(rope_parameters={"full_attention": ROPE}),
            "rope_scaling has full_attention",
        ),
    ],
)
def test_what_is_not_computed_here_is_refused_by_its_name(name, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        described(name, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("Mistral", dict(sliding_window=None)),
        ("Mistral", dict(sliding_window=32)),
        ("Qwen2", dict(sliding_window=8, use_sliding_window=False, max_window_layers=1)),
        ("SmolLM3", dict(no_rope_layers=[1, 1])),
        ("Granite", dict(attention_multiplier=8**-0.5)),
        (
            "Llama",
            dict(rope_scaling=None, partial_rotary_factor=1.0, pretraining_tp=1, clip_qkv=None),
        ),
        (
            "Llama",
            {"_name_or_path": "a", "transformers.js_config": {"a": 1}, "is_llama_config": True},
        ),
        ("Llama", dict(rope_theta=5000.0, original_max_position_embeddings=16)),
    ],
)
def test_what_changes_nothing_is_passed_over(name, settings):
    assert described(name, **settings).rope_theta == 5000.0


# As they lie on the Hub, but for their sizes
PUBLISHED = {
    "SmolLM2-135M": """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "initializer_range": 0.041666666666666664,
        "is_llama_config": true, "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true}""",
    "Llama-3.2-1B": """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008], "head_dim": 8, "hidden_act": "silu",
        "initializer_range": 0.02, "mlp_bias": false, "model_type": "llama", "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": true}""",
    "deepseek-coder-1.3b": """{"architectures": ["LlamaForCausalLM"], "bos_token_id": 32013, "hidden_act": "silu",
        "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-06, "rope_scaling": {"factor": 4.0,
        "type": "linear"}, "rope_theta": 100000, "tie_word_embeddings": false, "use_cache": true}""",
    "Qwen2.5-0.5B": """{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
        "max_window_layers": 24, "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "use_mrope": false, "use_sliding_window": false}""",
    "Mistral-7B-v0.3": """{"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
        "model_type": "mistral", "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true}""",
    "phi-4": """{"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "embd_pdrop": 0.0, "hidden_act": "silu", "model_type": "phi3", "original_max_position_embeddings": 32,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 250000,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true}""",
    "gpt2-medium": """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2", "n_ctx": 32, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 32,
        "n_special": 0, "predict_special_tokens": true, "resid_pdrop": 0.1, "summary_activation": null,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
        "summary_use_proj": true, "task_specific_params": {"text-generation": {"do_sample": true}}}""",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_is_read(name):
    sizes = {"vocab_size": 97} if name.startswith("gpt2") else SIZES
    config = our_config(json.loads(PUBLISHED[name]) | sizes, PATH).config
    assert (config.n_embd, config.n_layer, config.n_head) == (32, 2, 4)


@pytest.mark.parametrize(
    "settings, scaling",
    [
        (dict(rope_parameters=ROPE | {"rope_type": "linear", "factor": 4.0}), "linear:4"),
        (
            dict(
                rope_parameters=None,
                rope_theta=5000.0,
                rope_scaling={"type": "linear", "factor": 2.5},
            ),
            "linear:2.5",
        ),
        (
            dict(
                rope_parameters=None,
                rope_theta=5000.0,
                rope_scaling={"rope_type": "llama3", "factor": 32.0, **LLAMA3},
            ),
            "llama3:32:1:4:8192",
        ),
        (
            dict(
                rope_parameters=ROPE
                | {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 2}
            ),
            "llama3:8:1:2:32",  # of the context, where nothing is said
        ),
    ],
)
def test_scaled_rope_is_read_from_each_versions_place(settings, scaling):
    config = described(**settings)
    assert (config.rope_theta, config.rope_scaling) == (5000.0, scaling)


def test_apertus_has_the_rope_of_its_class_where_none_is_said():
    config = described("Apertus", hidden_act="relu2", rope_parameters=None)
    assert (config.rope_theta, config.rope_scaling) == (12e6, "llama3:8:1:4:8192")


@pytest.mark.parametrize("scaling", ["linear:3.5", "llama3:8:1:4:64"])
def test_scaled_rope_is_exported_computes_the_same_in_transformers_and_reads_back(
    scaling, tmp_path
):
    transformers = pytest.importorskip("transformers")
    model = tiny_model(qk_norm=False, rope_scaling=scaling)
    export(model, CHARACTERS, tmp_path)
    back = load_model(tmp_path)
    assert back.config == model.config
    idx = torch.randint(CHARACTERS.vocab_size, (2, model.config.block_size))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(back(idx), model(idx))
        torch.testing.assert_close(theirs(idx).logits, model(idx), rtol=0, atol=1e-5)


def test_scaled_rope_turns_slow_pairs_more_slowly():
    plain = rope_frequencies(64, 10000.0, "")
    torch.testing.assert_close(rope_frequencies(64, 10000.0, "linear:4"), plain / 4)
    scaled = rope_frequencies(64, 10000.0, "llama3:8:1:4:1024")
    rounds = 1024 * plain / (2 * torch.pi)
    assert torch.equal(scaled[rounds > 4], plain[rounds > 4])
    torch.testing.assert_close(scaled[rounds < 1], plain[rounds < 1] / 8)
    assert (scaled[1:] < scaled[:-1]).all()


@pytest.mark.parametrize(
    "scaling", ["linear", "linear:0", "linear:x", "llama3:8:4:1:64", "yarn:4", "linear:inf"]
)
def test_another_rope_scaling_is_refused(scaling):
    with pytest.raises(ValueError, match="rope_scaling is .* must be linear:FACTOR or llama3"):
        GPTConfig(rope_scaling=scaling)


# -----------------------------------------------------------------------------
# Tensors that contradict the config.json


def change_config(folder: Path, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_head_beside_a_tied_embedding_is_used_and_said(tmp_path, capsys):
    model = exported(tmp_path, qk_norm=False)  # with a head of its own
    change_config(tmp_path, tie_word_embeddings=True)
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.lm_head.weight)
    assert (
        "tie_word_embeddings is true, and lm_head.weight is another matrix"
        in capsys.readouterr().err
    )


def test_a_head_that_is_the_embedding_is_tied(tmp_path):
    model = tiny_model(qk_norm=False)
    model.lm_head.weight.data = model.transformer.wte.weight.data.clone()
    export(model, CHARACTERS, tmp_path)
    change_config(tmp_path, tie_word_embeddings=True)
    assert read_config(tmp_path, CHARACTERS).tie_weights


@pytest.mark.parametrize(
    "settings, switched_off",
    [
        (
            dict(norm="layernorm", activation="gelu_tanh"),
            ["use_bias", "attention_bias", "mlp_bias"],
        ),
        (dict(activation="swiglu"), ["attention_bias", "use_bias"]),
        (dict(activation="swiglu"), ["mlp_bias", "use_bias"]),
    ],
)
def test_biases_that_config_json_does_not_have_are_refused(settings, switched_off, tmp_path):
    exported(tmp_path, **settings, bias=True, qk_norm=False)
    change_config(tmp_path, **dict.fromkeys(switched_off, False))
    with pytest.raises(ValueError, match=f"no place for .*bias .*by .*{switched_off[0]}"):
        load_model(tmp_path)


def test_text_whose_ids_the_network_lacks_is_refused(tmp_path):
    model: GPT = tiny_model()
    model.config = replace(model.config, vocab_size=20)
    export(model, CHARACTERS, tmp_path)
    with pytest.raises(ValueError, match="vocab_size is 20.*has ids up to"):
        load_model(tmp_path)
