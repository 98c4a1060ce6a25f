"""The files of a folder, or those that a pattern matches, each real file once.

Links are followed, to folders, too, but not up to one that the input itself lies in, which has more
than the user named. What is not read is told to a LeftOut: a folder has more than documents, and a
million files may come before the one that cannot be opened.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from lathe.corpus import left_out
from lathe.corpus.duplicates import DUPLICATES_FILE
from lathe.corpus.formats import FORMAT_OF_SUFFIX, TEXT_SUFFIXES
from lathe.corpus.journal import JOURNAL_FILE, is_unfinished
from lathe.corpus.left_out import LeftOut
from lathe.corpus.source import compression_and_suffix
from lathe.data.shards import SHARD_NAME, is_dataset

DATASET_FILES = {"meta.json", "inputs.json", "tokenizer.json", "tokenizer.tiktoken", "lock"}
DATASET_FILES |= {JOURNAL_FILE, DUPLICATES_FILE}
SPECIAL_FILES = {
    stat.S_IFIFO: left_out.PIPE,
    stat.S_IFSOCK: left_out.SOCKET,
    stat.S_IFCHR: left_out.DEVICE,
    stat.S_IFBLK: left_out.DEVICE,
}


@dataclass
class Search:
    """What a preparation looks for, and what it has come across."""

    format: str = "auto"  # of all files; auto: each by its name, and only those that have one
    not_below: Path | None = None  # the folder written to
    left_out: LeftOut = field(default_factory=LeftOut)
    folders: set = field(default_factory=set)  # identities of those that were entered

    def files_below(self, folder: str) -> Iterator[str]:
        """Files of a folder in a fixed order: its own by name, then those of each folder in it."""
        above = identities_above(folder)
        ahead = [folder]
        while ahead:
            folder = ahead.pop()
            if not self._enter(folder, above):
                continue
            files, folders = self._list(folder)
            yield from self._chosen(folder, files)
            ahead += reversed(folders)

    def _enter(self, folder: str, above: set) -> bool:
        """Whether a folder is to be read: not the one written to, none above the input, and none
        for a second time."""
        identity = folder_identity(folder)
        if identity in above:
            self.left_out.add(left_out.FOLDER_ABOVE, folder)
            return False
        if self.not_below is not None and identity == folder_identity(self.not_below):
            self.left_out.add(left_out.OUTPUT_FOLDER, folder)
            return False
        if identity in self.folders:  # by a link, in a circle perhaps, or named in another way
            self.left_out.add(left_out.SAME_FOLDER, folder)
            return False
        self.folders.add(identity)
        return True

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """(names of files and of what else is no folder, paths of folders to look into), sorted."""
        try:
            with os.scandir(folder) as entries:
                names = {entry.name: is_folder(entry) for entry in entries}
        except PermissionError:
            self.left_out.add(left_out.FORBIDDEN_FOLDER, folder)
            return [], []
        except OSError:  # its path may be longer than systems take
            self.left_out.add(left_out.UNREADABLE, folder)
            return [], []
        if is_run(names):
            self.left_out.add(left_out.RUN_FOLDER, folder)
            return [], []
        files = []
        folders = []
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not names[name]:
                files.append(name)
            elif reason := why_folder_is_left_out(name):
                self.left_out.add(reason, path)
            else:
                folders.append(path)
        return files, folders

    def _chosen(self, folder: str, names: list[str]) -> Iterator[str]:
        """Paths of those files of a folder that are read."""
        of_dataset = is_prepared(folder)
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith("."):
                self.left_out.add(left_out.HIDDEN_FILE, path)
            elif of_dataset and is_file_of_dataset(name):
                self.left_out.add(left_out.DATASET_FILE, path)
            elif not is_read(name, self.format):
                self.left_out.add_kind(path)
            elif reason := why_not_opened(path):
                self.left_out.add(reason, path)
            else:
                yield path

    # -------------------------------------------------------------------------
    # Patterns

    def matches(self, pattern: str) -> list[str]:
        """Files that a pattern of *, ?, [...] and ** matches, sorted: of any kind, also hidden; and
        of folders that it matches what is read of folders, as if a shell had written their names.
        """
        paths = sorted(_expanded(pattern), key=Path)
        files = []
        for path in paths:
            folder, name = os.path.split(path)
            if os.path.isdir(path):
                files += self._of_matched_folder(path, pattern)
            elif is_file_of_dataset(name) and is_prepared(folder):
                self.left_out.add(left_out.DATASET_FILE, path)
            elif reason := why_not_opened(path):
                self.left_out.add(reason, path)
            else:
                files.append(path)
        return files

    def _of_matched_folder(self, path: str, pattern: str) -> Iterable[str]:
        """Its files, where the pattern does not match them, too, or say why it is not read."""
        if "**" in pattern:
            return []
        reason = why_folder_is_left_out(os.path.basename(path))
        if reason and not os.path.basename(pattern).startswith("."):  # .* asks for hidden ones
            self.left_out.add(reason, path)
            return []
        return self.files_below(path)


def _expanded(pattern: str) -> set[str]:
    """All paths that a pattern matches. Python's glob would follow links in a circle."""
    parts = Path(pattern).parts
    paths = {""}
    if parts[-1] == "**":
        parts = (*parts, "*")
    for part in parts:
        matched = set()
        for path in paths:
            if part == "**":
                matched.update(_folders_below(path))
            elif os.path.lexists(os.path.join(path, part)):  # also what has a * in its name
                matched.add(os.path.join(path, part))
            elif is_pattern(part):
                names = [name for name in _names_in(path) if fnmatch(name, part)]
                matched.update(os.path.join(path, name) for name in names)
        paths = matched
    return paths


def is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


def _folders_below(folder: str) -> Iterator[str]:
    """A folder, and each of those in it, by whichever name comes first."""
    entered = identities_above(folder or ".")
    ahead = [folder]
    while ahead:
        folder = ahead.pop()
        identity = folder_identity(folder or ".")
        if identity in entered:
            continue
        entered.add(identity)
        yield folder
        paths = [os.path.join(folder, name) for name in sorted(_names_in(folder), reverse=True)]
        ahead += [path for path in paths if os.path.isdir(path)]


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder or ".")
    except OSError:
        return []


# -----------------------------------------------------------------------------
# One name


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is one, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def is_run(names: dict[str, bool]) -> bool:
    """Whether a folder with these names is that of a run, or of a checkpoint."""
    return {"settings.toml", "metrics.jsonl"} <= names.keys() or {
        "state.json",
        "model.safetensors",
    } <= names.keys()


def is_prepared(folder: str) -> bool:
    """Whether there is a dataset, or the beginning of one."""
    return is_dataset(Path(folder)) or is_unfinished(Path(folder))


def is_file_of_dataset(name: str) -> bool:
    """Whether a file of this name beside a meta.json is the dataset's own, not a text."""
    return name in DATASET_FILES or SHARD_NAME.fullmatch(name) is not None


def why_folder_is_left_out(name: str) -> str:
    """The reason why a folder below an input is not looked into, or "" if it is."""
    if name.startswith("."):
        return left_out.HIDDEN_FOLDER
    if name == "__pycache__":
        return left_out.COMPILED_FOLDER
    return ""


def is_read(name: str, format: str) -> bool:
    """Whether a file below an input is of a kind that is read. One named by itself always is."""
    _, suffix = compression_and_suffix(name)
    return format != "auto" or suffix in FORMAT_OF_SUFFIX or suffix in TEXT_SUFFIXES


def why_not_opened(path: str) -> str:
    """The reason why a path cannot be opened as a file, or "" if it can."""
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        return left_out.FORBIDDEN_FILE
    except OSError:
        is_link = os.path.islink(path)
        return left_out.BROKEN_LINK if is_link else left_out.UNREADABLE
    kind = stat.S_IFMT(mode)
    if kind in SPECIAL_FILES:
        return SPECIAL_FILES[kind]
    if not is_permitted(path):
        return left_out.FORBIDDEN_FILE
    return ""


def is_permitted(path: str) -> bool:
    """Whether this process may read it."""
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def identities_above(folder: str) -> set:
    """Of the folders that a folder lies in."""
    return {folder_identity(parent) for parent in Path(os.path.realpath(folder)).parents}


def folder_identity(folder: str | Path) -> tuple | str:
    """The same for all names of a folder."""
    try:
        status = os.stat(folder)
    except OSError:
        return os.path.realpath(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
