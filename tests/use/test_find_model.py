"""One door to any model: the same answers for a run, a checkpoint and a Hugging Face folder."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_run import loud_model

from lathe.run import checkpoint
from lathe.text.tokenizer import load_tokenizer
from lathe.use.find_model import find_model
from lathe.use.hf.export import export
from model import GPT, GPT2

BYTES = load_tokenizer("byte")


def saved(run: Path, model: GPT, step: int = 3) -> Path:
    """A checkpoint of an untrained network."""
    state = {"step": step, "model": asdict(model.config), "settings": {}, "template": "chat"}
    return checkpoint.save(run, model.state_dict(), {}, state, BYTES)


def test_a_run_a_checkpoint_and_a_hugging_face_folder_are_the_same_model(tmp_path):
    model = loud_model(BYTES.vocab_size, **GPT2)
    for p in model.parameters():
        p.data = p.data + 0.1  # gains of one and biases of zero are not kept at Hugging Face
    folder = saved(tmp_path / "run", model)
    export(model, BYTES, tmp_path / "exported")
    specs = (tmp_path / "run", str(folder), f"hf:{tmp_path / 'exported'}")
    for spec in specs:
        found = find_model(spec)
        assert asdict(found.config) == asdict(model.config)
        assert found.tokenizer.fingerprint == BYTES.fingerprint
        assert found.encode("a") == [BYTES.eot_id, 97] and found.ends == (BYTES.eot_id,)
        loaded, weights = found.load(), found.weights()
        assert not loaded.training and weights.keys() == model.state_dict().keys()
        assert loaded.config is not found.config and loaded.config == found.config
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
            assert torch.equal(weights[name], tensor)
    ours, theirs = find_model(specs[0]), find_model(specs[2])
    assert (ours.name, ours.folder, ours.template) == (str(folder), folder, "chat")
    assert (theirs.name, theirs.folder) == (specs[2], tmp_path / "exported")
    assert ours.state["step"] == 3 and theirs.state == {} and theirs.template == ""


@pytest.mark.parametrize("family", ({}, GPT2), ids=("rope", "learned"))
def test_a_context_can_be_cut(tmp_path, family):
    model = loud_model(BYTES.vocab_size, **dict(family, qk_norm=False))
    export(model, BYTES, tmp_path)
    found = find_model(f"hf:{tmp_path}")
    assert found.with_context(1000).config == found.config
    short = found.with_context(5)
    assert short.config.block_size == 5 and found.config.block_size == model.config.block_size
    ids = torch.randint(256, (1, 5))
    with torch.inference_mode():
        torch.testing.assert_close(short.load()(ids), model(ids))


def test_bytes_that_were_verified_are_not_read_again(tmp_path):
    folder = saved(tmp_path, loud_model(BYTES.vocab_size))
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(ValueError, match="model.safetensors does not match its checksum"):
        find_model(folder)
    assert find_model(folder, verified=True).state["step"] == 3


def test_weights_that_do_not_fit_are_named_by_their_folder(tmp_path):
    model = loud_model(BYTES.vocab_size)
    model.config.n_layer = 3
    with pytest.raises(ValueError, match=r"step-0000003 do not fit its settings: .*Missing key"):
        find_model(saved(tmp_path, model)).load()
