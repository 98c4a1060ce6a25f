"""A checkpoint as a Hugging Face folder."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from lathe.run.files import hidden_beside, replace_folder
from lathe.run.tensor_file import write_safetensors
from lathe.terminal import printable
from lathe.text.chat import TEMPLATES
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.clients import calls_of_export, new_tokens
from lathe.use.hf.config import their_config
from lathe.use.hf.families import architecture_of
from lathe.use.hf.ngrams import MODEL_FILE, model_code
from lathe.use.hf.tokenizers import end_of_text, write_tokenizer
from lathe.use.hf.weights import their_weights, written_as
from model import GPT, GPTConfig

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [lathe]
---
# {title}

A GPT of {parameters:,} parameters, trained with lathe on `{dataset}` and written \
for Hugging Face as `{architecture}`{table}.

| | |
|---|---|
| validation loss | {val_loss} |
| training steps, sequences read | {step:,}, {samples:,} |
| layers, heads, width, context | {c.n_layer}, {c.n_head}, {c.n_embd}, {c.block_size} |
| tokenizer | {tokenizer} |

{how}"""

PLAIN = """\
Texts begin with `{end}`, and so should prompts. Greedy text is then the same everywhere.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("."{trust})
model = AutoModelForCausalLM.from_pretrained("."{trust})
ids = tokenizer("{end}Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens={new})[0]))
```

| client | how it continues "Once" |
|---|---|
{rows}
"""
TABLE = f""" with a table by n-grams, which is computed by `{MODEL_FILE}` in
this folder: transformers runs that with `trust_remote_code=True`, and other programs cannot hold
the model"""
CHAT = """\
It answers messages. The template puts `{end}` before them and refuses roles other than {roles}, and
tools. Before it trains on a dialogue, give the template `end_of_text=True`: without, nothing says
where the last answer ends.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("."{trust})
model = AutoModelForCausalLM.from_pretrained("."{trust})
messages = [{{"role": "user", "content": "Who are you?"}}]
ids = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**ids, max_new_tokens={new})[0, ids["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True).strip())
```

| client | how it answers "Who are you?" |
|---|---|
{rows}
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
    weights = their_weights(model, architecture, getattr(torch, dtype), written_as(model.config))
    with open(folder / "model.safetensors", "wb") as file:
        write_safetensors(file, weights)
    write_json(
        folder / "config.json",
        their_config(written_as(model.config), architecture, dtype, tokenizer),
    )
    if model.config.ngram_rows:
        (folder / MODEL_FILE).write_text(model_code(architecture), encoding="utf-8")
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
    dataset = state.get("dataset", {}).get("path", "an unnamed dataset")
    card = CARD.format(
        title=printable(title),
        parameters=model.n_params(),
        architecture=architecture,
        table=TABLE if model.config.ngram_rows else "",
        c=model.config,
        tokenizer=tokenizer.name,
        dataset=printable(without_local_folders(dataset)),
        step=state.get("step", 0),
        samples=state.get("samples", 0),
        val_loss="not measured" if val_loss is None else f"{val_loss:.4f} nats per token",
        how=how_to_go_on(model.config, tokenizer, state.get("template", "")),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def without_local_folders(dataset: str) -> str:
    """The dataset's name, of a mixture the names of its parts, where a path would tell the reader
    of a card how a disk is laid out."""
    parts = []
    for part in dataset.split(","):
        is_local = ".." in part or re.search(r"(^|:)[~/\\]", part)
        parts.append(re.split(r"[/\\]", part)[-1] if is_local else part)
    return ",".join(parts)


def how_to_go_on(config: GPTConfig, tokenizer: Tokenizer, template: str) -> str:
    """What a model card says of prompts."""
    is_chat = template in TEMPLATES
    calls = calls_of_export(config, tokenizer, ".", "", is_chat)
    rows = [f"| {client} | `{call}` |" for client, call in calls.items()]
    escaped = [row.replace("<|", "<\\|").replace("|>", "\\|>") for row in rows]  # of the table
    return (CHAT if is_chat else PLAIN).format(
        new=new_tokens(config),
        end=end_of_text(tokenizer),
        trust=", trust_remote_code=True" if config.ngram_rows else "",
        rows="\n".join(escaped),
        roles=", ".join(TEMPLATES.get(template, {})),
    )


def write_json(path: Path, values: dict):
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
