"""Tokenizers: the same ids in transformers, and the same tokenizer on the way back."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from exports import CHARACTERS, LETTERS, bpe_tokenizer, tiny_model

from lathe import ROOT
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.hugging_face import special_token, their_file
from lathe.text.patterns import CL100K_PATTERN, LLAMA3_PATTERN, O200K_PATTERN, QWEN2_PATTERN
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.hf.export import export
from lathe.use.hf.tokenizers import find_tokenizer

TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken"
# Words, contractions, numbers, spaces, scripts, emoji, control characters, code
WORDS = ["the", "Don't", "we'll", "I'VE", " x", "'s", "'", "naïve", "café", "e\u0301", "Ünïcödé"]
NUMBERS = ["123", "4567", "3.14", "½", "Ⅷ"]
SPACES = ["  ", "\n", "\n\n", "\t", "\r\n", " \n ", "\xa0", "\u200d", "\x00"]
SCRIPTS = ["日本語", "русский", "العربية", "हिन्दी", "🎉", "👩‍💻", "𝔘"]
CODE = ["(){};", "==", "!!", "_a", "\\", "def f(x):", "    return", "<|end"]
PARTS = WORDS + NUMBERS + SPACES + SCRIPTS + CODE


def texts(parts: list[str] | str = PARTS) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(parts, k=draw.randint(0, 25))) for _ in range(500)]


def check_tokenizer(ours: Tokenizer, folder: Path, texts: list[str]):
    transformers = pytest.importorskip("transformers")
    export(tiny_model(ours), ours, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token_id == ours.eot_id
    assert len(theirs) == ours.vocab_size
    for text in texts:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids) == ours.decode(ids) == text
    assert find_tokenizer(folder).fingerprint == ours.fingerprint


def test_a_byte_tokenizer_gives_equal_ids_in_transformers(tmp_path):
    check_tokenizer(load_tokenizer("byte"), tmp_path, texts())


def test_a_character_tokenizer_gives_equal_ids_in_transformers(tmp_path):
    check_tokenizer(CHARACTERS, tmp_path, texts(LETTERS))


def test_an_own_bpe_gives_equal_ids_in_transformers(tmp_path):
    check_tokenizer(bpe_tokenizer(), tmp_path, texts())


def test_a_bpe_with_another_pattern_and_normalization_as_qwens_gives_equal_ids(tmp_path):
    own = train_bpe(count_pieces(texts(), QWEN2_PATTERN), 400, QWEN2_PATTERN)
    ours = Tokenizer("bpe", "qwen", own.pieces, own.specials, QWEN2_PATTERN, "NFC")
    normalized = [text for text in texts() if unicodedata.is_normalized("NFC", text)]
    check_tokenizer(ours, tmp_path / "out", normalized)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("cafe\u0301")["input_ids"] == ours.encode("cafe\u0301") == ours.encode("caf\xe9")
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == ours.fingerprint != own.fingerprint


@pytest.mark.parametrize("pattern", [CL100K_PATTERN, O200K_PATTERN, LLAMA3_PATTERN])
def test_long_numbers_are_cut_alike_with_the_patterns_of_other_vocabularies(pattern, tmp_path):
    own = train_bpe(count_pieces(["123456789 " * 50, *texts()], pattern), 500, pattern)
    check_tokenizer(own, tmp_path, ["12345", "1234567890 12 1", *texts()])


def test_a_tokenizer_that_the_library_runs_is_exported_as_it_was(tmp_path):
    content = their_file(bpe_tokenizer().rules)
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    think = special_token("<think>", bpe_tokenizer().vocab_size) | {"special": False}
    content["added_tokens"].append(think)
    content["added_tokens"][0]["content"] = "<|end_of_text|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours = load_tokenizer(tmp_path)
    assert ours.kind == "hf"
    check_tokenizer(ours, tmp_path / "out", ["<think>12345</think>", *texts()])


@pytest.mark.slow
@pytest.mark.skipif(
    not TIKTOKEN_FILES.is_dir(), reason=f"the gpt2 vocabulary is not in {TIKTOKEN_FILES}"
)
def test_the_gpt2_encoding_gives_equal_ids_in_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    check_tokenizer(load_tokenizer("gpt2"), tmp_path, texts())


@pytest.mark.skipif(
    not TIKTOKEN_FILES.is_dir(), reason=f"the gpt2 vocabulary is not in {TIKTOKEN_FILES}"
)
def test_a_gpt2_folder_without_tokenizer_files_has_the_gpt2_encoding(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    for vocab_size, name in ((50257, "gpt2"), (50304, "gpt2"), (1000, None)):
        config = {"model_type": "gpt2", "vocab_size": vocab_size}
        (tmp_path / "config.json").write_text(json.dumps(config))
        tokenizer = find_tokenizer(tmp_path)
        assert (tokenizer.name if tokenizer else None) == name
