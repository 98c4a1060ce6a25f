"""Prompts from files, as editors and shells of other systems write them."""

import codecs

import pytest

from lathe.use.inputs import read_json_lines, read_text


def test_a_prompt_is_read_as_training_read_its_text(tmp_path, capsys):
    path = tmp_path / "p.txt"
    path.write_bytes("süß\n日本\n".encode())
    assert read_text(str(path)) == "süß\n日本\n"
    assert capsys.readouterr().err == ""
    path.write_bytes(codecs.BOM_UTF8 + "süß\r\n日本\r\n\rx".encode())
    assert read_text(str(path)) == "süß\n日本\n\nx"
    said = f"the prompt in {path}: byte order mark left out, 3 Windows or Mac line ends converted\n"
    assert capsys.readouterr().err == said
    path.write_bytes(b"a\xef\xbb\xbfb")  # in the middle it is text
    assert read_text(str(path)) == "a\ufeffb"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(encoding, tmp_path):
    path = tmp_path / "p.txt"
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    path.write_bytes(mark + "caf\u00e9".encode(encoding))
    with pytest.raises(ValueError, match="p.txt is not UTF-8: it is UTF-16, save it as UTF-8"):
        read_text(str(path))


def test_json_lines_may_begin_with_a_mark_and_end_as_on_windows(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b'{"prompt": "a\\r\\nb"}\r\n\r\n{"prompt": "c"}\r\n')
    rows = [row["prompt"] for _, row in read_json_lines(str(path))]
    assert rows == ["a\r\nb", "c"]  # what the user wrote as an escape is meant
