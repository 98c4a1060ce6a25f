"""Files from strangers, sealed but wrong: each is one line that names the file, soon and in little
memory, and nothing outside its folder is touched."""

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import arguments, loud_model, settings

import evaluate
import sample
import train
import visualize
from lathe import cli
from lathe.run import checkpoint
from lathe.run.files import crc32, write_json_with_checksum
from lathe.run.pieces import Piece, write_pieces
from lathe.settings import LARGEST, Settings, default_preset
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.gpt2 import printable_bytes
from lathe.text.hugging_face import isolated, their_file
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.hf.export import export
from model import MOST
from prepare import verify

HUGE = int("9" * 30)
NEST = "[" * 100_000
WRONG = [None, "x", -1, HUGE, 1e308, [], {}, [[1]], True]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory, dataset) -> Path:
    """A run of two steps, and its model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("strangers")
    run = settings(dataset, folder / "run", max_steps=2, eval_interval=2, qk_norm=False)
    assert train.train(run) == 0
    shutil.copytree(dataset, folder / "data")
    save_hf(folder)
    return folder


def save_hf(folder: Path):
    from lathe.use.find_model import find_model

    found = find_model(folder / "run")
    export(found.load(), found.tokenizer, folder / "hf")


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of all that, in which to do harm."""
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def newest(folder: Path) -> Path:
    return checkpoint.list_checkpoints(folder / "run")[-1]


def refused(main, capsys, here: Path, *argv: str) -> str:
    """The one line with which a command refuses; soon, and without much memory."""
    outside = sorted(here.parent.iterdir())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with pytest.raises(SystemExit) as end:
        cli.run(main, list(argv))
    seconds = time.process_time() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if "error: " in line]
    assert end.value.code in (1, 2) and len(errors) == 1 and lines[-1] == errors[0], lines
    assert "Traceback" not in "\n".join(lines)
    assert len(errors[0]) < 1500
    assert seconds < 2 and (sys.platform != "linux" or grown < 500_000)
    assert sorted(here.parent.iterdir()) == outside
    return errors[0]


def sampled(argv: list[str]) -> int:
    return sample.main([*argv, "--max_new_tokens=2", "--prompt=a", "--device=cpu"])


def seal(folder: Path, change=None):
    """state.json with right checksums of what lies there, whatever that is."""
    state = json.loads((folder / "state.json").read_text())
    del state["checksum"]
    for path in folder.iterdir():
        if path.name != "state.json":
            state["files"][path.name] = {"size": path.stat().st_size, "crc32": crc32(path)}
    if change is not None:
        change(state)
    write_json_with_checksum(folder / "state.json", state)


def set_in(content: dict, keys: str, value):
    *path, last = keys.split("/")
    for key in path:
        content = content[key]
    if value == "DELETE":
        del content[last]
    else:
        content[last] = value


def cases(keys: dict[str, list]) -> list[tuple[str, object]]:
    return [(key, value) for key, values in keys.items() for value in values]


# -----------------------------------------------------------------------------
# Checkpoints

STATE = {
    "format": [HUGE, "1", None, [], "DELETE"],
    "step": ["x", None, -1, HUGE, 1.5, [], "DELETE"],
    "model": ["x", None, [], {}, 3, "DELETE"],
    "model/n_layer": ["x", -1, 10**9, HUGE, 1.5, [2], True],
    "model/n_embd": ["x", 0, 10**9, HUGE, []],
    "model/n_head": [0, 10**9, HUGE, "2", {}],
    "model/block_size": ["x", 10**9, -3, HUGE],
    "model/vocab_size": ["x", HUGE, 0, [1], 10**9],
    "model/position": [3, "nowhere", []],
    "model/activation": [3, {}],
    "model/norm_eps": ["x", -1, []],
    "model/surprise": [1],
    "files": [None, "x", [], 3, {"../../x": {"size": 1, "crc32": 1}}, {"model.safetensors": 3}],
    "files/model.safetensors": [None, "x", [], {"size": "x", "crc32": 1}, {"size": HUGE}],
    "val_loss": ["x", [], {}],
    "template": [3, []],
}


@pytest.mark.parametrize(("key", "value"), cases(STATE), ids=lambda x: f"{x!r:.30}")
def test_a_sealed_state_with_wrong_content(key, value, here, capsys):
    seal(newest(here), lambda state: set_in(state, key, value))
    line = refused(sampled, capsys, here, "--out_dir=run")
    assert "run/checkpoints/step-" in line or "run/" in line


RESUMED = {
    "settings": [None, "x", [], "DELETE"],
    "settings/seed": ["x", None, HUGE, "DELETE"],
    "train": [None, "x", [], {"surprise": 1}, "DELETE"],
    "train/step": ["x", HUGE, []],
    "train/samples": ["x", -1, HUGE, []],
    "train/best_val_loss": ["x", []],
    "train/grad_norms": ["x", ["x"], 3, [[]]],
    "dataset": [None, "x", {}, [], "DELETE"],
    "dataset/fingerprint": [3, None, []],
}


@pytest.mark.parametrize(("key", "value"), cases(RESUMED), ids=lambda x: f"{x!r:.30}")
def test_a_sealed_state_that_is_resumed(key, value, here, capsys):
    seal(newest(here), lambda state: set_in(state, key, value))
    words = arguments("data", "run", max_steps=4, init_from="resume")
    assert "run" in refused(resumed, capsys, here, *words)


def resumed(argv: list[str]) -> int:
    return train.train(cli.parse(Settings, argv, presets=True, default_preset=default_preset))


OPTIMIZERS = {
    "a list": [],
    "nothing": {},
    "a text": "x",
    "no random state": {"optimizer": {}, "scaler": {}},
    "a wrong random state": {"optimizer": {}, "scaler": {}, "random": [{"python": 3}]},
    "a number for all": {"optimizer": 3, "scaler": 3, "random": 3},
    "a state of another": {"optimizer": {"x": {"y": torch.ones(3)}}, "scaler": {}, "random": [{}]},
    "texts for tensors": {"optimizer": {"lm_head.weight": "x"}, "scaler": {}, "random": [{}]},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_sealed_optimizer_with_wrong_content(name, here, capsys):
    torch.save(OPTIMIZERS[name], newest(here) / "optimizer.pt")
    seal(newest(here))
    words = arguments("data", "run", max_steps=4, init_from="resume")
    refused(resumed, capsys, here, *words)


BYTES = {
    "empty": b"",
    "text": b"hello",
    "a length that lies": (2**60).to_bytes(8, "little") + b"{}",
    "a length below 0": b"\xff" * 8 + b"{}",
    "no JSON": (8).to_bytes(8, "little") + b"{{{{{{{{",
    "a nest": (100_000).to_bytes(8, "little") + NEST.encode(),
    "a hole": b"\0" * 4096,
}
HEAD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HEADS = {
    "offsets beyond the file": {"a": {**HEAD, "data_offsets": [0, 2**50]}},
    "a shape that lies": {"a": {**HEAD, "shape": [2**40, 2**40]}},
    "an unknown type": {"a": {**HEAD, "dtype": "F3"}},
    "offsets that cross": {"a": {**HEAD, "data_offsets": [16, 0]}},
    "rows that lie": {"__metadata__": {"rows": '{"a": [5, 1]}'}, "a": HEAD},
    "rows that are none": {"__metadata__": {"rows": '{"a": "x"}'}, "a": HEAD},
    "rows without end": {"__metadata__": {"rows": NEST}, "a": HEAD},
    "huge rows": {"__metadata__": {"rows": f'{{"a": [0, {HUGE}]}}'}, "a": HEAD},
    "another network": {"a": HEAD},
}
for head, table in HEADS.items():
    text = json.dumps(table).encode()
    BYTES[head] = len(text).to_bytes(8, "little") + text + bytes(16)


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("kind", ["run", "hf"])
def test_weights_that_are_none(name, kind, here, capsys):
    folder = newest(here) if kind == "run" else here / "hf"
    (folder / "model.safetensors").write_bytes(BYTES[name])
    if kind == "run":
        seal(folder)
    option = "--out_dir=run" if kind == "run" else "--model=hf:hf"
    line = refused(sampled, capsys, here, option)
    assert ("run/" if kind == "run" else "hf") in line


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_of_a_type_that_is_none(dtype, here, capsys):
    state = loud_model(257, block_size=16).state_dict()
    save_file({k: v.to(dtype) for k, v in state.items()}, newest(here) / "model.safetensors")
    seal(newest(here))
    assert "run/" in refused(sampled, capsys, here, "--out_dir=run")


def cut_up(folder: Path) -> dict:
    """A checkpoint in format 2, as two ranks would have left this one. What it says of itself."""
    weights = load_file(folder / "model.safetensors")
    saved = checkpoint.load_optimizer(folder)
    moments = {}
    for parameter, tensors in saved.pop("optimizer").items():
        for key, tensor in tensors.items():
            moments[f"{parameter}/{key}"] = tensor.clone()
    for name in ("model.safetensors", "optimizer.pt"):  # the latter is mapped, so not overwritten
        (folder / name).unlink()
    torch.save({**saved, "optimizer": {}}, folder / "optimizer.pt")
    for what, tensors in (("model", weights), ("optimizer", moments)):
        for rank in range(2):
            with open(folder / checkpoint.piece_name(what, rank, 2), "wb") as file:
                write_pieces(file, half_of(tensors, rank))
    state = json.loads((folder / "state.json").read_text())
    del state["checksum"]
    return {**state, "format": checkpoint.IN_PIECES, "pieces": 2, "files": {}}


def half_of(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, Piece]:
    pieces = {}
    for name, tensor in tensors.items():
        if tensor.dim():
            begin, end = (0, len(tensor) // 2) if rank == 0 else (len(tensor) // 2, len(tensor))
            pieces[name] = Piece(tensor[begin:end].contiguous(), begin, len(tensor))
        elif rank == 0:
            pieces[name] = Piece(tensor)
    return pieces


def seal_pieces(folder: Path, state: dict):
    (folder / "state.json").write_text(json.dumps({**state, "checksum": 0}))
    seal(folder)


def test_a_checkpoint_in_pieces_is_read(here):
    folder = newest(here)
    seal_pieces(folder, cut_up(folder))
    assert sampled(["--out_dir=run"]) == 0
    words = arguments("data", "run", max_steps=4, init_from="resume")
    assert resumed(words) == 0


PIECES = [0, -1, 1, 3, HUGE, "2", None, [], 1.5, 10**9]


@pytest.mark.parametrize("value", PIECES, ids=lambda x: f"{x!r:.20}")
def test_a_number_of_pieces_that_is_none(value, here, capsys):
    folder = newest(here)
    seal_pieces(folder, {**cut_up(folder), "pieces": value})
    assert "run/" in refused(sampled, capsys, here, "--out_dir=run")


@pytest.mark.parametrize("name", ["one is missing", "twice the same", "one is empty", *BYTES])
@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_pieces_that_are_none(name, what, here, capsys):
    folder = newest(here)
    state = cut_up(folder)
    first, second = (folder / checkpoint.piece_name(what, rank, 2) for rank in range(2))
    if name == "one is missing":
        second.unlink()
    elif name == "twice the same":
        shutil.copy(first, second)
    elif name == "one is empty":
        save_file({}, second)
    else:
        second.write_bytes(BYTES[name])
    seal_pieces(folder, state)
    if what == "model":
        line = refused(sampled, capsys, here, "--out_dir=run")
    else:
        words = arguments("data", "run", max_steps=4, init_from="resume")
        line = refused(resumed, capsys, here, *words)
    assert "run/" in line


ROWS_THAT_LIE = {
    "begin before the first": [-2, 4],
    "lie over others": [0, 4],
    "leave a gap": [3, 5],
    "would fill the memory": [2, 2**60],
    "are huge": [2, HUGE],
    "are texts": ["x", "y"],
    "are one number": [2],
    "are no list": 3,
    "are fractions": [1.5, 4],
}


@pytest.mark.parametrize("name", ROWS_THAT_LIE)
def test_rows_that_lie(name, here, capsys):
    folder = newest(here)
    state = cut_up(folder)
    second = folder / checkpoint.piece_name("model", 1, 2)
    tensors = load_file(second)
    with safe_open(second, "pt") as file:
        table = json.loads(file.metadata()["rows"])
    table["transformer.wte.weight"] = ROWS_THAT_LIE[name]
    save_file(tensors, second, metadata={"rows": json.dumps(table)})
    seal_pieces(folder, state)
    assert "run/" in refused(sampled, capsys, here, "--out_dir=run")


@pytest.mark.parametrize("name", ["", "../x", "\xff\xfe", "step-9999999", "step-0000001/../.."])
def test_a_best_that_names_nothing_is_passed_over(name, here, capsys):
    (here / "run" / "checkpoints" / "best").write_bytes(name.encode("latin-1"))
    assert sampled(["--out_dir=run"]) == 0


# -----------------------------------------------------------------------------
# Tokenizers, datasets

TOKENIZER = {
    "kind": ["DELETE", 3, "x"],
    "vocab_size": ["x", HUGE, -1, 10**10, None, 1.5],
    "specials": [None, [], "x", {}, {"<|endoftext|>": HUGE}, {"<|endoftext|>": "x"}],
    "pattern": [3, None, "("],
    "sha256": [None, 3, "0"],
    "format": [3, "x", None],
}


@pytest.mark.parametrize(("key", "value"), cases(TOKENIZER), ids=lambda x: f"{x!r:.30}")
def test_a_tokenizer_that_is_none(key, value, here, tmp_path):
    folder = here / "t"
    folder.mkdir()
    train_bpe(count_pieces(["the cat sat on the mat"]), 260).save(folder)
    about = json.loads((folder / "tokenizer.json").read_text())
    set_in(about, key, value)
    (folder / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises((ValueError, OSError)) as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


ENDLESS = r"(?:a|a)*(?!a)b|\p{L}+|[\s\S]"  # on a run of a
SLOW = r"(?=a{0,200}a{0,200}a{0,200}b)|[\s\S]"  # ends, after eight seconds
END = "<|endoftext|>"
SEALED = {
    "an endless pattern": dict(pattern=ENDLESS),
    "a pattern that leaves text out": dict(pattern="q"),
    "a pattern of nothing": dict(pattern=r"\s*"),
    "a pattern that is none": dict(pattern="("),
    "a pattern without end": dict(pattern="(" * 50_000),
    "a long pattern": dict(pattern="a" * 2_000_000),
    "another normalization": dict(normalization="NFD"),
    "bytes without ids": dict(leave_out=b"z"),
    "an id beyond all": dict(specials={END: 10**6}),
    "a huge id": dict(specials={END: HUGE}),
    "an id below 0": dict(specials={END: -1}),
    "an id that is none": dict(specials={END: "x"}),
    "an id that is a fraction": dict(specials={END: 1.5}),
    "a second id that is huge": dict(specials={END: 259, "b": HUGE}),
}


@pytest.mark.parametrize("name", SEALED)
def test_a_sealed_tokenizer_with_wrong_content(name, here):
    own = train_bpe(count_pieces(["the cat sat on the mat"]), 260)
    change = dict(SEALED[name])
    left_out = change.pop("leave_out", None)
    pieces = [b"" if piece == left_out else piece for piece in own.pieces]
    rules = dict(pattern=own.pattern, specials=own.specials) | change
    sealed = Tokenizer("bpe", "x", pieces, {END: 259}, rules["pattern"])
    sealed.specials = rules["specials"]
    sealed.normalization = rules.get("normalization", "")
    sealed.save(here)
    refused_to_load(here)


def refused_to_load(folder: Path):
    """As one line that names the folder, soon."""
    began = time.process_time()
    with pytest.raises((ValueError, OSError)) as error:
        load_tokenizer(folder)
    assert time.process_time() - began < 2
    line = str(error.value)
    assert str(folder) in line and "\n" not in line and len(line) < 1500


def hf_tokenizer(**changes) -> dict:
    """A tokenizer.json of bytes, with these parts."""
    content = their_file(load_tokenizer("byte").rules)
    content["model"].update(changes.pop("model", {}))
    return {**content, **changes}


def split_by(pattern: str) -> dict:
    steps = [
        isolated(pattern),
        {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
    ]
    return hf_tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


def replace_by(pattern: dict, content: str, times: int = 1) -> dict:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    return hf_tokenizer(normalizer={"type": "Sequence", "normalizers": [step] * times})


THEIRS = {
    "an endless pattern": split_by(ENDLESS),
    "a slow pattern": split_by(SLOW),
    "a pattern that is none": split_by("("),
    "an endless replacement": replace_by({"Regex": "(a+)+(?=b)"}, "x"),
    "a replacement that fills the memory": replace_by({"String": "a"}, "a" * 1000, times=4),
    "huge ids": hf_tokenizer(model={"vocab": {"a": HUGE}}),
    "ids that would fill the memory": hf_tokenizer(model={"vocab": {"a": 2**31}}),
    "merges of one": hf_tokenizer(model={"merges": [["a"]]}),
    "merges of nothing": hf_tokenizer(model={"merges": [["zz", "q"]]}),
    "a sequence of nothing": hf_tokenizer(normalizer={"type": "Sequence"}),
}


@pytest.mark.parametrize("kind", ["theirs", "ours"])
@pytest.mark.parametrize("name", THEIRS)
def test_a_tokenizer_of_theirs_with_wrong_content(name, kind, here):
    """As a tokenizer.json, and sealed in one of ours, as checkpoints and datasets have it."""
    if kind == "theirs":
        (here / "tokenizer.json").write_text(json.dumps(THEIRS[name]))
    else:
        Tokenizer("hf", "x", [b""] * 257, {END: 256}, file=THEIRS[name]).save(here)
    refused_to_load(here)


VOCAB = {
    "a list": "[]",
    "a nest": NEST,
    "nothing": "{}",
    "a huge id": {"ab": HUGE},
    "an id beyond all memory": {"ab": 2**31},
    "an id below 0": {"ab": -1},
    "an id that is a text": {"ab": "x"},
    "an end that is none": {END: []},
}
MERGES = [b"a", b"a b c", b"zz q", b"\xff\xfe", b"a " + b"b" * 1_000_000, b"\0"]


def save_vocab_and_merges(folder: Path, vocab: str | dict, merges: bytes):
    if isinstance(vocab, dict):
        vocab = json.dumps({**printable_bytes(), "ab": 256, END: 257, **vocab})
    (folder / "vocab.json").write_text(vocab)
    (folder / "merges.txt").write_bytes(merges)


@pytest.mark.parametrize("name", VOCAB)
def test_a_vocab_json_that_is_none(name, here):
    save_vocab_and_merges(here, VOCAB[name], b"a b\n")
    refused_to_load(here)


@pytest.mark.parametrize("merges", MERGES, ids=lambda line: f"{line!r:.20}")
def test_a_merges_txt_that_is_none(merges, here):
    save_vocab_and_merges(here, {}, merges)
    refused_to_load(here)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("content", ["[]", NEST, '{"add_prefix_space": ' + "1" * 5000 + "}"])
def test_what_lies_beside_vocab_and_merges_is_none(name, content, here):
    save_vocab_and_merges(here, {}, b"a b\n")
    (here / name).write_text(content)
    refused_to_load(here)


@pytest.mark.parametrize("line", [b"x", b"!!!! 1", b"YQ== x", b"YQ== 99999999999", b"YQ== -500"])
def test_a_table_of_tokens_that_is_none(line, here):
    train_bpe(count_pieces(["the cat sat on the mat"]), 260).save(here)
    (here / "tokenizer.tiktoken").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match="tokenizer") as error:
        load_tokenizer(here)
    assert str(here) in str(error.value)


META = {
    "format": ["x", 3, "DELETE"],
    "version": ["x", HUGE],
    "tokenizer": [None, "x", [], {}],
    "tokenizer/vocab_size": ["x", HUGE, 0, -5, 1.5],
    "tokenizer/sha256": [3, None, "DELETE", "0" * 64],
    "tokenizer/name": [3, "DELETE"],
    "tokenizer/eot_id": ["x", [], HUGE],
    "shards": [None, "x", 3, [3], [[]], ["x"], {}],
    "template": [3, [], {}],
}
SHARD = {
    "name": [3, "../../x", "/etc/passwd", "DELETE", "train_000000.bin/"],
    "tokens": ["x", -1, HUGE, 1.5, None, 10**12],
    "split": [3, "test", "DELETE"],
    "sha256": [3, []],
    "mask_sha256": [3, "x"],
}


def opened(argv: list[str]) -> int:
    from lathe.data.dataset import open_dataset

    open_dataset(argv[0]).tokenizer()
    return 0


@pytest.mark.parametrize(("key", "value"), cases(META), ids=lambda x: f"{x!r:.30}")
def test_a_dataset_with_wrong_content(key, value, here, capsys):
    meta = json.loads(Path("data/meta.json").read_text())
    set_in(meta, key, value)
    Path("data/meta.json").write_text(json.dumps(meta))
    assert "data" in refused(opened, capsys, here, "data")


@pytest.mark.parametrize(("key", "value"), cases(SHARD), ids=lambda x: f"{x!r:.30}")
def test_a_shard_with_wrong_content(key, value, here, capsys):
    meta = json.loads(Path("data/meta.json").read_text())
    set_in(meta["shards"][0], key, value)
    Path("data/meta.json").write_text(json.dumps(meta))
    assert "data" in refused(opened, capsys, here, "data")


@pytest.mark.parametrize("content", [NEST, "[]", "3", "", "{", '{"format": ' + "1" * 9999 + "}"])
def test_a_meta_that_is_no_json(content, here, capsys):
    Path("data/meta.json").write_text(content)
    assert "data" in refused(opened, capsys, here, "data")
    assert "data" in refused(verify.main, capsys, here, "data")


# -----------------------------------------------------------------------------
# Hugging Face folders

CONFIG = {
    "architectures": ["x", 3, [], [3], [[]], {}],
    "vocab_size": ["x", -1, None, [], 1.5],
    "hidden_size": ["x", 0, -1, HUGE, 10**9, []],
    "num_hidden_layers": ["x", 0, 10**9, HUGE, [], 1.5],
    "num_attention_heads": ["x", 0, HUGE, {}],
    "num_key_value_heads": ["x", -1, 3, HUGE],
    "max_position_embeddings": ["x", -1, HUGE, 10**12],
    "rope_theta": ["x", -1, []],
    "rope_parameters": ["x", 3, [1], {"rope_type": 3}],
    "hidden_act": [3, [], "x", {}],
}


@pytest.mark.parametrize(("key", "value"), cases(CONFIG), ids=lambda x: f"{x!r:.30}")
def test_a_config_with_wrong_content(key, value, here, capsys):
    config = json.loads(Path("hf/config.json").read_text())
    assert key in config
    set_in(config, key, value)
    Path("hf/config.json").write_text(json.dumps(config))
    assert "hf" in refused(sampled, capsys, here, "--model=hf:hf")


@pytest.mark.parametrize("value", ["x", [["x"]], {}, HUGE, -1, [HUGE], 1.5], ids=repr)
def test_ends_of_text_that_are_none(value, here, capsys):
    Path("hf/generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert "hf" in refused(sampled, capsys, here, "--model=hf:hf")


@pytest.mark.parametrize(
    "index",
    [NEST, "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../../x"}}']
    + ['{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}'],
)
def test_an_index_that_leads_elsewhere(index, here, capsys):
    Path("hf/model.safetensors.index.json").write_text(index)
    assert "hf" in refused(sampled, capsys, here, "--model=hf:hf")


# -----------------------------------------------------------------------------
# Presets, prompts, tasks, settings

PRESETS = [
    "x = " + NEST,
    "n_layer = " + "9" * 5000,
    "n_layer = " + "9" * 30,
    "n_layer = {json = 3}",
    "n_layer = [1, 2]",
    "out_dir = {json = '" + NEST + "'}",
    "n_layer = 1e400",
    "n_layer = inf",
    "a.b.c = 1",
    "n_layer = 1979-05-27",
    "\0",
    "[n_layer]",
    "#" * 2_000_000,
    "n_layer = 1_000_000_000",
    "block_size = 100_000_000",
    "n_embd = 1_000_000_000_000",
]


@pytest.mark.parametrize("content", PRESETS, ids=lambda text: f"{text:.24}")
def test_a_preset_with_wrong_content(content, here, capsys):
    Path("p.toml").write_text(content)
    words = ["p.toml", "--dataset=data", "--out_dir=new", "--device=cpu"]
    refused(resumed, capsys, here, *words)


LINES = [NEST, "[]", "3", '{"prompt": 3}', '{"prompt": ' + "1" * 5000 + "}", '{"x": 1}', "{", ""]


@pytest.mark.parametrize("line", LINES, ids=lambda text: f"{text:.24}")
def test_prompts_that_are_none(line, here, capsys):
    Path("p.jsonl").write_text(line)
    assert "p.jsonl" in refused(sample.main, capsys, here, "--out_dir=run", "--prompts=p.jsonl")


ROWS = {
    "hellaswag": [
        {},
        {"ctx_a": 3},
        {"activity_label": 1, "ctx_a": 1, "ctx_b": 2, "endings": 3, "label": 4},
    ],
    "arc_easy": [{"question": 3, "answerKey": [], "choices": []}, {"question": {}, "answerKey": 1}],
    "mmlu": [{"subject": 3}, {"subject": "a", "choices": "abcd", "question": "q", "answer": HUGE}],
    "lambada": [{"text": 3}, {"text": None}, {"text": ""}],
    "exact_match": [{"prompt": 1, "completion": 2}, {"prompt": "a", "completion": "b", "stop": 3}],
    "piqa": [{"goal": 1, "sol1": [], "sol2": {}, "label": "x"}],
}


@pytest.mark.parametrize(("task", "row"), cases(ROWS), ids=lambda x: f"{x!r:.30}")
def test_tasks_that_are_none(task, row, here, capsys):
    Path("t.jsonl").write_text(json.dumps(row))
    words = ["--out_dir=run", f"--tasks={task}:t.jsonl", "--device=cpu"]
    assert "t.jsonl" in refused(evaluate.main, capsys, here, *words)


@pytest.mark.parametrize("words", ["--max_new_tokens=1e9", "--num_samples=1e9"])
def test_samples_that_would_fill_the_memory(words, here, capsys):
    refused(sample.main, capsys, here, "--out_dir=run", words)


def test_settings_and_network_have_the_same_bounds():
    """Of what both know; settings bound more."""
    assert {name: LARGEST.get(name, most) for name, most in MOST.items()} == MOST
    assert MOST.keys() - LARGEST.keys() == {"vocab_size"}


# -----------------------------------------------------------------------------
# Runs to show: what is wrong is left out

ROW = {"step": 1, "loss": 2.0, "tokens": 3, "elapsed": 1.0, "tokens_per_second": 5.0}


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("key", [*ROW, "val_loss", "seconds"])
def test_a_run_to_show_with_wrong_rows(key, value, here, capsys):
    Path("run/metrics.jsonl").write_text(json.dumps(ROW | {key: value}) + "\n")
    Path("run/samples.jsonl").write_text(json.dumps({"step": value, "text": value}) + "\n")
    Path("run/starts.jsonl").write_text(json.dumps({"parameters": value, "device": value}) + "\n")
    assert visualize.main(["run", "run"]) == 0


@pytest.mark.parametrize("text", ["batch_size = 'x'", "block_size = [1]", "x = " + NEST, "\0"])
def test_a_run_to_show_with_wrong_settings(text, here, capsys):
    Path("run/settings.toml").write_text(text)
    assert visualize.main(["run", "run"]) == 0
