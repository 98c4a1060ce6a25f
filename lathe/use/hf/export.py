"""A checkpoint as a Hugging Face folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from lathe.run.files import hidden_beside, replace_folder
from lathe.run.tensor_file import write_safetensors
from lathe.terminal import printable
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.config import their_config
from lathe.use.hf.families import architecture_of
from lathe.use.hf.tokenizers import write_tokenizer
from lathe.use.hf.weights import their_weights
from model import GPT

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [lathe]
---
# {title}

A GPT of {parameters:,} parameters, trained with lathe on `{dataset}` and written \
for Hugging Face as `{architecture}`.

| | |
|---|---|
| validation loss | {val_loss} |
| training steps, sequences read | {step:,}, {samples:,} |
| layers, heads, width, context | {c.n_layer}, {c.n_head}, {c.n_embd}, {c.block_size} |
| tokenizer | {tokenizer} |

Texts begin with `<|endoftext|>`, and so should prompts:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
ids = tokenizer(tokenizer.eos_token + "Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0]))
```
"""


def export(
    model: GPT,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: str = "float32",
    state: dict | None = None,
    check: Callable[[Path], None] = lambda written: None,
) -> str:
    """Write model and tokenizer as a Hugging Face folder; returns the architecture.

    state: a checkpoint's, whose figures go to the model card. check: called with the written folder
    before it takes the place of what was there. Raises ValueError, naming the setting, for what
    cannot be written without loss, OSError, and what `check` raises; the folder is then as it was
    before.
    """
    architecture = architecture_of(model.config)
    folder = folder.resolve()
    temporary = hidden_beside(folder, ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_files(model, tokenizer, temporary, architecture, dtype, state or {}, folder.name)
        check(temporary)
        replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return architecture


def write_files(
    model: GPT,
    tokenizer: Tokenizer,
    folder: Path,
    architecture: str,
    dtype: str,
    state: dict,
    title: str,
):
    """All files of an export."""
    weights = their_weights(model, architecture, getattr(torch, dtype))
    with open(folder / "model.safetensors", "wb") as file:
        write_safetensors(file, weights)
    write_json(folder / "config.json", their_config(model.config, architecture, dtype, tokenizer))
    generation = {
        "bos_token_id": tokenizer.eot_id,
        "eos_token_id": tokenizer.eot_id,
        "do_sample": True,
        "pad_token_id": tokenizer.eot_id,
        "temperature": 0.8,
        "top_k": 200,
    }
    write_json(folder / "generation_config.json", generation)
    write_tokenizer(folder, tokenizer, model.config.block_size, state.get("template", ""))

    val_loss = state.get("val_loss")
    card = CARD.format(
        title=printable(title),
        parameters=model.n_params(),
        architecture=architecture,
        c=model.config,
        tokenizer=tokenizer.name,
        dataset=printable(state.get("dataset", {}).get("path", "an unnamed dataset")),
        step=state.get("step", 0),
        samples=state.get("samples", 0),
        val_loss="not measured" if val_loss is None else f"{val_loss:.4f} nats per token",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_json(path: Path, values: dict):
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
