"""Which files an input means."""

import logging
import os
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from lathe.corpus.formats import FORMAT_OF_SUFFIX, TEXT_SUFFIXES
from lathe.corpus.report import say
from lathe.corpus.source import Source, compression_and_suffix, is_url, size_of


def find_sources(
    inputs: Iterable[str], format: str = "auto", split: str = "", not_below: Path | None = None
) -> list[Source]:
    """The files that `inputs` mean: paths, folders, patterns, URLs, and datasets of the hub, which
    are written hf:NAME[@REVISION][:CONFIG][:SPLIT].

    A folder gives its text, code and data files, sorted; `not_below`, the folder written to, is
    left out. FileNotFoundError for an input that means no file.
    """
    sources = {}  # by path: a file that is named twice is read once
    for name in inputs:
        paths = _paths_of(name, format, not_below)
        if not paths:
            raise FileNotFoundError(
                f"--input {name}: no documents found (no text or data files there)"
            )
        for path in paths:
            sources[path] = make_source(path, format, split)
    return list(sources.values())


def make_source(path: str, format: str = "auto", split: str = "", label: str = "") -> Source:
    """A file as a source; what it is and how it is compressed, its name says.

    `format`: "auto" by the name, too. `label`: how messages name it, by default its path.
    """
    compression, suffix = compression_and_suffix(path)
    if format == "auto":
        format = FORMAT_OF_SUFFIX.get(suffix, "text")
    return Source(path, format, compression, size_of(path), label or path, split)


def _paths_of(name: str, format: str, not_below: Path | None) -> list[str]:
    if name.startswith("hf:"):
        return _hub_files(name)
    if Path(name).is_dir():
        return _files_below(name, format, not_below)
    if Path(name).is_file() or is_url(name):
        return [name]
    if any(character in name for character in "*?["):
        matches = map(Path, glob(name, recursive=True, include_hidden=True))
        return [str(path) for path in sorted(matches) if path.is_file()]
    raise FileNotFoundError(f"--input {name}: no such file or folder")


# -----------------------------------------------------------------------------
# Folders


def _files_below(folder: str, format: str, not_below: Path | None) -> list[str]:
    """Files of a folder in a fixed order; strings, since there may be a million."""
    files = []
    for root, folders, names in os.walk(folder):
        if not_below is not None and Path(root).resolve() == not_below.resolve():
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not why_folder_is_left_out(name))
        for name in sorted(names):
            if not why_file_is_left_out(name, format):
                files.append(os.path.join(root, name))
    return files


def why_folder_is_left_out(name: str) -> str:
    """The reason why a folder below an input is not looked into, or "" if it is."""
    if name.startswith("."):
        return "hidden"
    if name == "__pycache__":
        return "compiled code"
    return ""


def why_file_is_left_out(name: str, format: str) -> str:
    """The reason why a file below an input is not read, or "" if it is. One named by itself is."""
    if name.startswith("."):
        return "hidden"
    _, suffix = compression_and_suffix(name)
    if format == "auto" and suffix not in FORMAT_OF_SUFFIX and suffix not in TEXT_SUFFIXES:
        return "neither text nor data by its name"
    return ""


# -----------------------------------------------------------------------------
# Datasets of the Hugging Face Hub


def _hub_files(spec: str) -> list[str]:
    """The files of a dataset that `datasets` knows, by hub name or folder: our own readers open
    them directly."""
    import datasets

    # No line per retry: our own says what came of them.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    address, *choices = spec.removeprefix("hf:").split(":")
    name, _, revision = address.partition("@")
    if not name:
        raise ValueError(
            f"--input {spec} names no dataset: "
            f"write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"
        )
    is_local = Path(name).is_dir()
    if not is_local:
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
        if not is_local:
            reason += (
                f"; if it cannot be reached, download the files of "
                f"https://huggingface.co/datasets/{name} elsewhere and give --input FOLDER"
            )
        raise OSError(f"--input {spec}: datasets cannot open it: {reason}") from error
    split = choices[0] if choices else "train"
    if split not in files_of_split:
        splits = ", ".join(map(str, files_of_split))
        raise ValueError(f"--input {spec}: no split or configuration {split!r}; splits: {splits}")
    return [str(path) for path in files_of_split[split]]
