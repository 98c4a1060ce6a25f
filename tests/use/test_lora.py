"""LoRA: what is trained, what stays, and that a checkpoint needs nothing but itself."""

import re
from pathlib import Path

import pytest
import torch
from tiny_run import job, losses, run_ranks, settings

import train
from lathe.run import checkpoint
from lathe.text.tokenizer import load_tokenizer
from lathe.use import lora
from lathe.use.find_model import find_model
from lathe.use.hf import export as hf_export
from lathe.use.hf import weights as hf_weights
from lathe.use.network import load_weights, model_config
from model import GPT, GPT2, GPTConfig

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
LORA = dict(lora_rank=4, learning_rate=0.02)


@pytest.fixture(scope="module")
def base(dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "base"
    assert train.train(settings(dataset, out, max_steps=10)) == 0
    return out


@pytest.fixture(scope="module")
def adapted(dataset, base) -> Path:
    out = base.with_name("adapted")
    assert train.train(settings(dataset, out, init_from=str(base), dropout=0.1, **LORA)) == 0
    return out


def newest(out) -> Path:
    return checkpoint.newest_checkpoint(out)[0]


def unmerged(path: Path) -> GPT:
    """The network as it was trained, its adapters apart."""
    state = checkpoint.read_state(path)
    model, asked = GPT(model_config(state, path)), state["settings"]
    lora.adapt(model, asked["lora_rank"], asked["lora_alpha"])
    model.load_state_dict(load_weights(path, merged=False))
    return model.eval()


def test_adapters_begin_as_nothing_and_only_they_learn():
    for family in ({}, GPT2):
        model = GPT(
            GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32, **family)
        ).eval()
        idx = torch.randint(50, (2, 16))
        before = model(idx)
        adapters = lora.adapt(model, 4, 16.0)
        assert torch.equal(model(idx), before)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == adapters.keys()
        assert len(adapters) == 2 * 2 * 4  # A and B of four matrices in each of two blocks


def test_merging_is_adding_the_correction():
    model = GPT(
        GPTConfig(
            vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32, n_kv_head=1, bias=True
        )
    )
    lora.adapt(model, 4, 16.0)
    for name, p in model.named_parameters():
        if name.endswith(lora.B):
            torch.nn.init.normal_(p, std=0.1)
    merged = GPT(model.config)
    merged.load_state_dict(lora.merge(model.state_dict(), 16.0))
    idx = torch.randint(50, (2, 16))
    assert (model.eval()(idx) - merged.eval()(idx)).abs().max() <= 1e-5


def test_training_moves_the_adapters_and_no_bit_of_the_base(base, adapted):
    before, after = load_weights(newest(base)), load_weights(newest(adapted), merged=False)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    added = after.keys() - before.keys()
    assert added and all(after[name].any() for name in added)
    assert losses(adapted)[-1] < losses(base)[-1]


def test_the_share_that_is_trained_is_said(dataset, base, tmp_path, capsys):
    train.train(settings(dataset, tmp_path, init_from=str(base), max_steps=1, **LORA))
    total, trained, percent = re.search(r"([\d,]+) parameters \(([\d,]+) of them trained, (\S+)%\)",
                                        capsys.readouterr().err).groups()  # fmt: skip
    total, trained = (int(number.replace(",", "")) for number in (total, trained))
    c = find_model(newest(tmp_path)).load().config
    matrices = [
        (3 * c.n_embd, c.n_embd),
        (c.n_embd, c.n_embd),
        (2 * c.n_hidden, c.n_embd),
        (c.n_embd, c.n_hidden),
    ]
    assert trained == c.n_layer * sum(4 * (rows + columns) for rows, columns in matrices)
    assert float(percent) == round(100 * trained / total, 2)


def test_a_checkpoint_is_enough_for_those_who_load_it_and_computes_what_was_trained(
    adapted, tmp_path
):
    path, idx = newest(adapted), torch.randint(257, (2, 16))
    model, as_trained = find_model(path).load(), unmerged(path)
    assert (model(idx) - as_trained(idx)).abs().max() <= 1e-5
    hf_export.export(model, load_tokenizer(path), tmp_path / "exported")
    assert (hf_weights.load_model(tmp_path / "exported")(idx) - as_trained(idx)).abs().max() <= 1e-5


def test_a_resumed_run_is_the_straight_one_bit_for_bit(dataset, adapted, tmp_path):
    from rank import as_it_was

    out = tmp_path / "resumed"
    as_it_was(str(out), str(adapted), 10)
    assert train.train(settings(dataset, out, init_from="resume", dropout=0.1, **LORA)) == 0
    assert losses(out) == losses(adapted) and len(losses(out)) == 20
    a, b = (load_weights(newest(run), merged=False) for run in (out, adapted))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_second_adaptation_begins_at_the_first_ones_sum(dataset, adapted, tmp_path):
    assert (
        train.train(settings(dataset, tmp_path, init_from=str(adapted), max_steps=1, **LORA)) == 0
    )
    sums, base = load_weights(newest(adapted)), load_weights(newest(tmp_path), merged=False)
    assert all(torch.equal(base[name], tensor) for name, tensor in sums.items())


def test_a_hugging_face_folder_is_adapted(dataset, base, tmp_path):
    path = newest(base)
    hf_export.export(find_model(path).load(), load_tokenizer(path), tmp_path / "theirs")
    theirs = settings(
        dataset, tmp_path / "run", init_from=f"hf:{tmp_path / 'theirs'}", max_steps=2, **LORA
    )
    assert train.train(theirs) == 0
    before, after = (load_weights(p, merged=False) for p in (path, newest(tmp_path / "run")))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_two_ranks_train_the_adapters_that_one_does(dataset, base, tmp_path):
    asked = dict(init_from=str(base), max_steps=6, **LORA)
    train.train(settings(dataset, tmp_path / "one", **asked))
    kinds = ("ddp", "fsdp")
    for code, _, err in run_ranks(
        2, tmp_path, *(job(dataset, tmp_path / p, parallel=p, **asked) for p in kinds)
    ):
        assert code == 0, err[-3000:]
    one = load_weights(newest(tmp_path / "one"), merged=False)
    for kind in kinds:
        assert losses(tmp_path / kind) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
        two = load_weights(newest(tmp_path / kind), merged=False)
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
        assert all(
            torch.equal(one[name], two[name]) for name in one if not name.endswith((lora.A, lora.B))
        )


def test_what_cannot_be_adapted_is_said_in_one_line(dataset, base, adapted, tmp_path):
    for told, out, changed in (
        ("lora_rank is 4 without a model", tmp_path, dict(lora_rank=4)),
        ("is a matrix of rank 32 at most", tmp_path, dict(lora_rank=33, init_from=str(base))),
        ("lora_rank 4 -> 2", adapted, dict(lora_rank=2, init_from="resume")),
        ("lora_rank 4 -> 0", adapted, dict(init_from="resume")),
        ("lora_rank 0 -> 4", base, dict(lora_rank=4, init_from="resume")),
        ("lora_alpha 16.0 -> 8.0", adapted, dict(lora_rank=4, lora_alpha=8.0, init_from="resume")),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            train.train(settings(dataset, out, **changed))
        assert "\n" not in str(caught.value)
