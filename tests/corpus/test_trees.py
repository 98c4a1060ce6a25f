"""Of any tree of files, each document is stored once, byte for byte, or its file is counted as left out."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import shutil
import socket
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from corpora import prepare, stored_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lathe.data.dataset import open_dataset

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes are those of POSIX")

# -----------------------------------------------------------------------------
# Files


def as_table(documents: list[str]) -> bytes:
    table = io.StringIO()
    csv.writer(table).writerows([["n", "text"], *([i, d] for i, d in enumerate(documents))])
    return table.getvalue().encode()


def as_tabs(documents: list[str]) -> bytes:
    return "".join(["n\ttext\n", *(f"{i}\t{d}\n" for i, d in enumerate(documents))]).encode()


def as_parquet(documents: list[str]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array(documents, pyarrow.string())
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), file, row_group_size=2)
    return file.getvalue()


def as_zst(content: bytes) -> bytes:
    import zstandard

    return zstandard.compress(content)


FORMATS = {
    ".txt": lambda documents: "".join(documents).encode(),
    ".py": lambda documents: "".join(documents).encode(),
    ".jsonl": lambda documents: "".join(json.dumps({"text": d}) + "\n" for d in documents).encode(),
    ".ndjson": lambda documents: "".join(
        json.dumps(d, ensure_ascii=False) + "\r\n" for d in documents
    ).encode(),
    ".json": lambda documents: json.dumps([{"text": d} for d in documents], indent=1).encode(),
    ".csv": as_table,
    ".tsv": as_tabs,
    ".parquet": as_parquet,
}
COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": as_zst,
}
NOT_READ = (".png", ".docx", "", ".bin", ".txt.zip")
WORDS = (
    "a",
    "Zeile",
    "[x]*",
    "a,b",
    "v:2",
    "é",
    "caf\udce9",
    "two\nlines",
    "  ",
    "~",
    "-x",
    "日本 🎉",
    "\x1b[2J",
)

if sys.platform == "darwin":  # where names are UTF-8
    WORDS = tuple(word for word in WORDS if "\udce9" not in word)

# No line of a TSV can have these, and \r is a line end of tables that need not be kept apart.
SEPARATORS = str.maketrans("\t\n\r", "   ")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "",
        "\r\n",
        "\ufeffx",
        '"',
        '5" of a',
        "a\x85b\u2028c\x0bd\x1ce",
        "<|endoftext|>",
        "\x00",
        "[]",
        "a\r\nb\rc",
    ]
)


@dataclass
class File:
    name: str
    content: bytes
    documents: list[str]  # as it is read, empty ones left out


@st.composite
def files(draw: st.DrawFn) -> File:
    suffix = draw(st.sampled_from([*FORMATS, *NOT_READ]))
    documents = draw(st.lists(texts, min_size=1, max_size=4))
    name = draw(st.sampled_from(WORDS))
    mark = b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    if suffix == ".tsv":
        documents = [text.translate(SEPARATORS) for text in documents]
    if suffix in (".txt", ".py", *NOT_READ):
        documents = ["".join(documents)]
        if documents[0].startswith("\ufeff"):
            mark = b"\xef\xbb\xbf"  # or the document's own would be taken for it
    if suffix == ".parquet":
        content = as_parquet(documents)
    else:
        compression = draw(st.sampled_from([*COMPRESSIONS])) if suffix in FORMATS else ""
        content = FORMATS.get(suffix, FORMATS[".txt"])(documents)
        content = COMPRESSIONS[compression](mark + content)
        suffix += compression
    return File(name + suffix, content, [text for text in documents if text])


# -----------------------------------------------------------------------------
# Trees


@dataclass
class Folder:
    name: str
    entries: list = field(default_factory=list)
    hidden: bool = False
    locked: bool = False


@dataclass
class Other:
    """A link to something, another name of it, a pipe or a socket."""

    kind: str
    aim: int = 0  # the number of what is there already


others = st.builds(
    Other,
    st.sampled_from(["link", "hard link", "broken", "circle", "pipe", "socket", "lock"]),
    st.integers(0, 30),
)
folders = st.recursive(
    st.builds(Folder, st.sampled_from(WORDS), st.lists(files() | others, max_size=4)),
    lambda inner: st.builds(
        Folder,
        st.sampled_from([*WORDS, "__pycache__"]),
        st.lists(files() | others | inner, max_size=5),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([False, False, False, True]),
    ),
    max_leaves=6,
)


class Tree:
    """A tree on the disk, and what is in it by the number of each file."""

    def __init__(self, root: Path):
        self.root = root
        self.documents: dict[int, list[str]] = {}
        self.paths: list[str] = []  # files and folders to link to
        self.locked: list[str] = []

    def build(self, folder: Folder, path: str):
        os.mkdir(path)
        for number, entry in enumerate(folder.entries):
            if isinstance(entry, Folder):
                name = entry.name if entry.name == "__pycache__" else f"{number}{entry.name}"
                name = f".{name}" if entry.hidden else name
                below = os.path.join(path, name)
                if not os.path.lexists(below):
                    self.build(entry, below)
            elif isinstance(entry, File):
                file = os.path.join(path, f"{number}{entry.name}")
                with open(file, "wb") as opened:
                    opened.write(entry.content)
                self.documents[os.stat(file).st_ino] = entry.documents
                self.paths.append(file)
            else:
                self.add(entry, path, number)
        self.paths.append(path)
        if folder.locked and path != str(self.root):
            self.locked.append(path)

    def add(self, other: Other, folder: str, number: int):
        new = os.path.join(folder, f"{number}{other.kind}")
        if other.kind == "broken":
            os.symlink("nowhere", f"{new}.txt")
        elif other.kind == "circle":
            os.symlink(f"{number}{other.kind}.md", f"{new}.md")
        elif other.kind == "pipe":
            os.mkfifo(f"{new}.jsonl")
        elif other.kind == "socket":
            with socket.socket(socket.AF_UNIX) as listener:  # its path may be 107 bytes long
                listener.bind(os.path.join(str(self.root.parent), "s"))
            os.rename(os.path.join(str(self.root.parent), "s"), f"{new}.txt")
        elif self.paths:
            aim = self.paths[other.aim % len(self.paths)]
            suffixes = "".join(Path(aim).suffixes[-2:]) if os.path.isfile(aim) else ""
            if other.kind == "link":
                os.symlink(os.path.relpath(aim, folder), new + suffixes)
            elif os.path.isfile(aim) and other.kind == "hard link":
                os.link(aim, new + suffixes)
            elif os.path.isfile(aim):
                self.locked.append(aim)

    def lock(self):
        for path in self.locked:
            os.chmod(path, 0)

    def unlock(self):
        for path in self.locked:
            os.chmod(path, stat.S_IRWXU)


READ = tuple(
    suffix + compression
    for suffix in FORMATS
    for compression in (COMPRESSIONS if suffix != ".parquet" else [""])
)


class Expected:
    """What is to be read of inputs, by another way than lathe's: one name after the other."""

    def __init__(self, tree: Tree):
        self.tree = tree
        self.read: set[int] = set()  # numbers of files
        self.n_names = 0  # of files and of folders that are not entered: read, or counted
        self.entered: set[int] = set()
        self.n_files = 0  # names of files that are read, also again
        self.n_again = 0  # folders that were entered before
        self.has_empty_input = False

    def take(self, path: str):
        n_files, n_names, n_again = self.n_files, self.n_names, self.n_again
        if os.path.isdir(path):
            parents = Path(os.path.realpath(path)).parents
            self.above = {os.stat(parent).st_ino for parent in parents}
            self.enter(path)
        else:
            self.n_names += 1
            self.n_files += 1
            self.read.add(os.stat(path).st_ino)
        n_again = self.n_again - n_again
        is_read_already = n_again > 0 and self.n_names - n_names == n_again
        if self.n_files == n_files and not is_read_already:
            self.has_empty_input = True

    def enter(self, path: str):
        number = os.stat(path).st_ino
        if number in self.above:
            self.n_names += 1
            return
        if number in self.entered:
            self.n_names += 1
            self.n_again += 1
            return
        self.entered.add(number)
        try:
            names = os.listdir(path)
        except PermissionError:
            self.n_names += 1
            return
        for name in names:
            below = os.path.join(path, name)
            is_left_out = name.startswith(".") or name == "__pycache__"
            if os.path.isdir(below) and not is_left_out:
                self.enter(below)
                continue
            self.n_names += 1
            is_kind = name.endswith(READ) and not is_left_out
            if is_kind and os.path.isfile(below) and may_read(below):
                self.n_files += 1
                self.read.add(os.stat(below).st_ino)

    def documents(self) -> list[str]:
        return sorted(text for number in self.read for text in self.tree.documents[number])


def may_read(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except PermissionError:
        return False


# -----------------------------------------------------------------------------
# The law


def check(folder: Folder, spellings: list[str], picks: list[int], val_picks: list[int]):
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o777)
        tree = Tree(Path(work, "c"))
        tree.build(folder, str(tree.root))
        named = [path for path in tree.paths if "__pycache__" not in path]
        inputs = [spelling.format(tree.root, os.path.relpath(tree.root)) for spelling in spellings]
        inputs += [named[pick % len(named)] for pick in picks]
        val_inputs = [named[pick % len(named)] for pick in val_picks]
        tree.lock()
        is_root = os.geteuid() == 0
        try:
            if is_root:
                os.seteuid(65534)  # whom permissions bind
            readable = [
                os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
                for path in inputs + val_inputs
            ]
            if all(readable):
                compare(tree, inputs, val_inputs, f"{work}/out")
        finally:
            if is_root:
                os.seteuid(0)
            tree.unlock()


def compare(tree: Tree, inputs: list[str], val_inputs: list[str], out: str):
    val = Expected(tree)
    for path in val_inputs:
        val.take(path)
    train = Expected(tree)
    for path in inputs:
        train.take(path)
    n_shared = len(train.read & val.read)
    train.read -= val.read
    options = dict(val_fraction=0, val_input=val_inputs, newlines="keep", tokenizer="byte")
    is_something = bool(train.documents() or val.documents())
    if not train.read or not is_something or train.has_empty_input or val.has_empty_input:
        with pytest.raises(
            (ValueError, FileNotFoundError), match="no documents found|nothing is left"
        ):
            prepare(inputs, out, **options)
        return
    meta = prepare(inputs, out, **options)
    assert sorted(stored_documents(out, "train")) == train.documents()
    assert sorted(stored_documents(out, "val")) == val.documents()
    assert meta["files"] == len(train.read | val.read)
    assert meta["files"] + sum(meta["left_out"].values()) == train.n_names + val.n_names
    assert sum(n for what, n in meta["left_out"].items() if "--val_input" in what) == n_shared
    assert open_dataset(out, verify=True).meta == meta
    shutil.rmtree(out)


trees = st.builds(Folder, st.just("c"), st.lists(files() | others | folders, max_size=8))
spelled = st.lists(st.sampled_from(["{0}", "{1}", "{0}/.", "{0}//../c"]), min_size=1, max_size=3)
picked = st.lists(st.integers(0, 30), max_size=2)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """All that a preparation imports, which another user may not be permitted to read."""
    folder = tmp_path_factory.mktemp("imported")
    for suffix, write in FORMATS.items():
        (folder / f"a{suffix}").write_bytes(write(["a text"]))
    for compression, compress in COMPRESSIONS.items():
        (folder / f"b.txt{compression}").write_bytes(compress(b"a text"))
    prepare(folder, folder / "out")
    stored_documents(folder / "out")


@pytest.mark.usefixtures("imported")
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(trees, spelled, picked, picked)
@pytest.mark.slow
def test_documents_in_are_documents_out_and_those_named_as_left_out(
    tree, spellings, picks, val_picks
):
    check(tree, spellings, picks, val_picks)
