"""Make the folder with which bench/gpu.sh measures on a machine that has a GPU and no network.

    python bench/gpu_folder.py gpu_folder --peer=PATH_TO_NANOGPT --text=input.txt

It holds what such a machine may lack: wheels of the packages that training and the tests import
(not torch), nanoGPT's code with its data prepared, the same text prepared for us by characters and
by GPT-2's encoding, the source of Python's library by an own BPE, and GPT-2's encoding. A folder of
more than --most_mib is an error. Run it where there is a network or an index of packages.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from array import array
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import ROOT, cli
from lathe.fields import PathName

# Packages whose wheels travel, all but torch and what only downloads need; each without what it
# asks for, which is named here, too.
PACKAGES = [
    *["numpy", "tiktoken", "regex", "tokenizers", "safetensors", "tqdm", "jinja2", "markupsafe"],
    *["zstandard", "pytest", "pytest-xdist", "execnet", "iniconfig", "pluggy", "packaging"],
    *["pygments", "hypothesis", "sortedcontainers"],
]
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
PEER_FILES = ["train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py"]
VAL_FRACTION = 0.1  # of a text, nanoGPT's


@dataclass
class Options:
    """What the folder is made of."""

    folder: list[PathName] = field(default_factory=list)
    peer: PathName = ""  # folder of nanoGPT's code
    text: PathName = ""  # tiny Shakespeare, input.txt
    python: str = "3.12"  # of the machine with the GPU
    most_mib: int = 56  # what the folder may weigh

    def __post_init__(self):
        if len(self.folder) != 1:
            raise ValueError(
                "name the folder to make: gpu_folder.py FOLDER --peer=PATH --text=FILE"
            )
        for name in ("peer", "text"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing: gpu_folder.py FOLDER --peer=PATH --text=FILE")
            if not Path(getattr(self, name)).exists():
                raise ValueError(f"{name} is {getattr(self, name)}: it does not exist")


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(
        Options, argv, prog="bench/gpu_folder.py", description=__doc__, positional="folder"
    )
    folder = Path(options.folder[0]).resolve()
    if folder.exists() and not (folder / "folder.json").exists():
        raise ValueError(f"{folder} is there, and this command did not make it: name another one")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "folder.json").write_text("{}\n")  # made by this command, whatever happens next

    download_wheels(folder / "wheels", options.python)
    prepare_ours(folder / "data", options.text)
    copy_encoding(folder / "tiktoken")
    copy_peer(folder / "peer", options.peer, options.text)

    sizes = {part.name: tree_size(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    about = {"python": options.python, "bytes": sizes}
    (folder / "folder.json").write_text(json.dumps(about, indent=2) + "\n")
    for part, size in sizes.items():
        print(f"{part:10} {size / 2**20:6.1f} MiB")
    total = sum(sizes.values()) / 2**20
    print(f"{folder}: {total:.1f} MiB")
    if total > options.most_mib:
        raise ValueError(f"{folder} weighs {total:.1f} MiB, more than {options.most_mib}")
    return 0


def tree_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def run(command: list[str | Path]):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise ValueError(f"{' '.join(map(str, command[:4]))} ... failed:\n{done.stdout[-1500:]}")


def download_wheels(folder: Path, python: str):
    """A wheel of each package for this Python on Linux, of the newest release."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    run([*command, *platforms, "--dest", folder, *PACKAGES])


def prepare_ours(folder: Path, text: str):
    """The datasets that the measured commands read."""
    text = str(Path(text).resolve())
    prepare = [sys.executable, "prepare/text.py", "--input", text]
    shakespeare = [sys.executable, "prepare/shakespeare_char.py", "--input", text]
    run([*shakespeare, "--out", folder / "shakespeare_char"])
    run([*prepare, "--tokenizer", "gpt2", "--out", folder / "shakespeare_gpt2"])
    run([sys.executable, "prepare/python_stdlib.py", "--out", folder / "python_stdlib"])


def copy_encoding(folder: Path):
    """GPT-2's encoding, as tiktoken keeps what it has downloaded."""
    import tiktoken

    cache = os.environ.get("TIKTOKEN_CACHE_DIR", "")
    if not cache:
        raise ValueError("TIKTOKEN_CACHE_DIR is not set: set it to a folder for GPT-2's encoding")
    tiktoken.get_encoding("gpt2")  # downloads what is not there
    shutil.copytree(cache, folder)


# -----------------------------------------------------------------------------
# nanoGPT, with the files that its prepare.py of each dataset makes


def copy_peer(folder: Path, peer: str, text: str):
    for name in PEER_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(peer, name), folder / name)
    content = Path(text).read_text(encoding="utf-8")
    write_by_characters(folder / "data" / "shakespeare_char", content)
    write_by_gpt2(folder / "data" / "shakespeare", content)


def split(content: str) -> dict[str, str]:
    cut = int(len(content) * (1 - VAL_FRACTION))
    return {"train": content[:cut], "val": content[cut:]}


def write_ids(file: Path, ids: list[int]):
    file.write_bytes(array("H", ids).tobytes())  # unsigned, 16 bits


def write_by_characters(folder: Path, content: str):
    folder.mkdir(parents=True)
    characters = sorted(set(content))
    ids = {character: i for i, character in enumerate(characters)}
    for name, part in split(content).items():
        write_ids(folder / f"{name}.bin", [ids[character] for character in part])
    meta = {
        "vocab_size": len(characters),
        "stoi": ids,
        "itos": dict(enumerate(characters)),
    }
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def write_by_gpt2(folder: Path, content: str):
    import tiktoken

    folder.mkdir(parents=True)
    encoding = tiktoken.get_encoding("gpt2")
    for name, part in split(content).items():
        write_ids(folder / f"{name}.bin", encoding.encode_ordinary(part))


if __name__ == "__main__":
    cli.run(main)
