"""Token ids become text as they come, and stop texts cut it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe import ROOT
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.tokenizer import load_tokenizer, train_char
from lathe.use.stream import TextStream

TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken"
TEXT = "It was the best of times, it was the worst of times; naïve café 日本語 🎉 e\u0301.\n"


def tokenizers():
    yield "byte", load_tokenizer("byte")
    yield "char", train_char([TEXT])
    yield "bpe", train_bpe(count_pieces([TEXT] * 3), 300)


@pytest.mark.parametrize(
    "name, tokenizer", tokenizers(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_streamed_text_equals_that_decoded_at_once(name, tokenizer):
    @settings(max_examples=100, derandomize=True)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    def check(ids):
        stream = TextStream(tokenizer)
        assert "".join([stream.add(i) for i in ids]) + stream.end() == tokenizer.decode(ids)

    check()
    stream = TextStream(tokenizer)
    streamed = [stream.add(i) for i in tokenizer.encode(TEXT)]
    assert "".join(streamed) == TEXT and "\N{REPLACEMENT CHARACTER}" not in "".join(streamed)


@pytest.mark.skipif(
    not TIKTOKEN_FILES.is_dir(), reason=f"GPT-2's vocabulary is not in {TIKTOKEN_FILES}"
)
def test_every_token_of_gpt2_streams_as_it_decodes(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    tokenizer = load_tokenizer("gpt2")
    ids = torch.randperm(tokenizer.vocab_size, generator=torch.Generator().manual_seed(0)).tolist()
    stream = TextStream(tokenizer)
    assert "".join([stream.add(i) for i in ids]) + stream.end() == tokenizer.decode(ids)


@settings(max_examples=300, derandomize=True)
@given(
    text=st.text("ab\né", max_size=30),
    stops=st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_exactly_however_they_are_split(text, stops):
    """The first stop string to be complete ends the text before its first character; nothing of it is ever released."""
    tokenizer = load_tokenizer("byte")
    ends = [text.find(s) + len(s) for s in stops if s in text]
    expected = text
    if ends:
        upto = text[: min(ends)]
        expected = upto[: min(upto.find(s) for s in stops if upto.endswith(s))]
        expected = min((upto[: -len(s)] for s in stops if upto.endswith(s)), key=len)
    stream, pieces = TextStream(tokenizer, stops), []
    for i in tokenizer.encode(text):
        pieces.append(stream.add(i))
        if stream.stopped:
            break
    pieces.append(stream.end())
    assert "".join(pieces) == expected
    assert stream.stopped == bool(ends)
