"""Folders: complete or as before; what cannot be written, read or fetched is said in one line."""

import json
import os
import re
import resource
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import gguf
import pytest
from exports import CHARACTERS, MODERN, exported, tiny_model

import huggingface
from lathe.run import checkpoint
from lathe.run.tensor_file import tensor_names
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.hf.export import export
from lathe.use.hf.find import find
from lathe.use.hf.tokenizers import load_hf_tokenizer
from lathe.use.hf.weights import load_model
from model import GPT2


def test_the_old_export_stays_until_the_new_one_is_checked(tmp_path):
    folder = tmp_path / "out"
    model = exported(folder)
    weights = folder / "model.safetensors"
    before = weights.read_bytes()

    def refuse(written: Path):
        assert weights.read_bytes() == before
        assert (written / "model.safetensors").is_file()
        raise ValueError("not the same")

    with pytest.raises(ValueError, match="not the same"):
        export(model, CHARACTERS, folder, "bfloat16", check=refuse)
    assert weights.read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder]
    export(model, CHARACTERS, folder, "bfloat16")
    assert len(weights.read_bytes()) < len(before)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(logit_softcap=30.0), "logit_softcap=30.0"),
        (dict(position="none"), "position=none"),
        (dict(position="sinusoidal"), "position=sinusoidal"),
        (dict(GPT2, n_kv_head=2), "n_kv_head=2"),
        (dict(GPT2, activation="relu2"), "activation=relu2"),
        (dict(MODERN, qk_norm=True, bias=True), "bias=True"),
        (dict(norm="layernorm", activation="swiglu", qk_norm=False), "norm=layernorm"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_the_name_of_its_setting(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export(tiny_model(**settings), CHARACTERS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# -----------------------------------------------------------------------------
# Reading


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_bytes(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def cut_in_half(folder: Path):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def configured(**changes) -> Callable[[Path], None]:
    def change(folder: Path):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


INDEX = "model.safetensors.index.json"
LLAMA_WITHOUT_WIDTH = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 9,
    "max_position_embeddings": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


@pytest.mark.parametrize(
    "change, message",
    [
        (without("model.safetensors"), "model.safetensors is missing"),
        (cut_in_half, "damaged"),
        (with_bytes("model.safetensors", b"\xff" * 100), "damaged"),
        (without("config.json"), "config.json is missing"),
        (with_bytes("config.json", b"{"), "config.json is not JSON"),
        (with_bytes("config.json", b'{"a": ' * 100_000), "config.json is not JSON: .* too deep"),
        (with_bytes("config.json", b'{"a": ' + b"1" * 5000), "config.json is not JSON: .* digits"),
        (with_bytes("config.json", b"[1]"), "config.json is no JSON object"),
        (with_bytes("config.json", b'{"a": "\xff"}'), "config.json is not UTF-8 at byte 7"),
        (with_bytes("generation_config.json", b"{,"), "generation_config.json is not JSON"),
        (with_bytes("tokenizer.json", b"[" * 100_000), "tokenizer.json is not JSON: .* too deep"),
        (with_bytes("tokenizer.json", b"1" * 5000), "tokenizer.json is not JSON: .* digits"),
        (with_bytes("tokenizer.json", b"\xff"), "tokenizer.json is not UTF-8 at byte 0"),
        (with_bytes(INDEX, b"{}"), "index.json is damaged: its weight_map names no files"),
        (with_bytes(INDEX, b'{"weight_map": {"a": "../b"}}'), "names no files beside it"),
        (with_bytes(INDEX, b'{"weight_map": {"a": 1}}'), "names no files beside it"),
        (without("tokenizer.json"), "tokenizer.json is missing"),
        (configured(architectures=["BertModel"]), "architecture BertModel"),
        (configured(architectures=["ArceeForCausalLM"]), "activation is silu"),
        (configured(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "rope_scaling"),
        (configured(layer_types=["sliding_attention"]), "layer_types is .*sliding_attention"),
        (configured(use_sliding_window=True, sliding_window=4), "sliding_window is 4"),
        (configured(rope_parameters={"partial_rotary_factor": 0.5}), "rotary_factor is 0.5"),
        (configured(architectures=[[1]]), "config.json describes no network: unhashable"),
        (configured(rope_parameters=[1]), "config.json describes no network: .* no attribute"),
        (configured(rms_norm_eps="x"), "config.json describes no network: "),
        (configured(num_hidden_layers=-1), "config.json describes no network: n_layer is -1"),
        (with_bytes("generation_config.json", b'{"eos_token_id": [[0]]}'), "eos_token_id is"),
        (configured(pretraining_tp=2), "pretraining_tp is 2"),
        (configured(hidden_size=1.5), "hidden_size is 1.5, not a whole number"),
        (
            with_bytes("config.json", json.dumps(LLAMA_WITHOUT_WIDTH).encode()),
            "hidden_size is missing",
        ),
        (configured(intermediate_size=64), "by config.json it should be"),
        (configured(num_hidden_layers=3), "lack model.layers.2"),
        (configured(num_hidden_layers=1), "no place for"),
        # QK-norm's weights would be lost
        (configured(architectures=["LlamaForCausalLM"], model_type="llama"), "no place for"),
        (
            configured(architectures=["LlamaForCausalLM"]),
            "architectures is .*, and model_type qwen3",
        ),
    ],
)
def test_damaged_and_foreign_folders_are_refused(change, message, tmp_path):
    exported(tmp_path)
    change(tmp_path)
    with pytest.raises((ValueError, OSError), match=message) as error:
        load_model(tmp_path)
        load_hf_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_hub_out_of_reach_is_explained(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = "hf:nobody/nothing is neither a folder nor in the Hub's cache.*model.safetensors"
    with pytest.raises(OSError, match=message):
        find("hf:nobody/nothing")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find(f"hf:{tmp_path / 'nothing'}")


def exported_files(folder: Path, tokenizer: Tokenizer = CHARACTERS, template: str = "", **settings):
    """Of a small network: config.json, tokenizer_config.json and the model card."""
    model = tiny_model(tokenizer, **settings)
    state = {"template": template, "dataset": {"path": "/home/jane/data/letters:0.5,data/b:0.5"}}
    export(model, tokenizer, folder, state=state)
    config = json.loads((folder / "config.json").read_text())
    about = json.loads((folder / "tokenizer_config.json").read_text())
    return config, about, (folder / "README.md").read_text()


def test_a_folder_says_what_older_and_other_clients_would_guess_otherwise(tmp_path):
    config, about, _ = exported_files(tmp_path, **MODERN, activation="swiglu", qk_norm=False)
    assert config["rope_scaling"] is None and config["rope_theta"] == 10000.0
    assert about["model_input_names"] == ["input_ids", "attention_mask"]
    assert about["unk_token"] == about["eos_token"] == "<|endoftext|>"


def test_gpt2_has_the_hubs_names_unless_its_head_is_its_own(tmp_path):
    exported_files(tmp_path / "tied", **GPT2)
    exported_files(tmp_path / "own", **{**GPT2, "tie_weights": False})
    tied = set(tensor_names(tmp_path / "tied" / "model.safetensors"))
    own = set(tensor_names(tmp_path / "own" / "model.safetensors"))
    assert {"wte.weight", "h.1.attn.c_attn.bias"} <= tied
    assert own == {f"transformer.{name}" for name in tied} | {"lm_head.weight"}


def test_starcoder2_has_biases_that_are_zero_and_not_taken_over_on_the_way_back(tmp_path):
    settings = dict(norm="layernorm", activation="gelu", qk_norm=False, norm_weight=True)
    config, _, _ = exported_files(tmp_path, **settings)
    names = tensor_names(tmp_path / "model.safetensors")
    assert config["use_bias"] and "model.layers.0.mlp.c_fc.bias" in names
    assert not load_model(tmp_path).config.bias


def test_a_model_card_has_the_call_of_each_client_and_no_local_path(tmp_path):
    *_, card = exported_files(tmp_path / "plain", **GPT2)
    assert "`letters:0.5,data/b:0.5`" in card and "jane" not in card
    assert 'ids = tokenizer("<|endoftext|>Once", return_tensors="pt")' in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}, "a table's bars are escaped"
    assert '(**tokenizer("<\\|endoftext\\|>Once", return_tensors="pt")' in card
    assert "| mlx-lm | `mlx_lm.generate --model ." in card
    *_, card = exported_files(tmp_path / "chat", load_tokenizer("byte"), "chat", **GPT2)
    assert "end_of_text=True" in card and "| lm-eval | `lm_eval" in card
    assert "--apply_chat_template" in card and "Once" not in card


def saved_run(folder: Path) -> str:
    """--out_dir of a tiny Llama's run."""
    model = tiny_model(position="rope", norm="rmsnorm", activation="swiglu")
    state = {"step": 1, "samples": 10, "model": asdict(model.config), "settings": {}}
    checkpoint.save(folder / "run", model.state_dict(), {}, state, CHARACTERS)
    return f"--out_dir={folder / 'run'}"


@pytest.mark.parametrize(("option", "name"), [("to", "out"), ("gguf", "out.gguf")])
def test_a_disk_without_room_is_told_with_what_is_needed_and_nothing_is_left(
    option, name, tmp_path
):
    command = ["export", saved_run(tmp_path), f"--{option}={tmp_path / name}"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # as from a full disk, writes come back short, or as an error
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
        with pytest.raises(OSError, match=f"{option} is .*{name}.*bytes are needed .*make room"):
            huggingface.main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_name_that_is_not_utf8_is_a_files_and_no_folders(tmp_path):
    """transformers reads folders by safetensors, which takes such a name for a broken string."""
    run = saved_run(tmp_path)
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    huggingface.main(["export", run, f"--gguf={name}.gguf"])
    assert gguf.GGUFReader(f"{name}.gguf").get_field("general.name").contents() == "\\xff\\xfe"
    with pytest.raises(ValueError, match="not UTF-8.*choose another --to"):
        huggingface.main(["export", run, f"--to={name}"])
