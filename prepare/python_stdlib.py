"""The source of the running Python's standard library: some 12 MB of code that every machine with
Python has.

python prepare/python_stdlib.py [--out data/python_stdlib]
"""

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.corpus import build
from lathe.fields import PathName

LEFT_OUT = {  # folders: tests, and what is not of the library itself
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data",
}  # fmt: skip


@dataclass
class Options:
    input: PathName = ""  # a folder of Python source to take instead of this Python's library
    out: PathName = "data/python_stdlib"  # folder for the dataset
    # small enough for a model that learns within minutes on two cores
    tokenizer: PathName = "bpe:1024"  # byte, char, gpt2, cl100k_base, o200k_base, bpe:N or a folder
    overwrite: bool = False  # replace another dataset in the same folder


def main(argv: list[str] | None = None):
    options = cli.parse(Options, argv, prog="prepare/python_stdlib.py", description=__doc__)
    library = Path(options.input or sysconfig.get_path("stdlib"))
    files = library_files(library)
    if not files:
        raise FileNotFoundError(
            f"no Python source in {library}: name a folder that has some with --input"
        )
    build.prepare(
        build.Options(
            input=[str(path) for path in files],
            out=options.out,
            tokenizer=options.tokenizer,
            val_fraction=0.1,
            errors="replace",
            overwrite=options.overwrite,
        )
    )


def library_files(library: Path) -> list[Path]:
    files = []
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts[:-1]
        if LEFT_OUT.isdisjoint(folders):
            files.append(path)
    return files


if __name__ == "__main__":
    cli.run(main)
