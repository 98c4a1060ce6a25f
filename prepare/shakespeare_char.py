"""Tiny Shakespeare by characters: 1.1 MB, the corpus of nanoGPT's first example, cut as there (the
last 10% are validation).

python prepare/shakespeare_char.py [--input FILE] [--out data/shakespeare_char]
"""

import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.corpus import build
from lathe.fields import PathName

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


@dataclass
class Options:
    input: PathName = ""  # the text, where it is on this machine already; else it is downloaded
    out: PathName = "data/shakespeare_char"  # folder for the dataset
    overwrite: bool = False  # replace another dataset in the same folder


def main(argv: list[str] | None = None):
    options = cli.parse(Options, argv, prog="prepare/shakespeare_char.py", description=__doc__)
    path = Path(options.input or Path(options.out, "input.txt"))
    if not options.input and not path.is_file():
        download(path)
    build.prepare(
        build.Options(
            input=[str(path)],
            out=options.out,
            tokenizer="char",
            val_fraction=0.1,
            overwrite=options.overwrite,
        )
    )


def download(path: Path):
    try:
        with urllib.request.urlopen(URL, timeout=30) as response:
            content = response.read()
    except OSError as error:
        raise OSError(
            f"tiny Shakespeare cannot be downloaded ({error}): save {URL} elsewhere and name it "
            f"with --input"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    cli.run(main)
