import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe import ROOT
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.gpt2 import EOT, GPT2_PATTERN
from lathe.text.tokenizer import Tokenizer, load_tokenizer, train_char

TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken"
CODE = Path(__file__).read_text(encoding="utf-8") + (
    ROOT / "lathe" / "text" / "tokenizer.py"
).read_text("utf-8")


@pytest.fixture
def gpt2(monkeypatch):
    if not TIKTOKEN_FILES.is_dir():
        pytest.skip(f"tiktoken's gpt2 files are not at {TIKTOKEN_FILES}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    return load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return train_bpe(count_pieces([CODE]), 600)


@settings(deadline=None)
@given(st.text())
def test_bytes_and_own_bpe_decode_to_what_was_encoded(text):
    for tokenizer in (load_tokenizer("byte"), OWN):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot_id not in ids
        assert sum(tokenizer.token_byte_lengths()[ids]) == len(text.encode())
        assert tokenizer.encode_numpy(text).tolist() == ids


OWN = train_bpe(count_pieces([CODE]), 400)


def test_end_of_text_in_a_text_is_ordinary_text(own, gpt2):
    for tokenizer in (load_tokenizer("byte"), own, gpt2, train_char([CODE])):
        ids = tokenizer.encode(f"a{EOT}")
        assert tokenizer.eot_id not in ids
        assert tokenizer.decode(ids) == f"a{EOT}"
        assert tokenizer.decode([*ids, tokenizer.eot_id]) == f"a{EOT}"
        assert tokenizer.decode([tokenizer.eot_id], specials=True) == EOT
        assert tokenizer.token_byte_lengths()[tokenizer.eot_id] == 0


def test_lone_surrogates_become_the_replacement_character(own, gpt2):
    for tokenizer in (load_tokenizer("byte"), own, gpt2):
        assert tokenizer.decode(tokenizer.encode("a\ud800b\ud83d\ude00")) == "a\ufffdb\U0001f600"


def test_characters_have_ids_in_order_and_unknown_ones_are_named():
    tokenizer = train_char(["hello\n", "wörld"])
    assert tokenizer.decode(range(tokenizer.vocab_size)) == "\ndehlorwö"
    assert tokenizer.eot_id == tokenizer.vocab_size - 1 == 9
    with pytest.raises(ValueError, match=r"'Z' \(U\+005A\), '😀' \(U\+1F600\)"):
        tokenizer.encode("heZl😀")
    with pytest.raises(ValueError, match="and 15 more"):
        tokenizer.encode("".join(map(chr, range(0x4E00, 0x4E00 + 25))))


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "gpt2"])
def test_saved_tokenizers_give_equal_ids_without_any_other_file(
    kind, own, tmp_path, request, monkeypatch
):
    tokenizers = {
        "byte": lambda: load_tokenizer("byte"),
        "char": lambda: train_char([CODE]),
        "bpe": lambda: own,
    }
    tokenizer = tokenizers.get(kind, lambda: request.getfixturevalue("gpt2"))()
    names = tokenizer.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "nothing"))
    for spec in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        again = load_tokenizer(spec)
        assert again.encode(CODE) == tokenizer.encode(CODE)
        assert (again.name, again.vocab_size, again.eot_id) == (
            tokenizer.name,
            tokenizer.vocab_size,
            tokenizer.eot_id,
        )
        assert again.fingerprint == tokenizer.fingerprint


def test_changed_tokenizer_files_are_refused(own, tmp_path):
    own.save(tmp_path)
    table = tmp_path / "tokenizer.tiktoken"
    lines = table.read_text().splitlines()
    lines[300], lines[301] = lines[301].split()[0] + " 300", lines[300].split()[0] + " 301"
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="changed or damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not"):
        load_tokenizer(tmp_path)


def test_unknown_names_and_unreachable_files_are_one_line_with_the_fix(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="gpt3.* byte, gpt2, cl100k_base, o200k_base"):
        load_tokenizer("gpt3")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(
        OSError, match="vocab.bpe as 6d1cbeee0f.*encoder.json as 6c7ea1a7.*TIKTOKEN_CACHE_DIR"
    ) as error:
        load_tokenizer("gpt2")
    assert "\n" not in str(error.value)
    with pytest.raises(
        OSError, match="o200k_base.tiktoken as fb374d419588a4632f3f557e76b4b70aebbca790"
    ):
        load_tokenizer("o200k_base")


def test_ids_outside_the_vocabulary_are_refused():
    for ids in ([257], [-1], np.array([1, 999])):
        with pytest.raises(ValueError, match="is not one of the 257 ids"):
            load_tokenizer("byte").decode(ids)


def naive_bpe(counts, vocab_size):
    """The same rule, written plainly: count all pairs of all words anew for every merge."""
    words = [([bytes([b]) for b in word.encode()], n) for word, n in counts.items()]
    ids = {bytes([i]): i for i in range(256)}
    while len(ids) < vocab_size - 1:
        pairs = {}
        for word, n in words:
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + n
        best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]), default=None)
        if best is None or pairs[best] < 2:
            break
        ids.setdefault(best[0] + best[1], len(ids))
        for word, _ in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    return list(ids)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("ab c", min_size=1, max_size=30), max_size=8))
def test_bpe_training_equals_its_plain_form(texts):
    counts = count_pieces(texts)
    assert train_bpe(counts, 280).pieces[:-1] == naive_bpe(counts, 280)


def test_bpe_training_does_not_depend_on_the_order_of_counts():
    counts = count_pieces([CODE])
    backwards = dict(reversed(list(counts.items())))
    assert train_bpe(counts, 500).fingerprint == train_bpe(backwards, 500).fingerprint
    assert train_bpe(counts, 300).vocab_size == 300
    with pytest.raises(ValueError, match="at least bpe:257"):
        train_bpe(counts, 256)


def test_own_bpe_is_what_the_tokenizers_library_computes(own, tmp_path):
    """Another implementation, given our table as vocabulary and merges, cuts and merges alike."""
    tokenizers = pytest.importorskip(
        "tokenizers", reason="the tokenizers library comes with transformers"
    )
    other = tokenizers.Tokenizer.from_str(json.dumps(hugging_face_form(own)))
    code = CODE.replace(EOT, "")  # which is a special token to the other one, wherever it stands
    assert other.encode(code).ids == own.encode(code)
    assert other.encode("tabs\t\tand  spaces   \n\n été 日本").ids == own.encode(
        "tabs\t\tand  spaces   \n\n été 日本"
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(hugging_face_form(own)))
    again = load_tokenizer(tmp_path)
    assert again.encode(CODE) == own.encode(CODE)
    assert (again.vocab_size, again.eot_id, again.pattern) == (
        own.vocab_size,
        own.eot_id,
        GPT2_PATTERN,
    )


def hugging_face_form(tokenizer):
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = {b: chr(b) for b in visible}
    stand_in |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in visible)}
    shown = ["".join(stand_in[b] for b in piece) for piece in tokenizer.pieces[:-1]]
    ids = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    merges = []
    for piece in tokenizer.pieces[256:-1]:  # the two parts that the merges before this one leave
        parts = [bytes([b]) for b in piece]
        while len(parts) > 2:
            pairs = [ids.get(a + b, 1 << 30) for a, b in zip(parts, parts[1:], strict=False)]
            at = pairs.index(min(pairs))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append(["".join(stand_in[b] for b in part) for part in parts])
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": tokenizer.eot_id,
                "content": EOT,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
        ],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {"type": "BPE", "vocab": {s: i for i, s in enumerate(shown)}, "merges": merges},
    }


def test_other_kinds_of_hugging_face_tokenizers_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(
        json.dumps({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "pre_tokenizer": None})
    )
    with pytest.raises(ValueError, match="not a byte-level BPE"):
        load_tokenizer(path)


def test_gpt2_is_gpt2(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    import tiktoken

    assert gpt2.encode(CODE) == tiktoken.get_encoding("gpt2").encode_ordinary(CODE)
