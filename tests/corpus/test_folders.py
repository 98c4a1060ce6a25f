"""What a folder has is read once or said to be left out: links, pipes, what is not permitted, what lathe wrote."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from corpora import SENTENCES, prepare, stored_documents, write_jsonl

from lathe import ROOT
from lathe.corpus import left_out
from lathe.corpus.find import find_inputs
from lathe.corpus.folders import is_read, why_folder_is_left_out

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes are those of POSIX")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """c, in the working folder: a text of its own name in each file."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.md", "deep/d.txt", "deep/er/e.py"):
        path = tmp_path / "c" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    return Path("c")


def paths(*inputs, **options) -> list[str]:
    return [source.path for source in find_inputs([str(i) for i in inputs], **options).sources]


def what_is_left_out(*inputs, **options) -> dict[str, int]:
    return dict(find_inputs([str(i) for i in inputs], **options).left_out.counts)


ALL = ["c/a.txt", "c/b.md", "c/deep/d.txt", "c/deep/er/e.py"]


# -----------------------------------------------------------------------------
# Each real file once


def test_a_file_is_read_once_however_often_and_however_it_is_named(folder, tmp_path):
    assert paths("c", "./c", tmp_path / "c", "c/../c", "c/*.txt", "c/a.txt") == ALL
    counts = what_is_left_out("c", "./c", tmp_path / "c", "c/*.txt", "c/a.txt")
    assert counts == {left_out.SAME_FOLDER: 2, left_out.SAME_FILE: 2}
    assert paths("c/deep/er", "c/deep", "c") == [ALL[3], ALL[2], ALL[0], ALL[1]]


def test_hard_links_and_links_are_other_names_of_a_file(folder):
    os.link("c/a.txt", "c/deep/again.txt")
    os.symlink("../a.txt", "c/deep/link.txt")
    os.symlink("b.md", "c/0.txt")  # sorts first: the file is read by this name
    assert paths("c") == ["c/0.txt", "c/a.txt", *ALL[2:]]
    assert what_is_left_out("c") == {left_out.SAME_FILE: 3}


def test_two_files_with_the_same_text_are_two_documents(folder):
    Path("c/same.txt").write_text(Path("c/a.txt").read_text())
    assert len(paths("c")) == 5


def test_linked_folders_are_read_and_circles_end(folder):
    Path("elsewhere/in").mkdir(parents=True)
    Path("elsewhere/in/f.txt").write_text("text of f")
    os.symlink("../elsewhere", "c/linked")
    os.symlink("../../c", "elsewhere/in/back")
    os.symlink(".", "c/self")
    os.symlink("deep", "c/deep again")
    assert paths("c") == [*ALL[:2], "c/deep/d.txt", "c/deep/er/e.py", "c/linked/in/f.txt"]
    assert what_is_left_out("c") == {left_out.SAME_FOLDER: 3}
    assert sorted(paths("c/**/*.txt")) == ["c/a.txt", "c/deep/d.txt", "c/linked/in/f.txt"]


def test_a_link_to_a_folder_above_does_not_bring_in_what_nobody_named(folder):
    Path("private.txt").write_text("not of the corpus")
    os.symlink("../..", "c/deep/up")
    os.symlink("/", "c/z:")
    assert paths("c") == ALL
    assert what_is_left_out("c") == {left_out.FOLDER_ABOVE: 2}
    assert sorted(paths("c/**/*.txt")) == ["c/a.txt", "c/deep/d.txt"]
    assert paths("c/deep", ".") == [
        "c/deep/d.txt",
        "c/deep/er/e.py",
        "./private.txt",
        *("./" + p for p in ALL[:2]),
    ]


def test_links_that_lead_nowhere_are_said_or_refused_by_name(folder, fails):
    os.symlink("nowhere.txt", "c/broken.txt")
    os.symlink("circle.txt", "c/circle.txt")
    os.symlink("nowhere", "c/folder")
    assert paths("c") == ALL
    assert what_is_left_out("c") == {left_out.BROKEN_LINK: 2, left_out.NO_SUFFIX: 1}
    fails(
        "--input c/broken.txt is a link to .*/c/nowhere.txt, which is not there",
        inputs=["c/broken.txt"],
    )


# -----------------------------------------------------------------------------
# What is no file


def test_pipes_sockets_and_devices_are_left_out_and_said(folder, capsys):
    os.mkfifo("c/pipe.txt")
    os.symlink("/dev/zero", "c/zero.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("c/socket.txt")
        prepare("c", "out", val_fraction=0)
    assert len(stored_documents("out")) == 4
    line = capsys.readouterr().err.splitlines()[0]
    assert line == (
        "prepare: reading 4 files: 2 .txt, 1 .md, 1 .py; left out: "
        "1 pipe (c/pipe.txt), 1 socket (c/socket.txt), 1 device (c/zero.txt)"
    )


def test_a_pipe_that_is_named_is_refused_with_the_way_to_read_it(folder, fails):
    os.mkfifo("c/pipe.txt")
    fails("--input c/pipe.txt is a pipe, no file: .* --input -", inputs=["c/pipe.txt"])
    fails("--input /dev/null is a device, no file: ", inputs=["/dev/null"])
    fails("--input c/pi\\*: no documents found .*: 1 pipe", inputs=["c/pi*"])


def test_kinds_that_are_not_read_are_counted(folder, capsys):
    for name in ("x.png", "y.png", "z.PNG", "Makefile", "t.tar.gz", ".hidden", "v.docx"):
        Path("c", name).write_text("?")
    for name in (".git", "__pycache__"):
        Path("c", name).mkdir()
        Path("c", name, "g.txt").write_text("?")
    meta = prepare("c", "out", val_fraction=0)
    line = capsys.readouterr().err.splitlines()[0]
    assert "; left out: 3 .png, " in line
    for part in (
        "1 hidden folder (c/.git)",
        "1 folder of compiled code (c/__pycache__)",
        "1 hidden file (c/.hidden)",
        "1 file without a suffix (c/Makefile)",
        "1 .tar.gz",
        "1 .docx",
    ):
        assert part in line, part
    assert sum(meta["left_out"].values()) == 9 and meta["files"] == 4
    assert is_read("a.txt", "auto") and is_read("b.jsonl.xz", "auto") and is_read("c.PY", "auto")
    assert not is_read("a.png", "auto") and is_read("a.png", "text")  # the user says what it is
    assert why_folder_is_left_out(".git") and not why_folder_is_left_out("src")


def test_folders_that_a_pattern_matches_are_read_as_if_a_shell_had_named_them(folder):
    assert paths("c/*") == paths("c/a.txt", "c/b.md", "c/deep") == ALL
    assert paths("c/d*") == ALL[2:] and not what_is_left_out("c/*")
    assert sorted(paths("c/**")) == ALL and not what_is_left_out("c/**")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.txt").write_text("hidden")
    assert paths("c/*") == ALL and what_is_left_out("c/*") == {left_out.HIDDEN_FOLDER: 1}
    assert paths("c/.h*") == ["c/.hidden/a.txt"]


# -----------------------------------------------------------------------------
# What lathe itself has written


def test_datasets_and_runs_in_a_folder_are_not_read_as_texts(folder):
    prepare("c", "c/data", val_fraction=0)
    write_jsonl(Path("c/data/rows.jsonl"), SENTENCES[:3])  # as prepare/examples.py puts there
    Path("c/out/run/checkpoints/step-0000001").mkdir(parents=True)
    for name in ("settings.toml", "metrics.jsonl", "samples.jsonl"):
        Path("c/out/run", name).write_text("{}\n")
    Path("c/half").mkdir()
    Path("c/half/progress.jsonl").write_text('{"signature": {}, "cut": null}\n')
    Path("c/half/tokenizer.json").write_text("{}")
    Path("c/own").mkdir()
    Path("c/own/meta.json").write_text('{"text": "a user\'s own"}')
    read = paths("c")
    assert read == [*ALL[:2], "c/data/rows.jsonl", *ALL[2:], "c/own/meta.json"]
    counts = what_is_left_out("c")
    assert counts[left_out.DATASET_FILE] == 7 and counts[left_out.RUN_FOLDER] == 1
    assert paths("c/**/*.json") == ["c/own/meta.json"]


def test_the_folder_written_to_is_said(folder):
    Path("c/out").mkdir()
    Path("c/out/x.txt").write_text("old")
    assert what_is_left_out("c", not_below=Path("c/out")) == {left_out.OUTPUT_FOLDER: 1}
    assert paths("c", not_below=Path("c/out")) == ALL


# -----------------------------------------------------------------------------
# Permissions


@contextmanager
def without_privileges():
    """As a user whom permissions bind, which they do not the superuser."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that every user can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)
        for path in Path(name).rglob("*"):
            if not path.is_symlink():
                path.chmod(stat.S_IRWXU)


def test_what_may_not_be_read_is_left_out_and_said(open_folder, capsys):
    corpus = open_folder / "c"
    for name in ("a.txt", "locked.txt", "secret/s.txt", "blind/b.txt", "z/z.txt"):
        path = corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    (corpus / "locked.txt").chmod(0)
    (corpus / "secret").chmod(0)
    (corpus / "blind").chmod(0o444)  # its names can be read, and no more
    with without_privileges():
        prepare(corpus, open_folder / "out", val_fraction=0)
        said = capsys.readouterr().err.splitlines()[0]
        with pytest.raises(PermissionError, match="--input .*locked.txt cannot be read: there is"):
            prepare(corpus / "locked.txt", open_folder / "out2")
        with pytest.raises(PermissionError, match="--input .*secret cannot be read"):
            prepare(corpus / "secret", open_folder / "out2")
        with pytest.raises(OSError, match="--input .*s.txt: no such file|cannot be opened"):
            prepare(corpus / "secret" / "s.txt", open_folder / "out2")
    assert stored_documents(open_folder / "out") == ["text of a.txt\n", "text of z/z.txt\n"]
    assert f"2 files without permission ({corpus}/locked.txt, ...)" in said
    assert f"1 folder without permission ({corpus}/secret)" in said


def test_a_pipe_does_not_hang_a_real_process(folder):
    os.mkfifo("c/pipe.jsonl")
    words = [str(ROOT / "prepare" / "text.py"), "c", "--out=out", "--tokenizer=byte"]
    done = subprocess.run([sys.executable, *words], capture_output=True, timeout=60)
    assert done.returncode == 0 and b"1 pipe (c/pipe.jsonl)" in done.stderr
