"""OpenWebText, the open copy of GPT-2's training text: 8 million web pages, 40 GB, 9 billion gpt2
tokens.

python prepare/openwebtext.py [--input FILES] [any option of prepare/text.py]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from prepare import text

DATASET = "hf:Skylion007/openwebtext"


def main(argv: list[str] | None = None):
    defaults = dict(input=[DATASET], out="data/openwebtext", tokenizer="gpt2")
    text.main(argv, "openwebtext", __doc__, **defaults)


if __name__ == "__main__":
    cli.run(main)
