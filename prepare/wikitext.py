"""WikiText-103: 28,000 good Wikipedia articles, 540 MB, with their usual validation split.

    python prepare/wikitext.py [any option of prepare/text.py]

The dataset has a row per paragraph. Rows are joined to articles first, in a JSON lines file per
split beside the shards, since a document is what a model should see from its beginning to its end.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.corpus import build
from lathe.corpus.cut import cut_units
from lathe.corpus.find import find_inputs
from lathe.corpus.read import documents
from lathe.corpus.rules import Rules
from lathe.corpus.source import Source

DATASET = "hf:Salesforce/wikitext:wikitext-103-raw-v1"
TITLE = re.compile(r" = [^=].* = \n$")  # sections have more equals signs


def main(argv: list[str] | None = None):
    options = cli.parse(build.Options, argv, prog="prepare/wikitext.py", description=__doc__)
    out = options.out or "data/wikitext"
    options = replace(options, out=out, tokenizer=options.tokenizer or "gpt2")
    if not options.input:
        train = write_articles(f"{DATASET}:train", Path(out, "train.jsonl"))
        val = write_articles(f"{DATASET}:validation", Path(out, "val.jsonl"))
        options = replace(options, input=[train], val_input=[val])
    build.prepare(options)


def write_articles(input: str, path: Path) -> str:
    """The rows of one split as articles, a JSON object with "text" per line, in the file `path`,
    unless it exists."""
    if path.is_file():
        return str(path)
    sources = find_inputs([input]).sources
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(f"{path}.tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        for article in joined(rows_of(sources)):
            file.write(json.dumps({"text": article}) + "\n")
    unfinished.replace(path)
    return str(path)


def rows_of(sources: Iterable[Source]) -> Iterator[str]:
    rules = Rules()
    for unit in cut_units(sources, rules):
        for document in documents(unit, rules, Counter()):
            yield document.text


def joined(rows: Iterable[str]) -> Iterator[str]:
    """Articles: each from a row that is a title to the row before the next one."""
    article = []
    for row in rows:
        if TITLE.match(row) and article:
            yield "".join(article)
            article = []
        article.append(row)
    yield "".join(article)


if __name__ == "__main__":
    cli.run(main)
