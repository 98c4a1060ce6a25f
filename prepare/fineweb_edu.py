"""FineWeb-Edu, educational web pages: the sample of 10 billion gpt2 tokens.

python prepare/fineweb_edu.py [--input hf:HuggingFaceFW/fineweb-edu:sample-100BT] [any option of prepare/text.py]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from prepare import text


def main(argv=None):
    usual = dict(input=["hf:HuggingFaceFW/fineweb-edu:sample-10BT"], out="data/fineweb_edu", tokenizer="gpt2")
    text.main(argv, "fineweb_edu", __doc__, **usual)


if __name__ == "__main__":
    cli.run(main)
