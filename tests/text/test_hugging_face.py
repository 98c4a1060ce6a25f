import json
import random

import pytest
import tokenizers
from own_bpe import CODE, OWN

from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.gpt2 import EOT, GPT2_PATTERN
from lathe.text.hugging_face import their_file
from lathe.text.patterns import SAME_IN_TIKTOKEN
from lathe.text.tokenizer import Tokenizer, load_tokenizer


def test_own_bpe_is_what_the_tokenizers_library_computes(tmp_path):
    """Another implementation, given our table as vocabulary and merges, cuts and merges alike."""
    other = tokenizers.Tokenizer.from_str(json.dumps(hugging_face_form(OWN)))
    code = CODE.replace(EOT, "")  # which is a special token to the other one, wherever it stands
    assert other.encode(code).ids == OWN.encode(code)
    assert other.encode("tabs\t\tand  spaces   \n\n été 日本").ids == OWN.encode(
        "tabs\t\tand  spaces   \n\n été 日本"
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(hugging_face_form(OWN)))
    again = load_tokenizer(tmp_path)
    assert again.encode(CODE) == OWN.encode(CODE)
    assert (again.vocab_size, again.eot_id, again.pattern) == (
        OWN.vocab_size,
        OWN.eot_id,
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


def test_a_file_without_an_end_of_text_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(
        json.dumps({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "pre_tokenizer": None})
    )
    with pytest.raises(ValueError, match="no end-of-text token"):
        load_tokenizer(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer that lathe can read: it has no model"):
        load_tokenizer(path)


def test_a_gpt2_folder_with_vocabulary_and_merges_alone_is_read(tmp_path):
    content = hugging_face_form(OWN)
    vocab = content["model"]["vocab"] | {EOT: OWN.eot_id}
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert load_tokenizer(tmp_path).fingerprint == OWN.fingerprint
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}')
    with pytest.raises(ValueError, match="ByteLevel .*add_prefix_space"):
        load_tokenizer(tmp_path)
    config.write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(ValueError, match="do not tell the rules of Qwen2Tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("pattern", SAME_IN_TIKTOKEN.values())
def test_both_engines_cut_alike_by_each_pattern(pattern):
    """Characters of all scripts, doubled and between others, and texts of nasty parts."""
    own = train_bpe(count_pieces([CODE]), 300)
    ours = Tokenizer("bpe", "own", own.pieces, own.specials, pattern)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(their_file(ours.rules)))
    theirs.encode_special_tokens = True
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    characters = characters[:0x3000] + characters[0x3000::97]  # all of them take minutes
    draw = random.Random(0)
    signs = [
        " ",
        "  ",
        "a",
        "B",
        "1",
        "22",
        "333",
        "4444",
        "'s",
        "'LL",
        "\n",
        "\r\n",
        "\t",
        ".",
        "/",
        "é",
    ]
    texts = []
    for i in range(0, len(characters), 1000):
        some = characters[i : i + 1000]
        texts += ["".join(c + c for c in some), "".join(f"a{c} {c}1\n" for c in some)]
    texts += ["".join(draw.choices([*signs, draw.choice(characters)], k=30)) for _ in range(3000)]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
