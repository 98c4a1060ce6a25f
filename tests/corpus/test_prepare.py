import csv
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe import ROOT
from lathe.corpus import build, units
from lathe.corpus.cut import cut_units
from lathe.corpus.find import find_sources
from lathe.corpus.rules import Rules
from lathe.corpus.split import document_hash
from lathe.corpus.tokens import tokenize_unit
from lathe.data.dataset import open_dataset
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.gpt2 import EOT
from lathe.text.tokenizer import load_tokenizer, train_char
from prepare import python_stdlib, shakespeare_char, tinystories, verify, wikitext

SHARED = ROOT.parent / "shared" / "data"
SENTENCES = [
    f"Document {i} says: hello, wörld!\nIts second line is number {i * i}.\n" for i in range(400)
]


def prepare(inputs, out, **options):
    options = {"tokenizer": "byte", "workers": 1} | options
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return build.prepare(build.Options(input=[str(i) for i in inputs], out=str(out), **options))


def stored_documents(folder, split=None) -> list[str]:
    """All documents of a dataset, decoded, train before val."""
    dataset = open_dataset(folder, verify=True)
    tokenizer, found = dataset.tokenizer(), []
    for stream in (dataset.train, dataset.val) if split is None else (getattr(dataset, split),):
        tokens = np.empty(stream.n_tokens, np.int64)
        if stream.n_tokens:
            stream.read(0, stream.n_tokens, tokens)
        begins = np.flatnonzero(tokens == tokenizer.eot_id)
        assert not len(tokens) or begins[0] == 0
        found += (
            [tokenizer.decode(part[1:]) for part in np.split(tokens, begins[1:])]
            if len(begins)
            else []
        )
    return found


def shard_hashes(folder):
    return [(s["name"], s["sha256"]) for s in open_dataset(folder, verify=True).meta["shards"]]


def write_jsonl(path, documents, **more):
    path.write_text(
        "".join(json.dumps({"text": d} | more) + "\n" for d in documents), encoding="utf-8"
    )
    return path


# ------------------------------------------------------------------------------------------------- kinds of input


def as_jsonl(documents):
    return "".join(json.dumps({"n": 1, "text": d}) + "\n" for d in documents).encode()


def as_csv(documents, delimiter=","):
    table = io.StringIO()
    csv.writer(table, delimiter=delimiter).writerows(
        [["n", "text"], *([i, d] for i, d in enumerate(documents))]
    )
    return table.getvalue().encode()


def as_parquet(documents):
    import pyarrow
    import pyarrow.parquet

    table, file = pyarrow.table({"n": list(range(len(documents))), "text": documents}), io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=150)
    return file.getvalue()


FORMS = {
    "a.jsonl": as_jsonl,
    "a.ndjson": as_jsonl,
    "a.json": lambda documents: json.dumps([{"text": d} for d in documents], indent=1).encode(),
    "strings.json": lambda documents: json.dumps(documents, ensure_ascii=False).encode(),
    "values.json": lambda documents: "\n".join(
        json.dumps({"text": d}, indent=1) for d in documents
    ).encode(),
    "a.csv": as_csv,
    "a.tsv": lambda documents: as_csv(documents, "\t"),
    "a.parquet": as_parquet,
}


def compressed(content, suffix):
    if suffix == ".gz":
        return gzip.compress(content)
    if suffix == ".zst":
        return pytest.importorskip("zstandard").compress(content)
    return content


# Parquet files are compressed inside already.
@pytest.mark.parametrize(
    ("name", "suffix"),
    [(n, s) for n in FORMS for s in ("", ".gz", ".zst") if not (s and n.endswith(".parquet"))],
)
def test_every_form_of_the_same_documents_gives_the_same_shards(
    name, suffix, tmp_path, monkeypatch
):
    monkeypatch.setattr(units, "UNIT_BYTES", 3000)  # many units of each
    prepare(write_jsonl(tmp_path / "plain.jsonl", SENTENCES), tmp_path / "expected")
    (tmp_path / (name + suffix)).write_bytes(compressed(FORMS[name](SENTENCES), suffix))
    prepare(tmp_path / (name + suffix), tmp_path / "out")
    assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "expected")
    assert sorted(stored_documents(tmp_path / "out")) == sorted(SENTENCES)


def test_folders_patterns_and_files_are_found_once_and_in_order(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / ".hidden").mkdir()
    for name in ("b.txt", "a.md", "deep/c.py", ".hidden/d.txt", "picture.png"):
        (tmp_path / "in" / name).write_text(f"content of {name} " * 20)
    (tmp_path / "in" / "e.txt.gz").write_bytes(gzip.compress(b"content of e " * 20))
    out = tmp_path / "in" / "out"  # the folder written to lies inside the folder read
    prepare([tmp_path / "in", tmp_path / "in" / "*.txt"], out, val_fraction=0)
    begins = [d.split()[2] for d in stored_documents(out)]
    assert begins == ["a.md", "b.txt", "e", "deep/c.py"]
    prepare([tmp_path / "in" / "**" / "*.txt*"], tmp_path / "out2", val_fraction=0)
    assert [d.split()[2] for d in stored_documents(tmp_path / "out2")] == [
        ".hidden/d.txt",
        "b.txt",
        "e",
    ]
    prepare(
        [tmp_path / "in" / "picture.png"], tmp_path / "out3", val_fraction=0
    )  # named by itself: taken
    assert len(stored_documents(tmp_path / "out3")) == 1


@pytest.mark.parametrize(("name", "write"), [("x.jsonl", as_jsonl), ("x.parquet", as_parquet)])
def test_datasets_that_the_datasets_library_knows_are_read(name, write, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / name).write_bytes(write(SENTENCES))
    prepare(f"hf:{tmp_path}/hub", tmp_path / "out")
    prepare(f"hf:{tmp_path}/hub:train", tmp_path / "same")
    assert sorted(stored_documents(tmp_path / "out")) == sorted(SENTENCES)
    assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "same")
    with pytest.raises(ValueError, match="no split or configuration 'test'; splits: train"):
        prepare(f"hf:{tmp_path}/hub:test", tmp_path / "none")


def test_files_at_an_address_are_read_where_they_are(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    for name in ("a.parquet", "a.jsonl"):
        with fsspec.open(f"memory://lathe/{name}", "wb") as file:
            file.write(FORMS[name](SENTENCES))
        prepare(f"memory://lathe/{name}", tmp_path / name)
        assert sorted(stored_documents(tmp_path / name)) == sorted(SENTENCES)


def test_other_fields_and_given_validation_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"body": "train me", "text": 3}\n\n{"body": "too"}\n"a text by itself"\n'
    )
    (tmp_path / "b.csv").write_text('id,body\n1,"validate, ""me"""\n')
    meta = prepare(
        tmp_path / "a.jsonl", tmp_path / "out", field="body", val_input=[str(tmp_path / "b.csv")]
    )
    assert stored_documents(tmp_path / "out", "train") == ["train me", "too", "a text by itself"]
    assert stored_documents(tmp_path / "out", "val") == ['validate, "me"']
    assert meta["options"]["split"] == "given"


def test_standard_input_is_text_or_what_format_says(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "prepare" / "text.py"),
        "--input",
        "-",
        "--tokenizer",
        "char",
        "--out",
    ]
    story = "Once upon a time. " * 50
    subprocess.run(
        [*command, str(tmp_path / "text")], input=story.encode(), check=True, capture_output=True
    )
    assert "".join(stored_documents(tmp_path / "text")) == story
    rows = as_jsonl(SENTENCES)
    done = subprocess.run(
        [*command, str(tmp_path / "rows"), "--format=jsonl"], input=rows, capture_output=True
    )
    assert done.returncode == 0 and done.stdout == b""
    assert sorted(stored_documents(tmp_path / "rows")) == sorted(SENTENCES)
    names = {"lock", "meta.json", "tokenizer.json", "train_000000.bin", "val_000000.bin"}
    assert {p.name for p in (tmp_path / "rows").iterdir()} == names


# ------------------------------------------------------------------------------------------------- what is kept

anything = st.text(st.characters(codec=None, exclude_categories=[]), max_size=60) | st.sampled_from(
    ["", EOT, f"a{EOT}b", "a\r\nb\rc\n", "\ud800x", "\ufeffx", "x\x00y", " \u2028 \x85"]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(anything, max_size=6), st.sampled_from(["lf", "keep"]), st.booleans())
def test_shards_decode_to_the_documents(tmp_path_factory, documents, newlines, dedup):
    folder = tmp_path_factory.mktemp("any")
    write_jsonl(folder / "a.jsonl", ["first", *documents])  # json writes surrogates as escapes
    meta = prepare(
        folder / "a.jsonl", folder / "out", newlines=newlines, dedup=dedup, val_fraction=0
    )
    expected = ["first"]
    for document in documents:
        document = document.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if newlines == "lf":
            document = document.replace("\r\n", "\n").replace("\r", "\n")
        if document and not (dedup and document in expected):
            expected.append(document)
    assert stored_documents(folder / "out") == expected
    assert meta["counts"].get("empty documents skipped", 0) == documents.count("")
    occurrences = sum(d.count(EOT) for d in documents)
    assert meta["counts"].get(f"{EOT} in the text, kept as ordinary text", 0) == occurrences


def test_changes_to_the_text_are_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\xff\xfe and \xef\xbf\xbd\n")
    meta = prepare(tmp_path / "a.txt", tmp_path / "out", errors="replace", val_fraction=0)
    assert stored_documents(tmp_path / "out") == ["one\ntwo\nthree\ufffd\ufffd and \ufffd\n"]
    assert meta["counts"] == {
        "Windows or Mac line ends converted": 2,
        "invalid byte sequences replaced": 2,
    }
    prepare(
        tmp_path / "a.txt", tmp_path / "kept", errors="replace", newlines="keep", val_fraction=0
    )
    assert stored_documents(tmp_path / "kept") == ["one\r\ntwo\rthree\ufffd\ufffd and \ufffd\n"]
    write_jsonl(tmp_path / "b.jsonl", ["\ud800 and \ud83d\ude00", "same", "same", ""])
    meta = prepare(tmp_path / "b.jsonl", tmp_path / "b", dedup=True, val_fraction=0)
    assert stored_documents(tmp_path / "b") == ["\ufffd and \U0001f600", "same"]
    counts = {"duplicates left out": 1, "empty documents skipped": 1, "lone surrogates replaced": 1}
    assert meta["counts"] == counts


def test_the_split_depends_on_each_document_alone(tmp_path):
    prepare(write_jsonl(tmp_path / "a.jsonl", SENTENCES), tmp_path / "a", val_fraction=0.1)
    shuffled = SENTENCES + SENTENCES[:50] + [f"more {i}" for i in range(100)]
    random.Random(0).shuffle(shuffled)
    prepare(write_jsonl(tmp_path / "b.jsonl", shuffled), tmp_path / "b", val_fraction=0.1)
    val, more_val = (set(stored_documents(tmp_path / n, "val")) for n in "ab")
    assert val == {d for d in more_val if d.startswith("Document")} and 20 < len(val) < 60
    assert not val & set(stored_documents(tmp_path / "b", "train"))  # duplicates lie on one side
    prepare(tmp_path / "a.jsonl", tmp_path / "c", val_fraction=0.2)
    assert val < set(
        stored_documents(tmp_path / "c", "val")
    )  # a larger share keeps the smaller one


@pytest.mark.parametrize("n_documents", [1, 2, 3])
def test_few_documents_are_split_by_position(n_documents, tmp_path):
    documents = ["".join(map(chr, range(97, 122))) * 8] * n_documents
    meta = prepare(
        write_jsonl(tmp_path / "a.jsonl", documents),
        tmp_path / "out",
        val_fraction=0.25,
        newlines="keep",
    )
    train, val = (stored_documents(tmp_path / "out", split) for split in ("train", "val"))
    assert "".join(train + val) == "".join(documents)
    assert len("".join(val)) == 50 * n_documents
    assert meta["options"]["split"] == "position"


def test_one_text_is_split_by_position_in_whole_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 500)
    story = "".join(f"Zeile {i}: süß\r\n" for i in range(300))
    (tmp_path / "a.txt").write_text(story, newline="", encoding="utf-8")
    for tokenizer in ("byte", "char", "bpe:300"):
        out = tmp_path / tokenizer.replace(":", "")
        prepare(tmp_path / "a.txt", out, tokenizer=tokenizer, val_fraction=0.1)
        clean = story.replace("\r\n", "\n")
        at = int(len(clean) * 0.9)
        assert stored_documents(out) == [clean[:at], clean[at:]]


def test_leaving_out_duplicates_keeps_both_parts_of_a_text_that_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 500)
    story = "".join(f"line {i}\n" for i in range(300))
    (tmp_path / "a.txt").write_text(story)
    prepare(tmp_path / "a.txt", tmp_path / "out", val_fraction=0.25, dedup=True)
    at = int(len(story) * 0.75)
    assert stored_documents(tmp_path / "out") == [story[:at], story[at:]]
    write_jsonl(tmp_path / "b.jsonl", ["one and the same", "one and the same", "another " * 50])
    prepare(
        tmp_path / "b.jsonl", tmp_path / "b", val_fraction=1e-9, dedup=True
    )  # by hash, all go to train
    assert stored_documents(tmp_path / "b", "train")[0] == "one and the same"
    assert "".join(stored_documents(tmp_path / "b")) == "one and the same" + "another " * 50


def test_an_empty_part_is_told(tmp_path, capsys):
    prepare(write_jsonl(tmp_path / "a.jsonl", SENTENCES), tmp_path / "out", val_fraction=0)
    assert "no validation text: add --val_fraction or --val_input" in capsys.readouterr().err
    prepare(tmp_path / "a.jsonl", tmp_path / "both", val_fraction=0.3)
    assert "no validation text" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- large texts


TRICKY = (
    "日本語の文\n\n\n" * 50
    + "x\r\n  y\r\n" * 99
    + "no line ends but words and 12 3456 don't it's. " * 99
)


@pytest.mark.parametrize("encoding", ["gpt2", "cl100k_base", "o200k_base"])
def test_where_a_text_is_cut_into_units_does_not_show_in_the_tokens(
    encoding, tmp_path, monkeypatch
):
    import tiktoken_ext.openai_public as encodings

    empty = {"load_tiktoken_bpe": {}, "data_gym_to_mergeable_bpe_ranks": {}}
    for name, ranks in empty.items():
        monkeypatch.setattr(encodings, name, lambda *a, ranks=ranks, **k: ranks)
    pattern = encodings.ENCODING_CONSTRUCTORS[encoding]()[
        "pat_str"
    ]  # with our own merges: the pattern is what counts
    source = Path(build.__file__).read_text("utf-8") + "".join(SENTENCES) + TRICKY
    train_bpe(count_pieces([source], pattern), 500, pattern).save(tmp_path)
    (tmp_path / "a.txt").write_text(source, newline="", encoding="utf-8")
    expected = load_tokenizer(tmp_path).encode(source)
    for unit_bytes in (700, 1300, 5000):
        monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
        out = tmp_path / str(unit_bytes)
        prepare(tmp_path / "a.txt", out, tokenizer=str(tmp_path), newlines="keep", val_fraction=0)
        assert np.concatenate(open_dataset(out).train.shards).tolist() == [499, *expected]


def test_a_text_without_words_is_cut_between_characters_with_a_warning(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(units, "UNIT_BYTES", 100)
    story = "日本語" * 400
    (tmp_path / "a.txt").write_text(story, encoding="utf-8")
    (tmp_path / "b.txt").write_text("\r\n" * 900, newline="")
    prepare(
        [tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", val_fraction=0, newlines="keep"
    )
    assert stored_documents(tmp_path / "out") == [story, "\r\n" * 900]
    assert "cutting anywhere" in capsys.readouterr().err


def test_documents_larger_than_units_and_shards_keep_their_split_and_their_duplicates(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(units, "UNIT_BYTES", 1000)
    (tmp_path / "in").mkdir()
    large = {i: "".join(random.Random(i).choices("abc \n", k=5000)) for i in range(30)}
    for i, content in large.items():
        (tmp_path / "in" / f"{i:02}.txt").write_text(content)
        (tmp_path / "in" / f"{i:02}_copy.txt").write_text(content)
        (tmp_path / "in" / f"{i:02}_small.txt").write_text(f"small {i}")
    prepare(tmp_path / "in", tmp_path / "out", val_fraction=0.3, dedup=True, shard_tokens=2000)
    train, val = (stored_documents(tmp_path / "out", split) for split in ("train", "val"))
    assert sorted(train + val) == sorted([*large.values(), *(f"small {i}" for i in range(30))])
    assert any(len(d) == 5000 for d in val) and any(len(d) == 5000 for d in train)
    by_hash = {d: document_hash(d) < 0.3 * 2**64 for d in train + val}
    assert all(by_hash[d] for d in val) and not any(by_hash[d] for d in train)


def test_peak_memory_does_not_grow_with_the_document(tmp_path):
    with open(tmp_path / "a.txt", "w") as file:
        for i in range(80):
            file.write(f"line {i} of a long text\n" * 50_000)
    code = (
        "import sys; from lathe.corpus import build as text; "
        "text.prepare(text.Options(input=[sys.argv[1]], out=sys.argv[2], tokenizer='byte', workers=1)); "
        "print(open('/proc/self/status').read())"
    )
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak memory is read from /proc, which Linux has")
    run = [sys.executable, "-c", code, str(tmp_path / "a.txt"), str(tmp_path / "out")]
    status = subprocess.run(run, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    assert (
        tmp_path / "a.txt"
    ).stat().st_size > 90e6 and peak < 150e6  # 103 MB, of which 35 are Python and numpy


# ------------------------------------------------------------------------------------------------- workers, resuming


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """9 MB of JSON lines, with duplicates."""
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    rng = random.Random(1)
    return write_jsonl(path, [rng.choice(SENTENCES) * rng.randint(1, 120) for _ in range(2000)])


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_bytes(corpus, tmp_path):
    options = {"tokenizer": "bpe:300", "dedup": True, "shard_tokens": 500_000, "val_fraction": 0.1}
    for workers in (1, 2, 3):
        prepare(corpus, tmp_path / str(workers), workers=workers, **options)
    assert (
        shard_hashes(tmp_path / "1") == shard_hashes(tmp_path / "2") == shard_hashes(tmp_path / "3")
    )
    assert (tmp_path / "1" / "meta.json").read_bytes() == (
        tmp_path / "2" / "meta.json"
    ).read_bytes()
    assert len(shard_hashes(tmp_path / "1")) > 3


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_writes_the_same_bytes(corpus, tmp_path):
    options = ["--tokenizer=bpe:300", "--dedup=true", "--shard_tokens=500000", "--val_fraction=0.1"]
    command = [sys.executable, str(ROOT / "prepare" / "text.py"), f"--input={corpus}", *options]
    subprocess.run([*command, f"--out={tmp_path}/straight"], check=True, capture_output=True)
    rng, kills, continued = random.Random(2), 0, 0
    began = time.monotonic()
    while kills < 4 and time.monotonic() - began < 60:
        run = [*command, f"--out={tmp_path}/killed", f"--workers={rng.choice([1, 2])}"]
        process = subprocess.Popen(run, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=rng.uniform(0.2, 3))
            shutil.rmtree(tmp_path / "killed")  # it was fast: begin again
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continued += (tmp_path / "killed" / "progress.jsonl").exists()
    last = subprocess.run([*command, f"--out={tmp_path}/killed"], capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert shard_hashes(tmp_path / "killed") == shard_hashes(tmp_path / "straight")
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "straight"))


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch, n_units):
    real, seen = build.ShardWriter.append, []

    def append(writer, tokens, *scored):
        seen.append(tokens)
        if len(seen) == 2 * n_units:  # in the middle of a unit: train is written, val is not
            writer.close()
            for path in writer.folder.glob("*.bin.tmp"):
                with open(path, "ab") as file:
                    file.write(b"half a tok")
            raise Interrupted
        real(writer, tokens, *scored)

    monkeypatch.setattr(build.ShardWriter, "append", append)


def test_an_interrupted_run_continues_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    options = {"val_fraction": 0.1, "shard_tokens": 1700, "dedup": True, "tokenizer": "char"}
    prepare(path, tmp_path / "straight", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Interrupted):
            prepare(path, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "meta.json").exists()
    with pytest.raises(FileNotFoundError, match="unfinished"):
        open_dataset(tmp_path / "out")
    with monkeypatch.context() as patch:
        tokenized = []
        real = tokenize_unit
        patch.setattr(
            build,
            "tokenize_unit",
            lambda unit, **more: tokenized.append(unit) or real(unit, **more),
        )
        prepare(path, tmp_path / "out", **options)
    assert "continuing" in capsys.readouterr().err
    n_units = len(list(cut_units(find_sources([str(path)]), Rules())))
    assert len(tokenized) == n_units - 4
    assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "straight")


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_says_how_to_go_on(tmp_path):
    large = write_jsonl(
        tmp_path / "large.jsonl", SENTENCES * (40_000_000 // len("".join(SENTENCES)))
    )  # seconds of work
    command = [
        sys.executable,
        str(ROOT / "prepare" / "text.py"),
        f"--input={large}",
        f"--out={tmp_path}/out",
    ]
    command += ["--tokenizer=bpe:300", "--bpe_sample=1", "--workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out" / "progress.jsonl"
    while not journal.exists() or journal.read_text().count("\n") < 2:  # until a unit is done
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and errors.splitlines()[-1].startswith(
        "prepare: stopped: run the same command"
    )
    assert "Traceback" not in errors


def test_a_run_continued_on_changed_input_drops_what_no_longer_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6)
        with pytest.raises(Interrupted):
            prepare(path, tmp_path / "out")
    changed = path.read_text().replace("Document 50 says", "Document 5O says")  # of the same size
    path.write_text(changed)
    prepare(path, tmp_path / "out")
    prepare(path, tmp_path / "straight")
    assert shard_hashes(tmp_path / "out") == shard_hashes(tmp_path / "straight")
    assert any("5O" in d for d in stored_documents(tmp_path / "out"))


def test_running_the_same_command_again_does_nothing_unless_the_input_changed(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", SENTENCES)
    prepare(path, tmp_path / "out")
    before = (tmp_path / "out" / "meta.json").stat().st_mtime_ns
    prepare(path, tmp_path / "out")
    assert (tmp_path / "out" / "meta.json").stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().err
    path.write_text(path.read_text().replace("Document 50", "Document 5O"))
    os.utime(path, (time.time() + 5,) * 2)
    prepare(path, tmp_path / "out")
    assert any("5O" in d for d in stored_documents(tmp_path / "out"))
    with pytest.raises(ValueError, match="holds a dataset of other input or options.*--overwrite"):
        prepare(path, tmp_path / "out", val_fraction=0.5)
    prepare(path, tmp_path / "out", val_fraction=0.5, overwrite=True)
    (tmp_path / "out" / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(path, tmp_path / "out", val_fraction=0.5)


# ------------------------------------------------------------------------------------------------- the other commands


def test_tiny_shakespeare_is_cut_as_in_nanogpt(tmp_path):
    file = SHARED / "tinyshakespeare" / "input.txt"
    if not file.is_file():
        pytest.skip(f"tiny Shakespeare is not at {file}")
    shakespeare_char.main(["--input", str(file), "--out", str(tmp_path / "out")])
    dataset, content = open_dataset(tmp_path / "out"), file.read_text()
    assert (dataset.train.n_tokens, dataset.val.n_tokens, dataset.vocab_size) == (
        1_003_855,
        111_541,
        66,
    )
    assert stored_documents(tmp_path / "out") == [
        content[: int(len(content) * 0.9)],
        content[int(len(content) * 0.9) :],
    ]


def test_shakespeare_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="cannot be downloaded.*save https.*input.txt.*--input"):
        shakespeare_char.main(["--out", str(tmp_path / "out")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "input.txt").write_text("the text, downloaded by hand. " * 20)
    shakespeare_char.main(["--out", str(tmp_path / "out")])
    assert open_dataset(tmp_path / "out").val.n_tokens == 61


def test_the_standard_library_leaves_its_tests_out(tmp_path):
    library = tmp_path / "lib"
    for name in (
        "ast.py",
        "json/decoder.py",
        "test/test_ast.py",
        "site-packages/x.py",
        "idlelib/idle_test/t.py",
    ):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f"# {name}\nimport sys\n" * 20)
    (library / "notes.txt").write_text("not Python")
    python_stdlib.main(["--input", str(library), "--out", str(tmp_path / "out")])
    dataset = open_dataset(tmp_path / "out")
    assert dataset.meta["files"] == 2 and dataset.tokenizer().kind == "bpe"
    stored = "".join(stored_documents(tmp_path / "out"))
    assert (
        "ast.py" in stored and "decoder" in stored and "test" not in stored and "site" not in stored
    )


def test_ready_commands_are_the_general_one_with_defaults(tmp_path, monkeypatch):
    path, asked = write_jsonl(tmp_path / "a.jsonl", SENTENCES), []
    tinystories.main(["--input", str(path), "--out", str(tmp_path / "out"), "--val_fraction=0.2"])
    assert open_dataset(tmp_path / "out").meta["tokenizer"]["name"] == "bpe:4096"
    monkeypatch.setattr(build, "prepare", asked.append)
    tinystories.main(["--tokenizer=gpt2"])
    assert (asked[0].tokenizer, asked[0].out) == ("gpt2", "data/tinystories")
    assert asked[0].val_input == ["hf:roneneldan/TinyStories:validation"]


def test_wikitext_joins_paragraphs_to_articles(tmp_path):
    rows = [
        "",
        " = Robert <unk> = \n",
        "",
        " He was . \n",
        "",
        " = = Career = = \n",
        " Acting . \n",
        " = Du Fu = \n",
        " A poet .",
    ]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.parquet").write_bytes(as_parquet(rows))
    name = wikitext.write_articles(str(tmp_path / "hub" / "train.parquet"), tmp_path / "a.jsonl")
    articles = [json.loads(line)["text"] for line in Path(name).read_text().splitlines()]
    first = " = Robert <unk> = \n He was . \n = = Career = = \n Acting . \n"
    assert articles == [first, " = Du Fu = \n A poet ."]


def test_verifying_shows_what_is_in_a_dataset(tmp_path, capsys):
    prepare(
        write_jsonl(tmp_path / "a.jsonl", [*SENTENCES, "long " * 500, ""]),
        tmp_path / "out",
        val_fraction=0.1,
    )
    verify.main([str(tmp_path / "out"), "--windows=3"])
    page = capsys.readouterr().out
    assert "all checks passed" in page and "1 empty documents skipped" in page
    assert "2,500 tokens at" in page and "'long long long long '" in page
    assert page.count("--- at token") == 3
    verify.main([str(tmp_path / "out"), "--windows=0"])
    assert "--- at token" not in capsys.readouterr().out
    documents = sum(int(n) for n in re.findall(r"^(\d+) documents", page, re.M))
    assert documents == 401
    train_char(SENTENCES).save(tmp_path / "out")
    with pytest.raises(
        ValueError, match="the tokenizer beside the shards is char .* were made with byte"
    ):
        verify.main([str(tmp_path / "out")])


@pytest.mark.parametrize("option", ["--windows=-3", "--window_tokens=0"])
def test_verifying_refuses_windows_that_make_no_sense(option, capsys):
    with pytest.raises(SystemExit) as end:
        verify.main(["out", option])
    assert (
        end.value.code == 2 and option.strip("-").split("=")[0] + " is" in capsys.readouterr().err
    )


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "prepare").glob("*.py")))
def test_each_command_starts_from_any_folder(script, tmp_path):
    command = [sys.executable, str(ROOT / "prepare" / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: prepare/{script} ")
