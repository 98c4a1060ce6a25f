"""A table by n-grams in a Hugging Face folder, both ways.

No family has one, so the folder brings its code along: modeling_ngrams.py, which transformers runs
for whoever passes trust_remote_code=True. Here it is copied, and never run.
"""

from pathlib import Path
from typing import Any

from lathe.reading import KINDS, is_of
from model import GPTConfig

MODEL_FILE = "modeling_ngrams.py"
CLASS = "NGramsForCausalLM"
SUFFIX = "_ngrams"  # of model_type, after the family's: no program takes the folder for a plain one
KEYS = {"ngram_order": "ngram_order", "ngram_rows": "ngram_rows", "ngram_vocab_size": "vocab_size"}


def with_table(values: dict[str, Any], c: GPTConfig) -> dict[str, Any]:
    """The config.json of a network with a table, from the family's."""
    return (
        values
        | {theirs: getattr(c, ours) for theirs, ours in KEYS.items()}
        | {
            "architectures": [CLASS],
            "model_type": values["model_type"] + SUFFIX,
            "auto_map": {
                "AutoConfig": f"{Path(MODEL_FILE).stem}.NGramsConfig",
                "AutoModelForCausalLM": f"{Path(MODEL_FILE).stem}.{CLASS}",
            },
        }
    )


def model_code(architecture: str) -> str:
    """The model file, of a network of this class of transformers."""
    code = (Path(__file__).parent / MODEL_FILE).read_text(encoding="utf-8")
    family = architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return code.replace("LlamaForCausalLM", architecture).replace("LlamaConfig", f"{family}Config")


def has_table(theirs: dict) -> bool:
    """Whether a config.json is one of with_table's."""
    return str(theirs.get("model_type", "")).endswith(SUFFIX)


def without_table(theirs: dict) -> dict:
    """The family's config.json, from that of with_table."""
    values = {key: value for key, value in theirs.items() if key not in KEYS}
    return values | {"architectures": None, "model_type": theirs["model_type"][: -len(SUFFIX)]}


def our_table(theirs: dict, path: Path) -> dict[str, int]:
    """{our setting: value} of the table. ValueError names what is missing, or does not fit."""
    for key in KEYS:
        if not is_of(theirs.get(key), int):
            raise ValueError(f"{path}: {key} is {theirs.get(key, 'missing')}, not {KINDS[int]}")
    if theirs["ngram_vocab_size"] != theirs.get("vocab_size"):
        raise ValueError(
            f"{path}: ngram_vocab_size is {theirs['ngram_vocab_size']} and vocab_size "
            f"{theirs.get('vocab_size')}: in lathe's network they are one number; undo the "
            "resizing of the embeddings"
        )
    return {name: theirs[name] for name in ("ngram_order", "ngram_rows")}
