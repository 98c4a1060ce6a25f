"""prepare/verify.py: what is in a dataset."""

import re

import pytest
from corpora import SENTENCES, prepare, write_jsonl

from lathe.text.tokenizer import train_char
from prepare import verify


def test_verifying_shows_what_is_in_a_dataset(tmp_path, capsys):
    prepare(
        write_jsonl(tmp_path / "a.jsonl", [*SENTENCES, "long " * 500, ""]),
        tmp_path / "out",
        val_fraction=0.1,
    )
    verify.main([str(tmp_path / "out"), "--windows=3"])
    page = capsys.readouterr().out
    assert "all checks passed" in page and "1 empty documents skipped" in page
    assert "2,500 tokens at" in page and "'long long long long '" in page
    assert page.count("--- at token") == 3
    verify.main([str(tmp_path / "out"), "--windows=0"])
    assert "--- at token" not in capsys.readouterr().out
    documents = sum(int(n) for n in re.findall(r"^(\d+) documents", page, re.M))
    assert documents == 401
    train_char(SENTENCES).save(tmp_path / "out")
    with pytest.raises(ValueError, match="holds another tokenizer than .*out was made with"):
        verify.main([str(tmp_path / "out")])


@pytest.mark.parametrize("option", ["--windows=-3", "--window_tokens=0"])
def test_verifying_refuses_windows_that_make_no_sense(option, capsys):
    with pytest.raises(SystemExit) as end:
        verify.main(["out", option])
    assert (
        end.value.code == 2 and option.strip("-").split("=")[0] + " is" in capsys.readouterr().err
    )


def test_what_was_left_out_is_shown(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("some text " * 30)
    for name in ("a.png", "b.png", ".hidden"):
        (tmp_path / "in" / name).touch()
    prepare(tmp_path / "in", tmp_path / "out")
    verify.main([str(tmp_path / "out"), "--windows=0"])
    page = capsys.readouterr().out
    assert "left out of the input: 2 x .png\nleft out of the input: 1 x hidden file\n" in page
