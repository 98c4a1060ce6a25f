"""What is stored of a text: all of it, and what had to change is counted."""

from pathlib import Path

import pytest
import tokenizers
from corpora import prepare, stored_documents, write, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.corpus.tokens import IN_NFC
from lathe.text.gpt2 import EOT

anything = st.text(st.characters(codec=None, exclude_categories=[]), max_size=60) | st.sampled_from(
    ["", EOT, f"a{EOT}b", "a\r\nb\rc\n", "\ud800x", "\ufeffx", "x\x00y", " \u2028 \x85"]
)


@settings(max_examples=60)
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


def test_text_that_is_not_utf8(fails):
    write("a.txt", "good text\n" * 10)
    write("b.txt", b"good\n" * 10 + b"caf\xe9 noir")
    fails(r"in/b.txt is not UTF-8 at byte 53 \(e9\); convert it or use --errors replace")
    write("b.txt", b"\xef\xbb\xbf" + b"x" * 5 + b"\xff")
    fails(r"in/b.txt is not UTF-8 at byte 8 \(ff\)")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["b.txt", "b.jsonl", "b.json", "b.csv"])
def test_text_of_16_or_32_bits_is_refused_even_where_its_zeros_are_utf8(fails, name, encoding):
    write(name, '"text"\n"a"\n'.encode(encoding))
    fails(f"in/{name} is {encoding[:6].upper()}: convert it to UTF-8", "--errors=replace")


@pytest.mark.parametrize("name", ["b.jsonl", "b.json", "b.csv"])
def test_data_files_that_are_not_utf8(fails, name):
    content = {
        "b.jsonl": b'{"text": "ab\xff"}',
        "b.json": b'[{"text": "ab\xff"}]',
        "b.csv": b"text\nab\xff\n",
    }[name]
    write(name, content)
    byte = content.index(b"\xff")
    fails(rf"in/{name} is not UTF-8 at byte {byte} \(ff\)")


def test_text_that_is_not_utf8_far_into_a_large_file(fails, unit_bytes):
    unit_bytes(1000)
    write("a.txt", b"one line of text\n" * 1000 + b"\xc3(" + b"and on\n" * 1000)
    fails(r"in/a.txt is not UTF-8 at byte 17000 \(c3\)")
    write("b.jsonl", b'{"text": "good"}\n' * 1000 + b'{"text": "\x80"}\n')
    Path("in/a.txt").unlink()
    fails(r"in/b.jsonl is not UTF-8 at byte 17010 \(80\)")


@pytest.mark.parametrize("runs", ["tiktoken", "tokenizers"])
def test_documents_that_a_tokenizer_brings_into_another_form_are_counted(tmp_path, runs):
    """As Qwen's do: é as a letter and an accent comes back as one character."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.normalizer = tokenizers.normalizers.NFC()
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(["the theme"], trainer)
    if runs == "tokenizers":
        theirs.add_tokens(["<think>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    texts = ["cafe\u0301", "caf\u00e9", "plain", "A\u030angstrom"]
    write_jsonl(tmp_path / "a.jsonl", texts)
    out = tmp_path / "out"
    meta = prepare(tmp_path / "a.jsonl", out, tokenizer=str(tmp_path), val_fraction=0)
    assert meta["counts"] == {IN_NFC: 2}
    stored = stored_documents(out)
    assert stored == ["caf\u00e9", "caf\u00e9", "plain", "\u00c5ngstrom"]
