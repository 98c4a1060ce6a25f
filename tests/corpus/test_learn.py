"""The tokenizer that is asked for."""

from corpora import prepare, write

from lathe.text.tokenizer import train_char


def test_tokenizers_that_do_not_exist_or_cannot_be_reached(fails, monkeypatch, tmp_path):
    write("a.txt", "some text")
    fails("tokenizer=gtp2 is neither one of byte, char, bpe:N, gpt2", "--tokenizer=gtp2")
    fails("tokenizer=bpe:lots: write bpe:N with N from 257", "--tokenizer=bpe:lots", code=2)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    fails(
        "gpt2: its files cannot be reached .*vocab.bpe as .*TIKTOKEN_CACHE_DIR", "--tokenizer=gpt2"
    )


def test_a_character_tokenizer_of_another_text(fails, tmp_path):
    train_char(["abc"]).save(tmp_path)
    write("a.txt", "abcd")
    fails(r"unknown to the character tokenizer: 'd' \(U\+0064\)", f"--tokenizer={tmp_path}")


def test_a_text_with_fewer_pairs_than_ids_asked_for_is_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("aaaa")
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer="bpe:600", val_fraction=0)
    assert "bpe:600 has 258 ids: what it learned from has no pair left" in capsys.readouterr().err
