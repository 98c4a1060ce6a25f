"""FineWeb-Edu, educational web pages: the sample of 10 billion gpt2 tokens.

python prepare/fineweb_edu.py [any option of prepare/text.py]

There is more of it: --input hf:HuggingFaceFW/fineweb-edu:sample-100BT, say.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from prepare import text

DATASET = "hf:HuggingFaceFW/fineweb-edu:sample-10BT"


def main(argv: list[str] | None = None):
    defaults = dict(input=[DATASET], out="data/fineweb_edu", tokenizer="gpt2")
    text.main(argv, "fineweb_edu", __doc__, **defaults)


if __name__ == "__main__":
    cli.run(main)
