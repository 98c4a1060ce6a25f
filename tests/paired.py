"""Prompts and completions, and chats, as datasets of which only the answers are scored."""

import json

from lathe.data.batches import val_windows
from lathe.data.dataset import open_dataset
from model import IGNORE
from prepare import pairs

PAIRS = [
    {"prompt": f"reverse {w}\n", "completion": w[::-1]}
    for w in "abc hello x lathe token of many words".split()
]


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " hi {there}\n"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
]


def prepare(folder, rows, **options):
    """The dataset that pairs.py makes of these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    options = {
        "input": path,
        "out": folder / "data",
        "tokenizer": "byte",
        "val_fraction": 0,
        **options,
    }
    pairs.main([f"--{name}={value}" for name, value in options.items()])
    return open_dataset(folder / "data", verify=True)


def scored_texts(dataset, block_size, split="train"):
    """(input, scored targets) of each window, as text."""
    tokenizer = dataset.tokenizer()
    for x, y in val_windows(getattr(dataset, split), block_size, 0, 1):
        yield [
            tokenizer.decode(ids.tolist(), specials=True) for ids in (x[0], y[0][y[0] != IGNORE])
        ]
