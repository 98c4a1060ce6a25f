"""What lathe/run/files.py promises: checksums of what was in memory, and folders that are replaced whole."""

import zlib
from pathlib import Path

import pytest

from lathe.run.files import (
    CheckedFile,
    crc32,
    read_json_with_checksum,
    replace_folder,
    write_json_with_checksum,
)


def test_a_checked_file_knows_what_it_was_given(tmp_path):
    parts = [b"", b"one", bytes(5_000_000), memoryview(b"two")]
    with CheckedFile(tmp_path / "file") as file:
        for part in parts:
            assert file.write(part) == len(part)
    content = b"".join(parts)
    assert (tmp_path / "file").read_bytes() == content
    assert (file.size, file.crc32) == (len(content), zlib.crc32(content))
    assert crc32(tmp_path / "file") == file.crc32


def test_json_comes_back_or_its_fault_is_named(tmp_path):
    path = tmp_path / "state.json"
    value = {"step": 3, "b": [1.5, None, "text"]}
    write_json_with_checksum(path, value)
    assert read_json_with_checksum(path) == value
    path.write_text(path.read_text().replace("1.5", "1.25"))
    with pytest.raises(ValueError, match="state.json does not match its checksum"):
        read_json_with_checksum(path)
    for text in ("[1, 2]", "3", '{"step": 3}', '{"step"', ""):
        path.write_text(text)
        with pytest.raises(ValueError, match="state.json is missing or unreadable"):
            read_json_with_checksum(path)
    path.unlink()
    with pytest.raises(ValueError, match="missing or unreadable .FileNotFoundError"):
        read_json_with_checksum(path)


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "text").write_text(text)
    return path


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    folder = folder_with(tmp_path / "folder", "old")
    replace_folder(folder_with(tmp_path / "new", "new"), folder)
    assert (folder / "text").read_text() == "new"
    with pytest.raises(OSError):
        replace_folder(tmp_path / "missing", folder)
    assert (folder / "text").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
