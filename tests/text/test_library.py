"""Tokenizers made with Hugging Face's library: equal ids, or refused by the name of a part."""

import json
import pickle
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_bpe import CODE
from tokenizers import AddedToken, Regex, Tokenizer, models, processors, trainers
from tokenizers import decoders as d
from tokenizers import normalizers as n
from tokenizers import pre_tokenizers as p

from lathe.text.gpt2 import EOT
from lathe.text.patterns import LLAMA3_PATTERN, QWEN2_PATTERN
from lathe.text.tokenizer import load_tokenizer

WORDS = ["the", " quick", "Don't", "we'LL", " x", "'s", "naïve", "e\u0301", "\xe9", "ſß", "I\u0307"]
NUMBERS = ["1", "23", "456", "7890", "123456", "3.14", "½", "Ⅷ", "৩৪", "²"]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\xa0", "\u200d", "\x00", "\u3000"]
SCRIPTS = [
    "日本語",
    "中文",
    "русский",
    "العربية",
    "हिन्दी",
    "ไทย",
    "가각",
    "🎉",
    "👩‍💻",
    "𝔘",
    "ﬁ",
    "Å",
]
SIGNS = [
    "(){};",
    "==",
    "!!",
    "_a",
    "\\",
    "...",
    "。",
    "<|end",
    "<0x0A>",
    "##",
    "</w>",
    "Ġ",
    "[UNK]",
]
TOKENS = ["<think>", "</think>", "<tool>", EOT, "<|im_start|>", "<s>", "</s>", "<unk>", "<pad>"]
PARTS = WORDS + NUMBERS + SPACES + SCRIPTS + SIGNS + TOKENS
DRAW = random.Random(0)
NASTY = ["".join(DRAW.choices(PARTS, k=DRAW.randint(0, 12))) for _ in range(500)]
ENGLISH = "The quick brown fox jumps over the lazy dog, and 12345 dogs don't care. " * 20
CORPUS = [CODE, ENGLISH, "".join(WORDS + NUMBERS + SPACES + SCRIPTS)]
BYTES = p.ByteLevel.alphabet()
TRAINERS = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordPiece": trainers.WordPieceTrainer,
    "WordLevel": trainers.WordLevelTrainer,
}

DIGITS = p.Digits(individual_digits=True)
BYTE_LEVEL = p.ByteLevel(add_prefix_space=False)
PLAIN_BYTES = p.ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA2_DECODER = d.Sequence(
    [d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(content=" ", left=1)]
)
TO_SPACES = n.Replace(" ", "▁")
THINK = AddedToken("<think>", normalized=False)
TOOL = AddedToken("<tool>", normalized=True)


def made(pre=BYTE_LEVEL, normalizer=None, tokens=(), model=None, decoder=None) -> Tokenizer:
    """A byte-level BPE, if nothing else is said, with what is said."""
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.decoder = decoder or d.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    train(tokenizer)
    tokenizer.add_special_tokens([EOT, "<|im_start|>"])
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def train(tokenizer: Tokenizer):
    kind = type(tokenizer.model).__name__
    common = {"vocab_size": 700, "show_progress": False}
    if kind == "BPE" and tokenizer.model.byte_fallback:
        bytes_by_name = [f"<0x{i:02X}>" for i in range(256)]
        common["special_tokens"] = ["<unk>", "<s>", *bytes_by_name]
        common["vocab_size"] = 1200
        common["limit_alphabet"] = 200
    elif kind == "BPE":
        common["initial_alphabet"] = BYTES
    elif kind == "Unigram":
        common |= {"unk_token": "<unk>", "special_tokens": ["<unk>"], "initial_alphabet": BYTES}
    else:
        common["special_tokens"] = ["[UNK]"]
    trainer = TRAINERS[kind](**common)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind == "BPE" and tokenizer.model.byte_fallback:  # no longer special: only <unk> and <s> are
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = content["added_tokens"][:2]
        tokenizer.__setstate__(json.dumps(content).encode())


def split(pattern: str, behavior: str, invert: bool = False) -> p.PreTokenizer:
    return p.Sequence([p.Split(Regex(pattern), behavior, invert), PLAIN_BYTES])


def llama2(tokens=(), **options) -> Tokenizer:
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return made(model=model, decoder=LLAMA2_DECODER, tokens=tokens, **options)


def with_model(tokenizer: Tokenizer, **changes) -> Tokenizer:
    content = json.loads(tokenizer.to_str())
    content["model"] |= changes
    return Tokenizer.from_str(json.dumps(content))


def ignoring_merges(tokenizer: Tokenizer) -> Tokenizer:
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    no_merge_makes_it = {"Thequickbrown": 5000}
    return with_model(tokenizer, ignore_merges=True, vocab=vocab | no_merge_makes_it)


def making_a_special_token(tokenizer: Tokenizer) -> Tokenizer:
    """A vocabulary in which the text of a special token is a word."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return with_model(tokenizer, ignore_merges=True, vocab=vocab)


def cut_and_filled(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.post_processor = processors.TemplateProcessing(
        "<|im_start|> $0", special_tokens=[("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))]
    )
    return tokenizer


SPACES_IN_ONE = AddedToken("▁▁", normalized=True)
PHI3_END = AddedToken("</s>", rstrip=True, normalized=False)
CJK = "[\u4e00-\u9fa5\u3040-ヿ]+"
DEEPSEEK = p.Sequence(
    [
        p.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        p.Split(Regex(CJK), "isolated"),
        p.Split(
            Regex(
                r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        PLAIN_BYTES,
    ]
)
# Those that models have today, and every step that keeps the text
EQUAL = {
    "gpt2": lambda: made(),
    "smollm2": lambda: made(p.Sequence([DIGITS, BYTE_LEVEL])),
    "starcoder2": lambda: made(
        p.Sequence([DIGITS, p.ByteLevel(False, use_regex=True)]), tokens=["<repo>"]
    ),
    "llama3": lambda: made(split(LLAMA3_PATTERN, "isolated")),
    "llama3_ignoring_merges": lambda: ignoring_merges(made(split(LLAMA3_PATTERN, "isolated"))),
    "qwen2": lambda: made(split(QWEN2_PATTERN, "isolated"), n.NFC()),
    "qwen3": lambda: made(split(QWEN2_PATTERN, "isolated"), n.NFC(), [THINK, "</think>", TOOL]),
    "deepseek": lambda: made(DEEPSEEK),
    "phi3": lambda: llama2(
        pre=None, normalizer=n.Sequence([n.Prepend("▁"), TO_SPACES]), tokens=[PHI3_END]
    ),
    "gemma": lambda: llama2(
        pre=p.Split(" ", "merged_with_previous"),
        normalizer=TO_SPACES,
        tokens=["\n\n", SPACES_IN_ONE],
    ),
    "metaspace_never": lambda: llama2(pre=p.Metaspace("▁", "never")),
    "split_with_previous": lambda: made(split(r"\s+|\d", "merged_with_previous")),
    "split_with_next": lambda: made(split(r"\s+|\d", "merged_with_next")),
    "split_contiguous": lambda: made(split(r"\d", "contiguous")),
    "split_inverted": lambda: made(split(r"\w+|\s", "isolated", invert=True)),
    "split_of_a_string": lambda: made(p.Sequence([p.Split("'", "isolated"), BYTE_LEVEL])),
    "two_patterns": lambda: made(p.Sequence([p.Split(Regex(r"\d{3}"), "isolated"), BYTE_LEVEL])),
    "punctuation": lambda: made(p.Sequence([p.Punctuation("isolated"), BYTE_LEVEL])),
    "fixed_length": lambda: made(p.Sequence([p.FixedLength(5), PLAIN_BYTES])),
    "no_regex": lambda: made(PLAIN_BYTES),
    "bytes_by_normalizer": lambda: made(p.Split(Regex("Ġ"), "isolated"), n.ByteLevel()),
    "word_in_text": lambda: made(tokens=[AddedToken("the", single_word=True), "quick"]),
    "cut_and_filled": lambda: cut_and_filled(made()),
}
# Steps that lose or change text, and the name by which each is refused
REFUSED = {
    "prefix_space": (
        lambda: made(p.ByteLevel(add_prefix_space=True)),
        "pre_tokenizer ByteLevel .*add_prefix_space",
    ),
    "digits_prefix": (
        lambda: made(p.Sequence([DIGITS, p.ByteLevel(add_prefix_space=True)])),
        "pre_tokenizer ByteLevel .*add_prefix_space",
    ),
    "removed": (lambda: made(split(r"\s+", "removed")), "pre_tokenizer Split .*Removed"),
    "removed_inverted": (
        lambda: made(split(r"\w+", "removed", True)),
        "pre_tokenizer Split .*Removed",
    ),
    "whitespace": (
        lambda: made(p.Sequence([p.Whitespace(), PLAIN_BYTES])),
        "pre_tokenizer Whitespace",
    ),
    "whitespace_split": (
        lambda: made(p.Sequence([p.WhitespaceSplit(), PLAIN_BYTES])),
        "pre_tokenizer WhitespaceSplit",
    ),
    "delimiter": (
        lambda: made(p.Sequence([p.CharDelimiterSplit("e"), PLAIN_BYTES])),
        "pre_tokenizer CharDelimiterSplit",
    ),
    "punctuation": (
        lambda: made(p.Sequence([p.Punctuation("removed"), PLAIN_BYTES])),
        "pre_tokenizer Punctuation",
    ),
    "bert": (
        lambda: made(p.Sequence([p.BertPreTokenizer(), PLAIN_BYTES])),
        "pre_tokenizer BertPreTok",
    ),
    "metaspace_first": (
        lambda: llama2(pre=p.Metaspace("▁", "first")),
        "pre_tokenizer Metaspace .*first",
    ),
    "metaspace_always": (lambda: llama2(pre=p.Metaspace()), "pre_tokenizer Metaspace .*always"),
    "lowercase": (lambda: made(normalizer=n.Lowercase()), "normalizer Lowercase"),
    "accents": (lambda: made(normalizer=n.Sequence([n.NFD(), n.StripAccents()])), "normalizer NFD"),
    "nfkc": (lambda: made(normalizer=n.NFKC()), "normalizer NFKC"),
    "nfkd": (lambda: made(normalizer=n.NFKD()), "normalizer NFKD"),
    "nfd": (lambda: made(normalizer=n.NFD()), "normalizer NFD"),
    "strip": (lambda: made(normalizer=n.Strip()), "normalizer Strip"),
    "replace": (lambda: made(normalizer=n.Replace(Regex(r"\s+"), " ")), "normalizer Replace"),
    "prepend": (lambda: made(normalizer=n.Prepend("x")), "normalizer Prepend"),
    "nmt": (lambda: made(normalizer=n.Nmt()), "normalizer Nmt"),
    "bert_normalizer": (lambda: made(normalizer=n.BertNormalizer()), "normalizer BertNormalizer"),
    "nfc_and_lowercase": (
        lambda: made(normalizer=n.Sequence([n.NFC(), n.Lowercase()])),
        "normalizer Lowercase",
    ),
    "lstrip": (
        lambda: made(tokens=[AddedToken("<tool>", lstrip=True)]),
        "added token '<tool>' .*lstrip",
    ),
    "rstrip": (
        lambda: made(tokens=[AddedToken("<tool>", rstrip=True)]),
        "added token '<tool>' .*rstrip",
    ),
    "added_behind_prefix": (
        lambda: llama2(
            pre=None, normalizer=n.Sequence([n.Prepend("▁"), TO_SPACES]), tokens=["<tool>"]
        ),
        "normalizer Prepend",
    ),
    "word_piece": (
        lambda: made(p.Whitespace(), model=models.WordPiece(unk_token="[UNK]")),
        "model WordPiece",
    ),
    "word_level": (
        lambda: made(p.Whitespace(), model=models.WordLevel(unk_token="[UNK]")),
        "model WordLevel",
    ),
    "unigram": (lambda: made(p.Metaspace(), model=models.Unigram()), "Unigram|Metaspace"),
    "bpe_of_letters": (
        lambda: made(p.Whitespace(), model=models.BPE(unk_token="[UNK]")),
        "model BPE",
    ),
    "end_of_word": (
        lambda: with_model(made(), end_of_word_suffix="e"),
        "model BPE",
    ),
    "special_in_text": (
        lambda: making_a_special_token(made(PLAIN_BYTES)),
        "model BPE takes '<.endoftext.>'",
    ),
    "scripts": (
        lambda: made(p.Sequence([p.UnicodeScripts(), PLAIN_BYTES])),
        "pre_tokenizer UnicodeScripts",
    ),
    "no_unknown": (lambda: made(DIGITS, model=models.WordLevel()), "model WordLevel"),
    "dropout": (lambda: made(model=models.BPE(dropout=0.1)), "model: dropout=0.1"),
}


@cache
def built(name: str) -> Tokenizer:
    return EQUAL[name]()


@cache
def plain_library(name: str) -> Tokenizer:
    """The library's tokenizer without what frames, cuts or fills up a text, to which the text of a
    special token is text, and Phi-3's </s>, too."""
    content = json.loads(built(name).to_str())
    for token in content["added_tokens"]:
        token["special"] |= token["content"] == "</s>" and token["rstrip"]
    plain = Tokenizer.from_str(json.dumps(content | {"truncation": None, "padding": None}))
    plain.encode_special_tokens = True
    return plain


def load(library: Tokenizer, folder: Path):
    library.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.mark.parametrize("name", EQUAL)
def test_a_pipeline_that_keeps_text_gives_the_librarys_ids_and_the_text_again(name, tmp_path):
    ours = load(built(name), tmp_path)
    library = plain_library(name)
    for text in NASTY:
        ids = ours.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids, text
        back = ours.decode(ids)
        assert back == (n.NFC().normalize_str(text) if "qwen" in name else text)
        assert not set(ids) & set(ours.specials.values())


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_changes_text_is_refused_by_the_name_of_its_part(name, tmp_path):
    make, part = REFUSED[name]
    with pytest.raises(ValueError, match=part) as error:
        load(make(), tmp_path)
    assert "\n" not in str(error.value)


@settings(max_examples=300)
@given(st.sampled_from(sorted(EQUAL)), st.lists(st.sampled_from(PARTS) | st.text(), max_size=8))
def test_any_text_has_the_librarys_ids(loaded, name, parts):
    text = "".join(parts)
    ids = loaded(name).encode(text)
    assert ids == plain_library(name).encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The tokenizer of each name, read once."""
    return cache(lambda name: load(built(name), tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", ["smollm2", "qwen3", "phi3", "llama3"])
def test_it_is_saved_beside_datasets_and_works_in_other_processes(loaded, name, tmp_path):
    tokenizer = loaded(name)
    assert tokenizer.save(tmp_path) == sorted((p.name for p in tmp_path.iterdir()), reverse=True)
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.name, again.pieces) == (tokenizer.name, tokenizer.pieces)
        assert (again.specials, again.eot_id) == (tokenizer.specials, tokenizer.eot_id)
        for text in NASTY:
            assert again.encode(text) == tokenizer.encode(text)


def test_other_rules_are_another_tokenizer(loaded):
    names = ["gpt2", "smollm2", "split_with_previous", "split_with_next", "punctuation"]
    assert len({loaded(name).fingerprint for name in names}) == len(names)


def test_a_changed_file_is_refused(loaded, tmp_path):
    loaded("smollm2").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"individual_digits": true', '"individual_digits": false'))
    with pytest.raises(ValueError, match="changed or damaged"):
        load_tokenizer(tmp_path)


def test_bytes_of_ids_are_the_text(loaded):
    """Which streaming, bits per byte and the pages go by."""
    text = "<think>12 naïve 日本語🎉</think>"
    for name in ("smollm2", "qwen3", "gemma", "deepseek"):
        tokenizer = loaded(name)
        ids = tokenizer.encode(text)
        assert b"".join(tokenizer.pieces[i] for i in ids) == text.encode()
        assert tokenizer.token_byte_lengths()[ids].sum() == len(text.encode())
    assert [loaded("qwen3").pieces[i] for i in loaded("qwen3").encode("<think>")] == [b"<think>"]
    lone = "a\ud800b"
    assert loaded("smollm2").decode(loaded("smollm2").encode(lone)) == "a\ufffdb"


def test_a_space_that_the_tokenizer_puts_before_a_text_is_said_and_no_part_of_it(tmp_path, capsys):
    tokenizer = load(built("phi3"), tmp_path)
    said = capsys.readouterr().err
    assert "puts a space before every text" in said
    assert "'</s>' in a text is ordinary text here" in said
    for text in ("a", " a", "  a", "", " "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([tokenizer.eot_id, *tokenizer.encode("a")]) == "a"


def test_what_would_cut_or_fill_up_texts_is_left_out_and_said(tmp_path, capsys):
    tokenizer = load(built("cut_and_filled"), tmp_path)
    said = capsys.readouterr().err
    assert "its truncation is not applied" in said and "its padding is not applied" in said
    assert tokenizer.decode(tokenizer.encode(ENGLISH)) == ENGLISH


def test_an_end_of_text_that_the_file_does_not_call_special_still_ends_texts_alone(tmp_path):
    library = built("smollm2")
    content = json.loads(library.to_str())
    for token in content["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eot_id == library.token_to_id(EOT)
    assert tokenizer.eot_id not in tokenizer.encode(f"a{EOT}b")
    assert tokenizer.encode("<|im_start|>") == [library.token_to_id("<|im_start|>")]


def test_the_end_of_text_is_named_by_the_config_beside_it_if_it_has_no_usual_name(tmp_path):
    library = made(p.Sequence([DIGITS, BYTE_LEVEL]))
    text = library.to_str().replace(EOT, "<|fin|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="no end-of-text token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|fin|>"}}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.specials[EOT] == tokenizer.eot_id == library.token_to_id(EOT)
    ids = tokenizer.encode("a<|fin|>")
    assert tokenizer.eot_id not in ids and tokenizer.decode(ids) == "a<|fin|>"


def test_what_the_library_cannot_read_is_refused_in_one_line(tmp_path):
    content = json.loads(built("smollm2").to_str())
    content["pre_tokenizer"]["pretokenizers"][0]["type"] = "Astrology"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokenizer.json: the tokenizers library cannot read"):
        load_tokenizer(tmp_path)
