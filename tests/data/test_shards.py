import hashlib
import json
import os
import struct
import sys

import numpy as np
import pytest
from tiny_run import command, finished

from lathe.data.dataset import open_dataset
from lathe.data.shards import ShardWriter, file_sha256, write_dataset, write_meta
from lathe.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    write_dataset(
        tmp_path / "d",
        load_tokenizer("byte"),
        ["hello", "", "wörld" * 100],
        ["val"],
        shard_tokens=100,
    )
    return tmp_path / "d"


def test_shards_hold_the_documents_each_after_an_end_of_text(folder):
    dataset = open_dataset(folder, verify=True)
    tokens = np.concatenate(dataset.train.shards)
    assert tokens.tolist() == [256, *b"hello", 256, 256, *("wörld" * 100).encode()]
    assert [len(s) for s in dataset.train.shards] == [100] * 6 + [8]
    assert dataset.meta["totals"]["train"] == {"tokens": 608, "documents": 3, "bytes": 605}
    assert sum(dataset.tokenizer().token_byte_lengths()[tokens]) == 605
    assert dataset.val.shards[0].tolist() == [256, *b"val"]
    assert dataset.tokenizer().fingerprint == dataset.tokenizer_fingerprint
    out = np.zeros(608, np.int64)
    dataset.train.read(0, 608, out)
    assert (out == tokens).all()
    for shard in dataset.meta["shards"]:
        assert hashlib.sha256((folder / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]


def test_llmc_reads_our_shards_and_we_read_theirs(folder, tmp_path):
    raw = (folder / "train_000000.bin").read_bytes()
    magic, version, count = struct.unpack(
        "<3i", raw[:12]
    )  # what llm.c's loaders check, and all that they check
    assert (magic, version) == (20240520, 1) and len(raw) == 1024 + 2 * count
    assert struct.unpack("<4H", raw[1024:1032]) == (256, *b"hel")

    theirs = tmp_path / "fineweb10B"
    theirs.mkdir()
    for name, tokens in (
        ("fineweb_train_000001.bin", [256, 1, 2, 3]),
        ("fineweb_val_000000.bin", [256, 9]),
    ):
        header = struct.pack("<3i", 20240520, 1, len(tokens)).ljust(1024, b"\0")
        (theirs / name).write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))
    header = struct.pack("<3i", 20240801, 7, 2).ljust(1024, b"\0")  # as for Llama 3
    (theirs / "fineweb_train_000002.bin").write_bytes(header + struct.pack("<2I", 4, 5))
    dataset = open_dataset(f"raw:byte:{theirs}", verify=True)
    out = np.zeros(6, np.int64)
    dataset.train.read(0, 6, out)
    assert out.tolist() == [256, 1, 2, 3, 4, 5]
    assert dataset.val.shards[0].tolist() == [256, 9]


@pytest.mark.parametrize(
    ("vocab_size", "magic", "width"), [(65536, 20240520, 2), (65537, 20240801, 4)]
)
def test_tokens_take_two_bytes_up_to_65536_ids_and_four_above(tmp_path, vocab_size, magic, width):
    tokenizer = Tokenizer(
        "byte", "many", [b"x"] * (vocab_size - 1) + [b""], {"<|endoftext|>": vocab_size - 1}
    )
    writer = ShardWriter(tmp_path, "train", tokenizer)
    writer.append(np.array([0, 65535, vocab_size - 1]))
    with pytest.raises(
        ValueError, match=f"token id {vocab_size} is outside the vocabulary of {vocab_size} ids"
    ):
        writer.append(np.array([vocab_size]))
    write_meta(tmp_path, tokenizer, writer.finish())
    dataset = open_dataset(tmp_path, verify=True)
    assert dataset.train.shards[0].tolist() == [0, 65535, vocab_size - 1]
    assert struct.unpack("<i", (tmp_path / "train_000000.bin").read_bytes()[:4])[0] == magic
    assert (tmp_path / "train_000000.bin").stat().st_size == 1024 + 3 * width


def test_a_writer_continues_exactly_at_any_position(tmp_path):
    tokenizer, tokens = load_tokenizer("byte"), np.arange(55) % 257
    for name, stop_at in (("straight", []), ("broken", [0, 7, 10, 20, 29])):
        (tmp_path / name).mkdir()
        for position in (
            stop_at
        ):  # each attempt leaves ten tokens too many, and the last one finished shards as well
            writer = ShardWriter(tmp_path / name, "train", tokenizer, 10, position)
            writer.append(tokens[position : position + 20])
            writer.finish()
        position = stop_at[-1] if stop_at else 0
        writer = ShardWriter(tmp_path / name, "train", tokenizer, 10, position)
        writer.append(tokens[position:])
        write_meta(tmp_path / name, tokenizer, writer.finish())
        tokenizer.save(tmp_path / name)
    assert (
        open_dataset(tmp_path / "straight").fingerprint
        == open_dataset(tmp_path / "broken", verify=True).fingerprint
    )
    assert not list((tmp_path / "broken").glob("*.tmp"))


def test_a_writer_leaves_files_alone_that_are_not_its_own(tmp_path):
    (tmp_path / "train_mine.bin").write_bytes(b"precious")
    (tmp_path / "train.bin").write_bytes(b"precious")
    write_dataset(tmp_path, load_tokenizer("byte"), ["a"], ["b"])
    assert (
        (tmp_path / "train_mine.bin").read_bytes()
        == (tmp_path / "train.bin").read_bytes()
        == b"precious"
    )


def overwrite(at, content):
    def damage(folder):
        with open(folder / "train_000001.bin", "r+b") as file:
            file.seek(at)
            file.write(content)

    return damage


def write_meta_json(text: str):
    return lambda folder: (folder / "meta.json").write_text(text)


def edit_meta(change):
    def damage(folder):
        meta = json.loads((folder / "meta.json").read_text())
        change(meta)
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: os.truncate(folder / "train_000001.bin", 1100),
            "train_000001.bin is truncated or changed: it has 1,100 bytes, 100 tokens make 1,224",
        ),
        (overwrite(1224, b"xx"), "train_000001.bin is truncated or changed: it has 1,226 bytes"),
        (overwrite(1030, b"!"), "train_000001.bin was changed: sha256"),
        (overwrite(0, bytes(1024)), "train_000001.bin does not begin with a shard's header"),
        (
            edit_meta(lambda meta: meta["shards"][1].update(tokens=99)),
            "train_000001.bin is truncated or changed",
        ),
        (
            edit_meta(lambda meta: meta["tokenizer"].update(name="other", sha256="ab" * 32)),
            "train_000000.bin was made with another tokenizer .* other is abababababab",
        ),
        (edit_meta(lambda meta: meta["tokenizer"].pop("sha256")), "meta.json is damaged"),
        (lambda folder: os.truncate(folder / "meta.json", 300), "meta.json is damaged"),
        (write_meta_json("[" * 100_000), "meta.json is damaged .* nested too deep"),
        (write_meta_json("1" * 5000), "meta.json is damaged .* digits"),
        (write_meta_json("[]"), "meta.json is damaged .* no JSON object"),
        (
            lambda folder: (folder / "val_000000.bin").unlink(),
            "val_000000.bin is missing, though meta.json names it",
        ),
    ],
)
def test_damaged_datasets_are_refused_with_the_file_and_the_fix(folder, damage, message):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_dataset(folder, verify=True)
    assert (
        "\n" not in str(error.value) and "again" in str(error.value) or "raw:" in str(error.value)
    )


def test_ids_outside_the_vocabulary_are_found_by_verifying(folder):
    path = folder / "train_000001.bin"
    path.write_bytes(path.read_bytes()[:-2] + struct.pack("<H", 300))
    edit_meta(lambda meta: meta["shards"][1].update(sha256=file_sha256(path)))(folder)
    with pytest.raises(
        ValueError, match="train_000001.bin: token 99 is 300, outside the tokenizer's 257 ids"
    ):
        open_dataset(folder, verify=True)


# -----------------------------------------------------------------------------
# More shards than files that may be open


OPENING = """
import resource, sys
from lathe import cli
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
from lathe.data.dataset import open_dataset
def main():
    data = open_dataset(sys.argv[1])
    print(len(data.train.shards), int(sum(int(shard.sum()) for shard in data.train.shards)))
cli.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits on Windows")
def test_a_dataset_of_more_shards_than_open_files_raises_the_limit_or_says_how(tmp_path):
    text = ["some words " * 200]
    write_dataset(tmp_path, load_tokenizer("byte"), text, ["val"], shard_tokens=20)
    n_shards = len(list(tmp_path.glob("train*.bin")))
    assert n_shards > 100
    code, out, err = finished(command("-c", OPENING, tmp_path, 4096))
    assert code == 0, err
    assert out.split()[0] == str(n_shards)
    code, _, err = finished(command("-c", OPENING, tmp_path, 64))
    assert code == 1 and err.count("\n") == 1
    assert "may open 64 files" in err and "ulimit -Hn" in err
