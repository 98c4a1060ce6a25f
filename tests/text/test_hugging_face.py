import json

import pytest
from own_bpe import CODE, OWN

from lathe.text.gpt2 import EOT, GPT2_PATTERN
from lathe.text.tokenizer import load_tokenizer


def test_own_bpe_is_what_the_tokenizers_library_computes(tmp_path):
    """Another implementation, given our table as vocabulary and merges, cuts and merges alike."""
    tokenizers = pytest.importorskip(
        "tokenizers", reason="the tokenizers library comes with transformers"
    )
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


def test_other_kinds_of_hugging_face_tokenizers_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(
        json.dumps({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "pre_tokenizer": None})
    )
    with pytest.raises(ValueError, match="not a byte-level BPE"):
        load_tokenizer(path)
