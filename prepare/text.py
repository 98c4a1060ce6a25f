"""Any text to a dataset: files, folders, patterns, standard input or Hugging Face datasets, at the tokenizer's speed.

    python prepare/text.py --input book.txt --out data/book
    python prepare/text.py --input 'crawl/*.jsonl.zst' --field content --tokenizer gpt2 --out data/crawl
    zcat dump.gz | python prepare/text.py --input - --out data/dump

The same input and options give the same bytes on any number of workers. An interrupted run continues where it was
when the same command is given again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from lathe import cli
from lathe.corpus import build
from lathe.corpus.build import Options


def main(argv=None, name="text", about=__doc__, kind=Options, **defaults):
    """The command. The others in this folder are this one with `defaults` for input, out, tokenizer or val_input."""
    options = cli.parse(kind, argv, prog=f"prepare/{name}.py", description=about, positional="input")
    if options.input:
        defaults.pop("val_input", None)  # own files instead of the usual ones bring their own validation
    for option, value in defaults.items():
        setattr(options, option, getattr(options, option) or value)
    if not (options.input and options.out):
        missing, command = "--out FOLDER" if options.input else "--input FILE...", f"prepare/{name}.py"
        print(f"{command}: error: {missing} is missing: {command} --input FILE... --out FOLDER", file=sys.stderr)
        sys.exit(2)
    build.prepare(options)


if __name__ == "__main__":
    cli.run(main)
