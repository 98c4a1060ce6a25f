"""WikiText-103: 28,000 good Wikipedia articles, 540 MB, with their usual validation split.

    python prepare/wikitext.py [any option of prepare/text.py]

The dataset has a row per paragraph. Rows are joined to articles first, in a JSON lines file per split beside the
shards, since a document is what a model should see from its beginning to its end.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.corpus import build
from lathe.corpus.cut import units
from lathe.corpus.find import find_sources
from lathe.corpus.read import Rules, documents

DATASET = "hf:Salesforce/wikitext:wikitext-103-raw-v1"
TITLE = re.compile(r" = [^=].* = \n$")  # sections have more equals signs


def main(argv=None):
    options = cli.parse(build.Options, argv, prog="prepare/wikitext.py", description=__doc__)
    options.out = options.out or "data/wikitext"
    options.tokenizer = options.tokenizer or "gpt2"
    if not options.input:
        options.input = [write_articles(f"{DATASET}:train", Path(options.out, "train.jsonl"))]
        options.val_input = [write_articles(f"{DATASET}:validation", Path(options.out, "val.jsonl"))]
    build.prepare(options)


def write_articles(rows, path) -> str:
    """The rows of one split as articles, a JSON object with "text" per line, in the file `path`, unless it exists."""
    if path.is_file():
        return str(path)
    sources = find_sources([rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(f"{path}.tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        article = []
        for unit in units(sources, Rules()):
            for row, *_ in documents(unit, Rules(), Counter()):
                if TITLE.match(row) and article:
                    file.write(json.dumps({"text": "".join(article)}) + "\n")
                    article = []
                article.append(row)
        file.write(json.dumps({"text": "".join(article)}) + "\n")
    unfinished.replace(path)
    return str(path)


if __name__ == "__main__":
    cli.run(main)
