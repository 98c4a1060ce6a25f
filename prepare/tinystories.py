"""TinyStories: 2 million short stories in a child's vocabulary, 2 GB, which very small models learn to tell.

python prepare/tinystories.py [any option of prepare/text.py]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from prepare import text


def main(argv=None):
    usual = dict(input=["hf:roneneldan/TinyStories:train"], out="data/tinystories", tokenizer="bpe:4096")
    text.main(argv, "tinystories", __doc__, val_input=["hf:roneneldan/TinyStories:validation"], **usual)


if __name__ == "__main__":
    cli.run(main)
