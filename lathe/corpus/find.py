"""Which files the inputs mean, and what of them is left out."""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lathe.corpus import left_out
from lathe.corpus.folders import SPECIAL_FILES, Search, is_pattern, is_permitted
from lathe.corpus.formats import FORMAT_OF_SUFFIX
from lathe.corpus.left_out import LeftOut, kind_of
from lathe.corpus.report import say
from lathe.corpus.source import Source, compression_and_suffix, is_url, size_and_version
from lathe.hub import why_unreachable
from lathe.terminal import printable


@dataclass
class Inputs:
    """The files of a preparation, those for training first."""

    sources: list[Source]
    left_out: LeftOut
    are_many: bool  # whether other names were given than those of the files
    then_stdin: bool = False

    def describe(self) -> str:
        """What is read and what is not, by kind, on one line."""
        kinds = Counter(kind_of(source.path) or "without a suffix" for source in self.sources)
        shown = kinds.most_common(left_out.SHOWN_REASONS)
        parts = [f"{count:,} {kind}" for kind, count in shown]
        n_others = len(self.sources) - sum(count for _, count in shown)
        if n_others:
            parts.append(f"{n_others:,} of other kinds")
        n_files = "1 file" if len(self.sources) == 1 else f"{len(self.sources):,} files"
        line = f"reading {n_files}: {', '.join(parts)}"
        if self.then_stdin:
            line = f"{line}, then standard input"
        others = self.left_out.describe()
        return f"{line}; left out: {others}" if others else line


def find_inputs(
    input: Sequence[str],
    val_input: Sequence[str] = (),
    format: str = "auto",
    not_below: Path | None = None,
) -> Inputs:
    """The files that `input` and `val_input` mean: paths, folders, patterns, URLs, and datasets of
    the hub, which are written hf:NAME[@REVISION][:CONFIG][:SPLIT].

    A folder gives its text, code and data files, sorted; `not_below`, the folder written to, is
    left out. Each real file is read once, whatever its names, and one of `val_input` is for
    validation alone. FileNotFoundError for an input that means no file.
    """
    notes = LeftOut()
    val = _find(val_input, "val_input", Search(format, not_below, notes))
    train = _find(input, "input", Search(format, not_below, notes))
    for identity in val.keys() & train.keys():
        notes.add(left_out.VALIDATION_FILE, train[identity].path)
        del train[identity]
    if input and not train:
        raise ValueError(
            f"--input {' '.join(input)}: all its files are those of --val_input too, which are for "
            f"validation alone: nothing is left to train on"
        )
    if val:
        train = {key: replace(source, split="train") for key, source in train.items()}
        val = {key: replace(source, split="val") for key, source in val.items()}
    are_many = not all(os.path.isfile(name) for name in (*input, *val_input))
    return Inputs([*train.values(), *val.values()], notes, are_many)


def _find(inputs: Iterable[str], option: str, search: Search) -> dict[tuple | str, Source]:
    """{what file it is: source} of the inputs of one option, in order."""
    sources = {}
    for name in inputs:
        already_left_out = search.left_out.counts.copy()
        is_empty = True
        for path in _paths_of(name, option, search):
            is_empty = False
            identity = file_identity(path)
            if identity in sources:
                search.left_out.add(left_out.SAME_FILE, path)
            else:
                sources[identity] = make_source(path, search.format)
        if is_empty:
            fresh = LeftOut(search.left_out.counts - already_left_out, search.left_out.first)
            if fresh.counts.keys() == {left_out.SAME_FOLDER}:  # what it means is read already
                continue
            others = fresh.describe() or "it is empty"
            if is_pattern(name) and not fresh.counts:
                others = "nothing matches it"
            advice = ""
            if os.path.isdir(name) and fresh.counts:
                advice = (
                    f"; files that are named one by one are read whatever their names: {name}/*"
                )
            raise FileNotFoundError(
                f"--{option} {name}: no documents found (no text or data files there: {others})"
                f"{advice}"
            )
    return sources


def make_source(path: str, format: str = "auto", label: str = "") -> Source:
    """A file as a source; what it is and how it is compressed, its name says.

    `format`: "auto" by the name, too. `label`: how messages name it, by default its path.
    """
    compression, suffix = compression_and_suffix(path)
    if format == "auto":
        format = FORMAT_OF_SUFFIX.get(suffix, "text")
    size, version = size_and_version(path)
    return Source(path, format, compression, size, label or printable(path), version=version)


def file_identity(path: str) -> tuple | str:
    """The same for all names of a real file, by links or other spellings.

    Some file systems give one number to several files: size and time are part of it.
    """
    if is_url(path):
        return path
    status = os.stat(path)
    if not status.st_ino:
        return os.path.realpath(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


# -----------------------------------------------------------------------------
# One input


def _paths_of(name: str, option: str, search: Search) -> Iterable[str]:
    """The files that an input means; what is there under the name as it stands comes first."""
    if not name:
        raise ValueError(f"--{option} is an empty name: name a file or folder")
    if os.path.lexists(name):
        return _paths_at(name, option, search)
    if name.startswith("hf:"):
        return _hub_files(name, option)
    if is_url(name):
        return [name]
    if is_pattern(name):
        return search.matches(name)
    if name == "-":
        raise ValueError(f"--{option} - means standard input, which only --input reads")
    raise FileNotFoundError(f"--{option} {name}: no such file or folder")


def _paths_at(name: str, option: str, search: Search) -> Iterable[str]:
    """Files of the folder of this name, or the file itself. OSError or ValueError if it cannot be
    read: what is named by itself is not left out."""
    if os.path.islink(name) and not os.path.exists(name):
        aim = os.path.realpath(name)
        raise FileNotFoundError(f"--{option} {name} is a link to {aim}, which is not there")
    try:
        kind = stat.S_IFMT(os.stat(name).st_mode)
    except OSError as error:
        raise OSError(f"--{option} {name} cannot be opened: {error.strerror}") from error
    if kind in SPECIAL_FILES:
        what = SPECIAL_FILES[kind]
        raise ValueError(
            f"--{option} {name} is a {what}, no file: give what comes out of it as standard input, "
            f"with --input -"
        )
    if not is_permitted(name):
        raise PermissionError(f"--{option} {name} cannot be read: there is no permission to")
    if kind == stat.S_IFDIR:
        return search.files_below(name)
    # What looks like an address is a path for those who open it, too.
    return [os.path.normpath(name) if is_url(name) else name]


# -----------------------------------------------------------------------------
# Datasets of the Hugging Face Hub


def _hub_files(spec: str, option: str) -> list[str]:
    """The files of a dataset that `datasets` knows, by hub name or folder: our own readers open
    them directly."""
    import datasets

    # No line per retry: our own says what came of them.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    name, revision, choices = _parts_of_address(spec.removeprefix("hf:"))
    if not name:
        raise ValueError(
            f"--{option} {spec} names no dataset: "
            f"write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"
        )
    is_local = Path(name).is_dir()
    unreachable = ""
    if not is_local:
        unreachable = why_unreachable()
        say(f"asking the Hugging Face Hub for {name}")
    try:
        configs = datasets.get_dataset_config_names(name, revision=revision or None)
        config = None
        if choices and choices[0] in configs:
            config = choices.pop(0)
        if config is None and len(configs) > 1 and "default" not in configs:
            raise ValueError(f"choose a configuration, hf:{name}:CONFIG, of: {', '.join(configs)}")
        builder = datasets.load_dataset_builder(name, config, revision=revision or None)
        files_of_split = builder.config.data_files or {}
    except Exception as error:  # its own kinds, and those of every file system below it
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removeprefix("ValueError: ")
        reason = unreachable or reason
        if not is_local:
            reason += (
                f"; if it cannot be reached, download the files of "
                f"https://huggingface.co/datasets/{name} elsewhere and give --input FOLDER"
            )
        raise OSError(f"--{option} {spec}: datasets cannot open it: {reason}") from error
    split = choices[0] if choices else "train"
    if split not in files_of_split:
        splits = ", ".join(map(str, files_of_split))
        raise ValueError(
            f"--{option} {spec}: no split or configuration {split!r}; splits: {splits}"
        )
    return [str(path) for path in files_of_split[split]]


def _parts_of_address(address: str) -> tuple[str, str, list[str]]:
    """(name, revision, [configuration, split]) of NAME[@REVISION][:CONFIG][:SPLIT]. A folder may
    have @ and : in its name."""
    words = address.split(":")
    for n_words in range(len(words), 0, -1):
        folder = ":".join(words[:n_words])
        if folder and Path(folder).is_dir():
            return folder, "", words[n_words:]
    name, _, revision = words[0].partition("@")
    return name, revision, words[1:]
