"""What each client cannot hold is refused by name, and what it can is called as it must be."""

import re
from dataclasses import replace

import pytest
from exports import CHARACTERS, MAPPED, tiny_model

from huggingface import ClientName
from lathe import ROOT
from lathe.use.hf.clients import CLIENTS, calls_of_export, refuse_for
from lathe.use.hf.families import architecture_of


def config_of(**settings):
    return tiny_model(**{"n_embd": 128, **settings}).config


GPT2_AS_PUBLISHED = config_of(**MAPPED[0][0])
LLAMA = config_of(**MAPPED[3][0])


@pytest.mark.parametrize(
    ("client", "settings", "fault"),
    [
        ("vllm", MAPPED[10][0], "activation=relu2 with qk_norm=True"),
        ("vllm", dict(MAPPED[3][0], n_embd=64), "head_dim=16"),
        ("ctranslate2", MAPPED[7][0], "activation=relu2 .*Arcee"),
        ("ctranslate2", MAPPED[11][0], "activation=gelu_tanh .*Starcoder2"),
        ("ctranslate2", dict(MAPPED[3][0], head_dim=16), "head_dim=16"),
        ("ctranslate2", dict(MAPPED[0][0], norm_eps=1e-6), "norm_eps=1e-06"),
        ("mlx-lm", dict(MAPPED[0][0], n_hidden=96), "n_hidden=96"),
        ("mlx-lm", dict(MAPPED[0][0], tie_weights=False), "tie_weights=False"),
        ("mlx-lm", MAPPED[1][0], "activation=gelu"),
        ("mlx-lm", MAPPED[11][0], "activation=gelu_tanh"),
        ("llama.cpp", MAPPED[8][0], "activation=gelu, bias=True"),
        ("llama.cpp", dict(MAPPED[5][0], rope_scaling="llama3:8:1:4:64"), "rope_scaling=llama3"),
        ("ctranslate2", dict(MAPPED[3][0], rope_scaling="llama3:8:1:4:64"), "rope_scaling=llama3"),
        (
            "mlx-lm",
            dict(MAPPED[11][0], activation="gelu", rope_scaling="linear:2"),
            "rope_scaling=linear:2",
        ),
    ],
)
def test_a_client_that_cannot_hold_a_model_is_named_with_the_setting(client, settings, fault):
    with pytest.raises(ValueError, match=f"{client} cannot hold {fault}"):
        refuse_for(["transformers", client], config_of(**settings), CHARACTERS)


def test_every_client_holds_a_llama_and_a_qwen3():
    refuse_for(list(CLIENTS), config_of(**MAPPED[3][0], rope_scaling="linear:2"), CHARACTERS)
    for settings, architecture in MAPPED:
        if architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and "head_dim" not in settings:
            refuse_for(list(CLIENTS), config_of(**settings), CHARACTERS)


def test_calls_are_those_of_clients_that_hold_the_model_and_of_what_was_written():
    arcee = config_of(**MAPPED[7][0])
    assert architecture_of(arcee) == "ArceeForCausalLM"
    calls = calls_of_export(arcee, CHARACTERS, "out/a", "", chat=False)
    assert list(calls) == ["transformers", "vllm", "lm-eval"]
    assert calls["vllm"] == 'LLM("out/a", dtype="float32").generate("<|endoftext|>Once")'
    calls = calls_of_export(LLAMA, CHARACTERS, "", "a.gguf", chat=True)
    assert calls == {"llama.cpp": "llama-cli -m a.gguf --jinja"}


def test_calls_ask_for_no_more_tokens_than_the_context_has():
    """GPT-2 has no others: ctranslate2, which asks for 512 by itself, ended with an error."""
    config = replace(GPT2_AS_PUBLISHED, block_size=64)
    for chat in (False, True):
        calls = calls_of_export(config, CHARACTERS, "out/hf", "", chat)
        assert "max_new_tokens=32" in calls["transformers"]
        assert "max_length=32" in calls["ctranslate2"]
        assert "--max-tokens 32" in calls["mlx-lm"]


def test_the_command_line_and_the_docs_know_every_client():
    assert list(CLIENTS) == list(ClientName.__args__)
    docs = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").replace("\\|", "|")
    config = replace(GPT2_AS_PUBLISHED, block_size=1024)
    calls = calls_of_export(config, CHARACTERS, "out/hf", "out/quickstart.gguf", False)
    assert list(calls) == list(CLIENTS)
    for client, call in calls.items():
        row = re.search(rf"^\| {client}\b.*", docs, re.M | re.I)[0]
        assert f"`{call}`" in row
