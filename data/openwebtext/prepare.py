"""nanoGPT's command of this name: it says what to type here instead."""

import sys

sys.exit(
    "data/openwebtext/prepare.py is nanoGPT's; here, from the repository's folder: "
    "python prepare/openwebtext.py"
)
