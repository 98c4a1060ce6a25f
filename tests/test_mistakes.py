"""Mistakes of the first hour, each answered in one line that names the thing and the way on."""

import contextlib
import importlib
import json
import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import SMALL, make_dataset

import sample
from lathe.data.shards import write_dataset
from lathe.settings import Settings, default_preset
from lathe.text.tokenizer import train_char
from lathe.use import nanogpt
from lathe.use.find_model import find_model
from lathe.use.nanogpt import COMPILED
from model import GPT, GPT2, GPTConfig

CHINESE = "天地玄黄宇宙洪荒日月盈昃。\n"


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    """A folder in which somebody has prepared texts and trained a run."""
    folder = tmp_path_factory.mktemp("hour")
    with contextlib.chdir(folder):
        for name in ("data", "texts", "theirs", "out-nano", "mine"):
            Path(name).mkdir()
        make_dataset(Path("data/en"))
        write_dataset(Path("data/zh"), train_char([CHINESE]), [CHINESE * 60], [CHINESE * 9])
        Path("texts/en.txt").write_text("the cat sat on a mat\n" * 50)
        Path("texts/pairs.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
        Path("theirs/config.json").write_text("{}")
        Path("mine/settings.toml").write_text("mine")
        Path("mine/train_000000.bin").write_text("mine")
        run("train.py", *sizes(), "--dataset=data/en", "--out_dir=out/en", "--max_steps=2")
        save_nanogpt("out-nano/ckpt.pt", CHINESE)
        yield folder


def sizes() -> list[str]:
    return [f"--{name}={value}" for name, value in SMALL.items()]


def run(script: str, *argv: str):
    importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(list(argv))


def save_nanogpt(path: str, text: str, **changed: object) -> GPT:
    """A checkpoint as nanoGPT's train.py writes it; returns the network in it."""
    characters = sorted(set(text))
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=32, bias=True)
    torch.manual_seed(0)
    arguments = {**GPT2, **shape, "activation": "gelu", "vocab_size": len(characters)}
    model = GPT(GPTConfig(**arguments)).eval()
    tensors = {COMPILED + name: tensor for name, tensor in model.state_dict().items()}
    tensors[COMPILED + "lm_head.weight"] = tensors[COMPILED + "transformer.wte.weight"]
    saved = {
        "model": tensors,
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": {**shape, "vocab_size": len(characters), "dropout": 0.0},
        "iter_num": 10,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "zh", "out_dir": "out-nano"},
        **changed,
    }
    torch.save(saved, path)
    meta = {"vocab_size": len(characters), "stoi": {c: i for i, c in enumerate(characters)}}
    Path(path).with_name("meta.pkl").write_bytes(pickle.dumps(meta))
    return model


def answer(capsys: pytest.CaptureFixture, script: str, *argv: str) -> str:
    """The one line that a command says of a mistake."""
    capsys.readouterr()
    try:
        run(script, *argv)
    except SystemExit as end:
        assert end.code, "it was no mistake"
        return capsys.readouterr().err
    except (ValueError, OSError) as error:
        return str(error)
    raise AssertionError(f"silent: {script} {' '.join(argv)}")


# (command, what it must say): a third of them from the trackers of nanoGPT, litgpt and nanochat
MISTAKES = [
    # nanoGPT's words
    ("train.py config/train_shakespeare_char.py", "train.py config/shakespeare_char.toml"),
    ("train.py config/eval_gpt2_xl.py", "evaluate.py --model=hf:gpt2-xl"),
    ("train.py --init_from=gpt2-xl --out_dir=out/x", "written hf:gpt2-xl"),
    ("train.py --init_from=resume --out_dir=out-nano", "--init_from=out-nano/ckpt.pt"),
    ("train.py --vocab_size=50304", "tokenizer decides it"),
    ("sample.py --init_from=gpt2", "--out_dir=RUN or --model=hf:NAME"),
    ("sample.py -out_dir=out/en", "did you mean --out_dir=out/en?"),
    ("sample.py --prompt=FILE:texts/en.txt", "--prompt_file=texts/en.txt"),
    # litgpt's and nanochat's
    ("train.py --checkpoint_dir=out/en", "did you mean --init_from=RUN?"),
    ("train.py --model gpt2", "did you mean --init_from=hf:NAME?"),
    ("train.py --devices=2", "torchrun"),
    ("train.py --device_batch_size=4", "--micro_batch_size"),
    ("train.py --core_metric_every=9", "--help lists all settings"),
    ("sample.py --model=theirs", "did you mean --model=hf:theirs?"),
    ("sample.py --model=EleutherAI/pythia-70m", "did you mean --model=hf:EleutherAI/pythia-70m?"),
    ("evaluate.py out/en", "did you mean --out_dir=out/en?"),
    ("prepare/pairs.py texts/pairs.jsonl --out data/x", "found: instruction, output"),
    # a thing of another kind
    ("train.py out/en", "train.py out/en/settings.toml --init_from=resume"),
    ("train.py data/en", "did you mean --dataset=data/en?"),
    ("train.py texts/en.txt", "prepare/text.py --input texts/en.txt --out data/en"),
    ("train.py quickstrat", "did you mean quickstart?"),
    ("train.py --init_from=scrach --out_dir=out/x", "did you mean scratch?"),
    ("train.py --init_from=data/en --out_dir=out/x", "is a dataset"),
    ("train.py --init_from=out/en/checkpoints --out_dir=out/x", "name that, out/en"),
    ("train.py --init_from=hf:out/en --out_dir=out/x", "write it without hf:"),
    ("train.py --init_from=hf: --out_dir=out/x", "names no model"),
    ("train.py --init_from=out/em --out_dir=out/x", "did you mean out/en?"),
    ("train.py --dataset=en --out_dir=out/x", "did you mean --dataset=data/en?"),
    ("train.py --dataset=texts/en.txt --out_dir=out/x", "--input texts/en.txt --out data/en"),
    ("train.py --dataset=texts --out_dir=out/x", "--input texts --out data/texts"),
    ("train.py --dataset=data --out_dir=out/x", "data/en"),
    ("train.py --dataset=out/en --out_dir=out/x", "is a run's folder"),
    ("train.py --dataset=input.txt --out_dir=out/x", "no file of that name"),
    ("train.py config/finetune_chat.toml --dataset=data/talks", "prepare/pairs.py"),
    ("sample.py --out_dir=out/en/settings.toml", "name its folder, out/en"),
    ("sample.py hello", "did you mean --prompt="),
    ("huggingface.py export out/en", "--out_dir=out/en"),
    ("huggingface.py export --model=gpt2", "did you mean --out_dir=RUN?"),
    ("visualize.py out/en", "visualize.py run out/en"),
    ("prepare/text.py texts/en.txt --tokenizer bpe --out data/x", "--tokenizer=bpe:4096"),
    ("prepare/text.py texts/en.txt --tokenizer hf:gpt2 --out data/x", "--tokenizer=gpt2"),
    # numbers and ids
    ("sample.py --out_dir=out/en --stop_ids=99999", "the ids 0 to 256"),
    ("sample.py --stop_ids 5,6", "side by side, without commas"),
    ("sample.py --out_dir=out/en --stop_ids=-3", "ids are numbers from 0"),
    ("sample.py --out_dir=out/en --logprobs=999 --format=jsonl", "257 ids"),
    ("train.py --batch_size=1e11", "16,777,216 at most"),
    ("train.py --dataset=data/zh --block_size=1e7 --out_dir=out/x", "use block_size="),
    ("train.py --dataset=data/zh --n_embd=1e6 --n_head=10 --out_dir=out/x", "this machine has"),
    # what has no effect
    ("evaluate.py --out_dir=out/en --limit=5", "add --tasks"),
    ("evaluate.py --out_dir=out/en --stride=2 --tasks piqa:x", "add --dataset"),
    ("evaluate.py --model=hf:theirs --out_dir=out/en", "choose one"),
    ("sample.py --interactive --prompts=texts/pairs.jsonl", "leave out --interactive"),
    ("train.py out/en/settings.toml --init_from=resume --n_layer=3", "in another --out_dir"),
    # what belongs to somebody else
    ("visualize.py run out/en --out=texts/en.txt", "is no page of visualize.py's"),
    ("visualize.py model --out_dir=out/en --out=texts", "a folder: name a file"),
    ("huggingface.py export --out_dir=out/en --to=theirs --overwrite", "no export of lathe's"),
    ("huggingface.py export --out_dir=theirs --to=h", "--out_dir in huggingface.py"),
    ("huggingface.py export --out_dir=out/en --to=h --gguf=h", "beside it, such as --gguf=h.gguf"),
    ("huggingface.py export --out_dir=out/en --to=h --gguf=h/a.gguf", "name a file beside it"),
    ("huggingface.py export --out_dir=out/en --to=h/a --gguf=h", "name a file beside it"),
    ("huggingface.py export --out_dir=out/en --to=texts/en.txt/h", "en.txt is a file, no folder"),
    ("huggingface.py export --out_dir=out/en --gguf=texts/en.txt/h", "en.txt is a file, no folder"),
    ("huggingface.py export --out_dir=out/en --gguf=h/", "name a file, such as h/model.gguf"),
    ("huggingface.py export --out_dir=out/en --gguf=texts", "such as texts/model.gguf"),
    ("huggingface.py export --out_dir=out/en --gguf=texts/en.txt --overwrite", "no GGUF file"),
    ("prepare/text.py texts/en.txt --out mine --tokenizer byte", "of no dataset of ours"),
    ("train.py --out_dir=mine", "no run that wrote it"),
    ("train.py --out_dir=data/en", "holds a dataset"),
]  # fmt: skip


@pytest.mark.parametrize("line, way_on", MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_with_the_way_on(hour, monkeypatch, capsys, line, way_on):
    monkeypatch.chdir(hour)
    theirs = [path for name in ("texts", "theirs", "mine") for path in (hour / name).iterdir()]
    before = {path: path.read_bytes() for path in theirs if path.is_file()}
    said = answer(capsys, *line.split(" "))
    assert way_on in said and said.strip().count("\n") == 0, said
    assert all(path.read_bytes() == content for path, content in before.items())


# -----------------------------------------------------------------------------
# What was silent


def test_a_run_goes_on_by_its_own_settings_where_no_preset_is_named(hour, monkeypatch, capsys):
    monkeypatch.chdir(hour)
    run("train.py", "--init_from=resume", "--out_dir=out/en", "--max_steps=3")
    said = capsys.readouterr().err
    assert "changed: max_steps 2 -> 3\n" in said
    assert "as in out/en/settings.toml" in said


def test_what_a_setting_leaves_without_effect_is_said(hour, monkeypatch, capsys):
    monkeypatch.chdir(hour)
    idle = ("--optimizer=adamw", "--muon_momentum=0.5", "--wandb_project=x")
    run("train.py", *sizes(), "--dataset=data/en", "--dry_run", *idle)
    said = capsys.readouterr().out
    assert (
        "muon_momentum (since optimizer is adamw), wandb_project (since wandb_log is off)" in said
    )


@pytest.mark.parametrize("source", ["out/en", "out-nano"])
def test_a_dry_run_of_fine_tuning_ends_well(hour, monkeypatch, capsys, source):
    monkeypatch.chdir(hour)
    dataset = {"out/en": "data/en", "out-nano": "data/zh"}[source]
    run("train.py", f"--init_from={source}", f"--dataset={dataset}", "--dry_run", "--n_layer=7")
    assert "n_layer=2, not 7" in capsys.readouterr().out


def test_quickstarts_prompt_is_for_its_own_dataset(hour, monkeypatch, capsys):
    monkeypatch.chdir(hour)
    run("train.py", *sizes(), "--dataset=data/zh", "--out_dir=out/zh", "--sample_tokens=3")
    assert "class" not in capsys.readouterr().err


def test_what_a_preparation_leaves_without_effect_is_said(hour, monkeypatch, capsys):
    monkeypatch.chdir(hour)
    idle = ("--field=body", "--quotes=true", "--bpe_sample=5")
    run("prepare/text.py", "texts/en.txt", "--out=data/idle", "--tokenizer=byte", *idle)
    said = capsys.readouterr().err
    for name in ("field (", "quotes (", "bpe_sample ("):
        assert name in said.partition("without effect: ")[2].partition("\n")[0]


def test_help_has_the_values_in_force_and_where_they_come_from(capsys):
    with pytest.raises(SystemExit):
        run("train.py", "--help", "--seed=3")
    said = " ".join(capsys.readouterr().out.split())
    assert "(config/quickstart.toml: 16; default: 512)" in said
    assert "(--seed: 3; default: 1337)" in said
    assert default_preset({}) == "quickstart" and "batch_size" in {f.name for f in fields(Settings)}


def test_a_stop_text_may_have_escapes():
    assert sample.unescape(r"\n\t\\n") == "\n\t\\n"
    assert sample.unescape(r"C:\data") == r"C:\data"


def test_a_dialogue_keeps_what_was_set_and_is_left_by_exit(hour, monkeypatch, capsys):
    monkeypatch.chdir(hour)
    typed = iter(["/set temperature 0", "/set seed=7", "/again", "/set stop \\n", "/set device cuda", "/set", "exit"])  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    run("sample.py", "--out_dir=out/en", "--interactive", "--prompt=hi", "--max_new_tokens=4")
    said = capsys.readouterr().err
    assert "> hi\n" in said
    assert "device was decided as the dialogue began" in said
    assert "temperature=0.0" in said and "seed=8" in said
    assert next(typed, "all was read") == "all was read"


def test_a_stripped_run_is_sampled_and_trained_further_and_not_resumed(hour, monkeypatch, capsys):
    monkeypatch.chdir(hour)
    shape = ("--dataset=data/en", "--sample_tokens=0", "--eval_tokens=64")
    run("train.py", *sizes(), *shape, "--out_dir=out/stripped", "--max_steps=1")
    for file in Path("out/stripped").rglob("optimizer.pt"):
        file.unlink()
    run("sample.py", "--out_dir=out/stripped", "--max_new_tokens=2")
    run("train.py", *shape, "--init_from=out/stripped", "--out_dir=out/further", "--max_steps=1")
    capsys.readouterr()
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        run("train.py", "--init_from=resume", "--out_dir=out/stripped", "--max_steps=2")
    assert "has no optimizer.pt" in capsys.readouterr().err


# -----------------------------------------------------------------------------
# nanoGPT's ckpt.pt


def test_nanogpts_checkpoint_gives_the_logits_of_its_network(tmp_path):
    theirs = save_nanogpt(str(tmp_path / "ckpt.pt"), CHINESE)
    found = find_model(tmp_path)
    ids = torch.tensor([found.encode("天地玄黄")])
    with torch.no_grad():
        assert torch.equal(found.load()(ids), theirs(ids))
    with_end = find_model(tmp_path / "ckpt.pt").with_all_ids()
    assert with_end.load().config.vocab_size == theirs.config.vocab_size + 1


def test_rows_that_fill_up_gpt2s_vocabulary_are_no_ids(tmp_path):
    rows = torch.randn(50304, 8)
    shape = dict(n_layer=1, n_head=1, n_embd=8, block_size=4, bias=False, vocab_size=50257)
    tensors = GPT(GPTConfig(**{**GPT2, **shape})).state_dict()
    tensors["transformer.wte.weight"] = rows
    arguments = {**shape, "vocab_size": 50304}
    torch.save({"model": tensors, "model_args": arguments}, tmp_path / "ckpt.pt")
    checkpoint = nanogpt.read(tmp_path / "ckpt.pt")
    weights = nanogpt.read_weights(checkpoint, GPTConfig(**{**GPT2, **shape}))
    assert torch.equal(weights["transformer.wte.weight"], rows)


def test_nanogpts_checkpoint_goes_through_every_command(hour, monkeypatch, capsys):
    monkeypatch.chdir(hour)
    run("sample.py", "--out_dir=out-nano", "--prompt=天", "--max_new_tokens=3")
    run("evaluate.py", "--out_dir=out-nano", "--dataset=data/zh")
    run("visualize.py", "model", "--out_dir=out-nano", "--prompt=天地", "--max_new_tokens=2")
    run("huggingface.py", "export", "--out_dir=out-nano/ckpt.pt", "--to=out/nano_hf")
    shape = ("--dataset=data/zh", "--sample_tokens=2", "--eval_tokens=64", "--max_steps=1")
    run("train.py", *shape, "--init_from=out-nano/ckpt.pt", "--out_dir=out/from_nano")
    assert Path("out/from_nano/checkpoints/step-0000001").is_dir()


def test_nanogpts_characters_are_trained_on_as_they_lie(hour, monkeypatch, capsys):
    monkeypatch.chdir(hour)
    folder = Path("data/theirs")
    folder.mkdir()
    save_nanogpt(str(folder / "ckpt.pt"), CHINESE)
    ids = train_char([CHINESE]).encode(CHINESE * 40)
    for split in ("train", "val"):
        (folder / f"{split}.bin").write_bytes(np.array(ids, np.uint16).tobytes())
    shape = ("--sample_tokens=0", "--eval_tokens=64", "--max_steps=1", "--out_dir=out/theirs")
    said = answer(capsys, "train.py", "--dataset=data/theirs", *shape)
    assert "dataset=raw:data/theirs:data/theirs" in said
    run("train.py", *sizes(), "--dataset=raw:data/theirs:data/theirs", *shape)
    capsys.readouterr()
    raw = "--dataset=raw:data/theirs:data/theirs"
    run("evaluate.py", "--out_dir=data/theirs/ckpt.pt", raw, "--eval_tokens=32")  # one window
    ids = torch.tensor([ids[:33]])
    with torch.no_grad():
        theirs = save_nanogpt("data/theirs/ckpt.pt", CHINESE)(ids[:, :-1], ids[:, 1:])
    loss = json.loads(capsys.readouterr().out)["loss"]
    assert loss == pytest.approx(theirs.item(), rel=1e-5)  # without an end-of-text of ours


class Code:
    def __reduce__(self) -> tuple:
        return print, ("it ran",)


@pytest.mark.parametrize(
    "changed, fault",
    [
        ({"config": Code()}, "more than tensors and plain values"),
        ({"model": [1]}, "model is"),
        ({"model_args": {}}, "lacks n_layer"),
        ({"model_args": dict(n_layer=9999, n_head=1, n_embd=16, block_size=8, vocab_size=14)}, "tensors for n_layer"),
        ({"model": {"transformer.wte.weight": torch.zeros(1).expand(14, 16)}}, "as nanoGPT saves"),
    ],
)  # fmt: skip
def test_a_strangers_ckpt_is_one_line_and_runs_nothing(tmp_path, capsys, changed, fault):
    save_nanogpt(str(tmp_path / "ckpt.pt"), CHINESE, **changed)
    with pytest.raises(ValueError, match=fault) as error:
        find_model(tmp_path).load()
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert "it ran" not in capsys.readouterr().out


def test_a_meta_pkl_that_would_run_code_does_not(tmp_path, capsys):
    save_nanogpt(str(tmp_path / "ckpt.pt"), CHINESE)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="plain values alone"):
        find_model(tmp_path)
    assert "it ran" not in capsys.readouterr().out
