"""Any text to a dataset: files, folders, patterns, standard input or Hugging Face datasets, at the
tokenizer's speed.

    python prepare/text.py --input book.txt --out data/book
    python prepare/text.py --input 'crawl/*.jsonl.zst' --field content --out data/crawl
    python prepare/text.py --input hf:NAME[@REVISION][:CONFIG][:SPLIT] --out data/from_the_hub
    zcat dump.gz | python prepare/text.py --input - --out data/dump

Of tables, CSV may have quotes around its fields and TSV has none; --quotes says otherwise. A row
may have up to 12 MB, a line of JSON lines or an element of JSON up to 64; text files any size.

A folder gives its text, code and data files, those behind links, too. What it has that is not read
is counted, by kind, on one line; a file with several names is read once, and one that --val_input
names is for validation alone. Files named one by one may be of any kind.

The same input and options give the same bytes on any number of workers. An interrupted run
continues where it was when the same command is given again.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.corpus import build
from lathe.corpus.options import Options
from lathe.terminal import print_note


def main(
    argv: list[str] | None = None,
    name: str = "text",
    about: str = __doc__,
    kind: type[Options] = Options,
    **defaults: Any,
):
    """The command. Others in this folder are this one with `defaults` for input, out, tokenizer or
    val_input."""
    options = cli.parse(
        kind, argv, prog=f"prepare/{name}.py", description=about, positional="input"
    )
    if options.input:  # own files in place of the usual ones bring their own validation
        defaults.pop("val_input", None)
    left_empty = {key: value for key, value in defaults.items() if not getattr(options, key)}
    options = replace(options, **left_empty)
    if not options.input or not options.out:
        missing = "--out FOLDER" if options.input else "--input FILE..."
        command = f"prepare/{name}.py"
        print_note(
            f"{command}: error: {missing} is missing: {command} --input FILE... --out FOLDER"
        )
        sys.exit(2)
    build.prepare(options)


if __name__ == "__main__":
    cli.run(main)
