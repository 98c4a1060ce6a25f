"""nanoGPT's command of this name: it says what to type here instead."""

import sys

sys.exit(
    "data/shakespeare/prepare.py is nanoGPT's; here, from the repository's folder: "
    "python prepare/shakespeare_char.py, and then python prepare/text.py "
    "--input data/shakespeare_char/input.txt --tokenizer gpt2 --out data/shakespeare"
)
