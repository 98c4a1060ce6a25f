"""What the tests of a preparation ask for."""

import re

import pytest

from lathe import cli
from lathe.corpus import units
from prepare import text


@pytest.fixture
def unit_bytes(monkeypatch):
    """unit_bytes(3000): inputs are cut into units of about that size."""
    return lambda size: monkeypatch.setattr(units, "UNIT_BYTES", size)


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Runs prepare/text.py on the files of tmp_path/in and asserts one matching line on stderr and the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(match, *arguments, inputs=("in",), out="out", code=1):
        with pytest.raises(SystemExit) as end:
            cli.run(
                lambda: text.main(
                    ["--input", *inputs, f"--out={out}", "--tokenizer=byte", *arguments]
                )
            )
        printed = capsys.readouterr()
        assert end.value.code == code and printed.out == ""
        lines = printed.err.splitlines()
        if lines[0].startswith(
            "prepare: reading "
        ):  # what the input is, and what of it is not read
            del lines[0]
        assert len(lines) == 1 and re.search(match, lines[0]), printed.err
        assert not (tmp_path / out / "meta.json").exists()

    (tmp_path / "in").mkdir()
    return run
