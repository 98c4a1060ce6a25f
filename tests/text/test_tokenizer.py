import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_bpe import CODE, OWN

from lathe import ROOT
from lathe.text.gpt2 import EOT
from lathe.text.patterns import SAME_IN_TIKTOKEN
from lathe.text.tokenizer import Tokenizer, load_tokenizer, train_char

TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken"


@pytest.fixture
def gpt2(monkeypatch):
    if not TIKTOKEN_FILES.is_dir():
        pytest.skip(f"tiktoken's gpt2 files are not at {TIKTOKEN_FILES}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    return load_tokenizer("gpt2")


@given(st.text())
def test_bytes_and_own_bpe_decode_to_what_was_encoded(text):
    for tokenizer in (load_tokenizer("byte"), OWN):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eot_id not in ids
        assert sum(tokenizer.token_byte_lengths()[ids]) == len(text.encode())
        assert tokenizer.encode_numpy(text).tolist() == ids


@pytest.mark.parametrize("pattern", SAME_IN_TIKTOKEN.values())
def test_a_million_characters_of_white_space_in_a_row_have_ids(pattern):
    """tiktoken gives up there."""
    tokenizer = Tokenizer("bpe", "own", OWN.pieces, OWN.specials, pattern)
    for text in (" " * 10**6 + "a", "a\n" + "\t" * 10**6 + "b" + "\n" * 10**6, " " * 10**6):
        assert tokenizer.decode(tokenizer.encode_numpy(text)) == text


def test_end_of_text_in_a_text_is_ordinary_text(gpt2):
    for tokenizer in (load_tokenizer("byte"), OWN, gpt2, train_char([CODE])):
        ids = tokenizer.encode(f"a{EOT}")
        assert tokenizer.eot_id not in ids
        assert tokenizer.decode(ids) == f"a{EOT}"
        assert tokenizer.decode([*ids, tokenizer.eot_id]) == f"a{EOT}"
        assert tokenizer.decode([tokenizer.eot_id], specials=True) == EOT
        assert tokenizer.token_byte_lengths()[tokenizer.eot_id] == 0


def test_lone_surrogates_become_the_replacement_character(gpt2):
    for tokenizer in (load_tokenizer("byte"), OWN, gpt2):
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
    kind, tmp_path, request, monkeypatch
):
    tokenizers = {
        "byte": lambda: load_tokenizer("byte"),
        "char": lambda: train_char([CODE]),
        "bpe": lambda: OWN,
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


def test_changed_tokenizer_files_are_refused(tmp_path):
    OWN.save(tmp_path)
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


def test_gpt2_is_gpt2(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    import tiktoken

    assert gpt2.encode(CODE) == tiktoken.get_encoding("gpt2").encode_ordinary(CODE)
