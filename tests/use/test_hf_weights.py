"""Weights: the same logits in transformers, nothing lost on the way back, theirs read as well."""

from dataclasses import asdict

import pytest
import torch
from exports import CHARACTERS, CONTEXT, MAPPED, bpe_tokenizer, exported, tiny_model

from lathe.run.tensor_file import read_tensor, tensor_names, write_safetensors
from lathe.use.hf.export import export
from lathe.use.hf.weights import load_model
from model import GPT2

each_family = pytest.mark.parametrize(
    "settings, architecture", MAPPED, ids=lambda x: x if isinstance(x, str) else ""
)


# -----------------------------------------------------------------------------
# Ours, there and back


@each_family
def test_an_export_computes_the_same_in_transformers(settings, architecture, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tiny_model(**settings)
    assert export(model, CHARACTERS, tmp_path / "out") == architecture
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == architecture
    assert theirs.config.eos_token_id == CHARACTERS.eot_id
    idx = torch.randint(CHARACTERS.vocab_size, (3, CONTEXT))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(idx).logits, model(idx), rtol=0, atol=1e-5)


@each_family
def test_an_export_reads_back_bit_for_bit(settings, architecture, tmp_path):
    model = exported(tmp_path / "out", **settings)
    back = load_model(tmp_path / "out")
    assert asdict(back.config) == asdict(model.config)
    assert list(back.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_padded_rows_of_the_vocabulary_stay_at_home(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = bpe_tokenizer()
    model = tiny_model(tokenizer)
    assert model.config.padded_vocab_size > model.config.vocab_size == tokenizer.vocab_size
    export(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.get_input_embeddings().weight.shape[0] == tokenizer.vocab_size
    idx = torch.randint(tokenizer.vocab_size, (2, CONTEXT))
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "out")(idx), model(idx))


def test_weights_in_bfloat16_are_the_rounded_ones(tmp_path):
    model = tiny_model()
    export(model, CHARACTERS, tmp_path / "out", "bfloat16")
    back = load_model(tmp_path / "out", dtype=None)
    assert back.transformer.wte.weight.dtype == torch.bfloat16
    assert torch.equal(back.lm_head.weight, model.lm_head.weight.bfloat16())


# -----------------------------------------------------------------------------
# Theirs


@pytest.mark.parametrize("name", ("GPT2", "Llama", "Qwen3", "Arcee"))
def test_a_folder_that_transformers_wrote_computes_the_same_here(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = dict(
        max_position_embeddings=CONTEXT,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    if name == "GPT2":
        shape = dict(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4)
    config_class = getattr(transformers, f"{name}Config")
    config = config_class(vocab_size=97, bos_token_id=1, eos_token_id=2, **shape)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in theirs.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")  # several files and an index
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    idx = torch.randint(97, (2, CONTEXT))
    with torch.inference_mode():
        logits = theirs(idx).logits
        torch.testing.assert_close(load_model(tmp_path)(idx), logits, rtol=0, atol=1e-4)


def test_gpt2s_old_names_without_prefix_and_with_masks_are_read(tmp_path):
    """As the Hub's gpt2 has them."""
    model = exported(tmp_path / "out", **GPT2)
    path = tmp_path / "out" / "model.safetensors"
    old = {}
    for name in tensor_names(path):
        old[name.removeprefix("transformer.")] = read_tensor(path, name)
    for i in range(2):
        old[f"h.{i}.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT)
    with open(path, "wb") as file:
        write_safetensors(file, old)
    idx = torch.randint(CHARACTERS.vocab_size, (2, CONTEXT))
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "out")(idx), model(idx))
