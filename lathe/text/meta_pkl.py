"""nanoGPT's meta.pkl: the characters of its data/NAME, as a tokenizer.

The file is a pickle, which could run any code. This reader takes plain values alone: what would
call or import anything is refused before it does.
"""

import io
import pickle
from pathlib import Path

from lathe.reading import reading
from lathe.text.tokenizer import Tokenizer, train_char

LARGEST = 20_000_000  # bytes; all of Unicode takes fewer


class PlainValues(pickle.Unpickler):
    """Reads dicts, lists, texts and numbers."""

    def find_class(self, module: str, name: str) -> type:
        raise ValueError(f"it asks for {module}.{name}, and may hold plain values alone")


def read_meta_pkl(path: Path) -> Tokenizer:
    """The tokenizer of characters in a meta.pkl, whose ids are nanoGPT's; end-of-text, which it
    does not have, comes after them.

    Raises ValueError for anything but characters in the order of their codes, OSError.
    """
    with reading(path, "is no meta.pkl of nanoGPT's characters"):
        n_bytes = path.stat().st_size
        if n_bytes > LARGEST:
            raise ValueError(f"it has {n_bytes:,} bytes")
        meta = PlainValues(io.BytesIO(path.read_bytes())).load()
        if not isinstance(meta, dict) or not isinstance(meta.get("stoi"), dict):
            raise ValueError("it has no table stoi")
        ids = meta["stoi"]
        if not all(isinstance(char, str) and len(char) == 1 for char in ids):
            raise ValueError("stoi has what is no character")
        characters = sorted(ids)
        if [ids[char] for char in characters] != list(range(len(ids))):
            raise ValueError("its ids are not in the order of the characters' codes")
        return train_char([characters])
