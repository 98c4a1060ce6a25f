"""What in a config.json our network does not compute, refused by its name.

A field that is neither read, nor known to change nothing, may change everything: it is refused,
unless it is off. So a model that came up after this was written is not taken for an older one.
"""

import math
from pathlib import Path
from typing import Any

from lathe.use.hf.families import IN_ATTENTION, IN_MLP, Family

# Fields that change nothing that the network computes: of training, of generation, of bookkeeping.
# Those with an underscore in front, too.
IGNORED = set(
    """
    architectures model_type transformers_version dtype torch_dtype name_or_path auto_map
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class
    prefix is_llama_config transformers.js_config unsloth_fixed unsloth_version model_max_length
    attn_implementation use_cache use_bfloat16 torchscript tf_legacy_loss return_dict
    return_dict_in_generate output_attentions output_hidden_states output_scores is_decoder
    chunk_size_feed_forward gradient_checkpointing reorder_and_upcast_attn n_ctx n_special
    predict_special_tokens output_past max_sequence_length attention_softmax_in_fp32
    scale_attention_softmax_in_fp32

    initializer_range attn_pdrop embd_pdrop resid_pdrop attention_dropout residual_dropout
    embedding_dropout hidden_dropout classifier_dropout summary_type summary_use_proj
    summary_activation summary_proj_to_labels summary_first_dropout

    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id max_length max_new_tokens min_length do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens
    """.split()
)
ROPE = {"rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"}
ROPE |= {"partial_rotary_factor"}
WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
HAVE_A_SWITCH = ("qwen2", "qwen3", "smollm3")  # use_sliding_window, off if it is not there
BIASES = {"attention_bias": IN_ATTENTION, "mlp_bias": IN_MLP, "use_bias": [*IN_ATTENTION, *IN_MLP]}


def biased_modules(theirs: dict, family: Family) -> set[str]:
    """The linear layers of a block, by our names, that have biases there."""
    modules = set()
    for setting, names in family.biases.items():
        if not setting or theirs.get(setting, family.defaults.get(setting, False)):
            modules.update(names)
    return modules


def refuse_foreign_fields(theirs: dict, family: Family, read: set[str], path: Path):
    """ValueError for the first field of the config.json at `path` that changes what their network
    computes, and not ours. read: the fields that are read elsewhere."""

    def refuse(setting: str, value: Any):
        raise ValueError(f"{path}: {setting} is {value}, which lathe's network does not compute")

    for setting, neutral in family.neutral.items():
        if theirs.get(setting, neutral) != neutral:
            refuse(setting, theirs[setting])
    refuse_windows(theirs, family, path)
    if "attention_multiplier" in family.defaults:
        refuse_another_scale(theirs, family, path)
    if "no_rope_layers" in family.defaults:
        refuse_layers_without_rope(theirs, family, path)

    known = IGNORED | read | WINDOWS | set(family.neutral) | set(family.biases)
    known |= set(family.defaults)
    known |= ROPE if family.settings["position"] == ["rope"] else set()
    biased = biased_modules(theirs, family)
    for setting, value in theirs.items():
        is_off = value in (None, False, "") or value == [] or value == {}
        if setting in known or setting.startswith("_") or is_off:
            continue
        if setting in BIASES and biased.issuperset(BIASES[setting]):
            continue
        raise ValueError(
            f"{path}: {setting} is {value!r:.80}, a field of which lathe does not know what it "
            f"changes in {family.model_type}: remove it if it changes nothing"
        )


def refuse_windows(theirs: dict, family: Family, path: Path):
    """ValueError where a layer does not see the whole context."""
    layer_types = theirs.get("layer_types") or []
    if not set(layer_types) <= {"full_attention"}:
        raise ValueError(
            f"{path}: layer_types is {layer_types!r:.80}, and lathe's network computes "
            "full_attention alone"
        )
    is_on = family.model_type not in HAVE_A_SWITCH or theirs.get("use_sliding_window", False)
    window = theirs.get("sliding_window", family.defaults.get("sliding_window"))
    context = theirs.get("max_position_embeddings", 0)
    if is_on and window is not None and window < context:
        raise ValueError(
            f"{path}: sliding_window is {window}, which lathe's network does not compute: to use "
            f"the model up to there, set max_position_embeddings, {context} now, to {window}"
        )


def refuse_another_scale(theirs: dict, family: Family, path: Path):
    """ValueError where scores are multiplied by another number than ours, 1 / sqrt(head_dim)."""
    scale = theirs.get("attention_multiplier", family.defaults["attention_multiplier"])
    head_dim = theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]
    if not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        raise ValueError(
            f"{path}: attention_multiplier is {scale}, and lathe's network computes "
            f"1 / sqrt(head_dim) = {head_dim**-0.5:.6g} alone"
        )


def refuse_layers_without_rope(theirs: dict, family: Family, path: Path):
    """ValueError where a layer knows no positions."""
    n_layer = theirs["num_hidden_layers"]
    interval = theirs.get("no_rope_layer_interval", family.defaults["no_rope_layer_interval"])
    has_rope = theirs.get("no_rope_layers") or [(i + 1) % interval for i in range(n_layer)]
    if not all(has_rope[:n_layer]):
        raise ValueError(
            f"{path}: no_rope_layers, of every {interval}th layer if it is left out, is there, and "
            "lathe's network computes rope in all layers alone"
        )


def refuse_another_type(theirs: dict, architecture: str, family: Family, path: Path):
    """ValueError where model_type, by which transformers goes, names another family."""
    model_type = theirs.get("model_type", family.model_type)
    if model_type != family.model_type:
        raise ValueError(
            f"{path}: architectures is {architecture}, and model_type {model_type}: transformers "
            f"goes by the latter; {architecture} has {family.model_type}"
        )
