"""Files beside a tokenizer.json, and in its place: what they add is added, what contradicts it is refused."""

import json
from pathlib import Path

import pytest
from own_bpe import CODE, OWN

from lathe.text.gpt2 import EOT
from lathe.text.hugging_face import special_token, their_file
from lathe.text.tokenizer import load_tokenizer

CONTENT = their_file(OWN.rules)
FLAGS = {
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
    "special": False,
}


def folder_of(path: Path, content: dict = CONTENT, **files: dict) -> Path:
    (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return path


def vocabulary_and_merges(path: Path, **files: dict) -> Path:
    folder_of(path, **files)
    (path / "tokenizer.json").unlink()
    vocab = CONTENT["model"]["vocab"] | {EOT: OWN.eot_id}
    (path / "vocab.json").write_text(json.dumps(vocab))
    merges = [" ".join(pair) for pair in CONTENT["model"]["merges"]]
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return path


@pytest.mark.parametrize("make", [folder_of, vocabulary_and_merges])
@pytest.mark.parametrize("where", ["added_tokens", "tokenizer_config"])
def test_tokens_that_another_file_adds_stand_in_texts(make, where, tmp_path):
    new = OWN.vocab_size
    files = {"added_tokens": {"<new>": new}}
    if where == "tokenizer_config":
        files = {where: {"added_tokens_decoder": {str(new): {"content": "<new>", **FLAGS}}}}
    tokenizer = load_tokenizer(make(tmp_path, **files))
    assert tokenizer.encode("a<new>b") == [*OWN.encode("a"), new, *OWN.encode("b")]
    assert tokenizer.decode([new]) == "<new>" and tokenizer.eot_id == OWN.eot_id


@pytest.mark.parametrize("make", [folder_of, vocabulary_and_merges])
def test_a_token_with_another_number_is_refused(make, tmp_path):
    with pytest.raises(
        ValueError, match=f"have '<new>' as token 9999, .*the next would be {OWN.vocab_size}"
    ):
        load_tokenizer(make(tmp_path, added_tokens={"<new>": 9999}))


def test_a_token_with_the_number_of_another_is_refused(tmp_path):
    decoder = {"added_tokens_decoder": {"7": {"content": EOT, **FLAGS}}}
    with pytest.raises(ValueError, match=f"as token 7, and tokenizer.json has it as {OWN.eot_id}"):
        load_tokenizer(folder_of(tmp_path, tokenizer_config=decoder))


def test_the_end_of_text_may_be_named_beside_the_vocabulary_alone(tmp_path):
    content = json.loads(json.dumps(CONTENT).replace(EOT, "</s>"))
    (end,) = content["added_tokens"]
    content["added_tokens"] = []
    content["model"]["vocab"]["</s>"] = end["id"]
    tokenizer = load_tokenizer(
        folder_of(tmp_path, content, special_tokens_map={"eos_token": "</s>"})
    )
    assert tokenizer.eot_id == end["id"] not in tokenizer.encode("a</s>b")


def test_a_space_that_one_file_puts_first_and_the_other_does_not_is_refused(tmp_path):
    about = {"add_prefix_space": True}
    with pytest.raises(
        ValueError, match="add_prefix_space is true in tokenizer_config.json and false in"
    ):
        load_tokenizer(folder_of(tmp_path, tokenizer_config=about))


@pytest.mark.parametrize(
    "model_type, about, reason",
    [
        ("smollm3", {"add_prefix_space": True}, "is true in tokenizer_config.json and false in"),
        ("llama", {}, "is missing, which for LlamaTokenizer is true, in .* and false in"),
        ("llama", {"add_prefix_space": False}, ""),
        ("mistral", {}, ""),  # of which transformers 5 takes the file's rules
    ],
)
def test_a_space_that_llamas_class_puts_first_and_the_file_does_not_is_refused(
    model_type, about, reason, tmp_path
):
    content = with_metaspace("never")
    files = {
        "config": {"model_type": model_type},
        "tokenizer_config": about | {"tokenizer_class": "LlamaTokenizerFast"},
    }
    folder = folder_of(tmp_path, content, **files)
    if reason:
        with pytest.raises(ValueError, match=f"add_prefix_space {reason}"):
            load_tokenizer(folder)
    else:
        assert load_tokenizer(folder).decode(load_tokenizer(folder).encode(" a b ")) == " a b "


def with_metaspace(scheme: str) -> dict:
    """A tokenizer.json of Llama's kind: bytes, and spaces as \u2581."""
    tokens = ["<unk>", EOT, *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b"]
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special_token("<unk>", 0), special_token(EOT, 1)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": scheme,
            "split": False,
        },
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }


def test_rules_that_transformers_5_replaces_by_a_classs_own_are_said(tmp_path, capsys):
    """SmolLM2's: digits are cut one by one, whatever GPT2Tokenizer does."""
    digits = {"type": "Digits", "individual_digits": True}
    steps = {"type": "Sequence", "pretokenizers": [digits, CONTENT["pre_tokenizer"]]}
    about = {"tokenizer_class": "GPT2Tokenizer"}
    folder = folder_of(tmp_path, CONTENT | {"pre_tokenizer": steps}, tokenizer_config=about)
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.encode("1234567")) == 7
    said = "its rules (Digits, ByteLevel) hold here. transformers 5 makes those of GPT2Tokenizer instead"
    assert said in capsys.readouterr().err
    folder_of(tmp_path)
    assert load_tokenizer(folder).encode(CODE) == OWN.encode(CODE)
    assert capsys.readouterr().err == ""


def test_what_no_text_needs_may_be_missing(tmp_path):
    about = {"pad_token": "[PAD]", "extra_special_tokens": {"image_token": "<image>"}}
    folder = folder_of(
        tmp_path,
        tokenizer_config=about,
        special_tokens_map={"unk_token": special_token("<unk>", 5)},
    )
    assert load_tokenizer(folder).fingerprint == OWN.fingerprint


@pytest.mark.parametrize(
    "model_type, tokenizer_class, is_said",
    [
        ("qwen2", "PreTrainedTokenizerFast", True),
        ("qwen3", None, True),
        ("qwen3", "PreTrainedTokenizerFast", False),
        ("gpt2", None, False),
        ("llama", None, False),
        ("olmo", "GPTNeoXTokenizerFast", True),
        ("arcee", "CohereTokenizerFast", True),
        ("llama", "CodeGenTokenizer", False),
        ("mistral", "Qwen2Tokenizer", False),
        ("granite", "GPTNeoXTokenizer", False),
    ],
)
def test_it_is_said_of_models_too_whose_class_nobody_names(
    model_type, tokenizer_class, is_said, tmp_path, capsys
):
    files = {
        "config": {"model_type": model_type},
        "tokenizer_config": {"tokenizer_class": tokenizer_class},
    }
    load_tokenizer(folder_of(tmp_path, **files))
    own = tokenizer_class if tokenizer_class and model_type != "qwen2" else "Qwen2Tokenizer"
    assert (f"makes those of {own} instead" in capsys.readouterr().err) == is_said
