"""TinyStories: 2 million short stories in a child's vocabulary, 2 GB, which very small models
learn to tell.

python prepare/tinystories.py [any option of prepare/text.py]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from prepare import text

TRAIN = "hf:roneneldan/TinyStories:train"
VAL = "hf:roneneldan/TinyStories:validation"


def main(argv: list[str] | None = None):
    files = dict(input=[TRAIN], val_input=[VAL])
    text.main(argv, "tinystories", __doc__, **files, out="data/tinystories", tokenizer="bpe:4096")


if __name__ == "__main__":
    cli.run(main)
