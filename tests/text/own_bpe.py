"""Text of several kinds, and a BPE learned from it."""

from pathlib import Path

from lathe import ROOT
from lathe.text.bpe import count_pieces, train_bpe

FILES = [*Path(__file__).parent.glob("*.py"), *(ROOT / "lathe" / "text").glob("*.py")]
CODE = "".join(path.read_text(encoding="utf-8") for path in sorted(FILES))
OWN = train_bpe(count_pieces([CODE]), 600)
