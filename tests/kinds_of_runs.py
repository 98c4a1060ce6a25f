"""Kinds of training runs, small: for promises that hold for every one of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import paired
from tiny_run import make_dataset, settings

import train
from lathe.data.shards import write_dataset
from lathe.settings import Settings
from lathe.text.tokenizer import load_tokenizer

PAIRS = [{"prompt": f"reverse {i * 7919} ", "completion": str(i * 7919)[::-1]} for i in range(60)]


@dataclass(frozen=True)
class Kind:
    """What makes it different from tiny_run.SMALL, its data, and on how many ranks it trains."""

    changed: dict = field(default_factory=dict)
    data: str = "text"  # text, pairs, or a mixture of folders
    n_ranks: int = 1


KINDS = {
    "muon": Kind(),
    "adamw": Kind(dict(optimizer="adamw", lr_schedule="cosine")),
    "bfloat16": Kind(dict(dtype="bfloat16", qk_norm=False)),
    "dropout": Kind(dict(dropout=0.2, activation_checkpointing="selective")),
    "no accumulation": Kind(dict(micro_batch_size=8, activation_checkpointing="full")),
    "grouped queries": Kind(dict(n_kv_head=1, tie_weights=False, logit_softcap=15.0)),
    "GPT-2's network": Kind(
        dict(position="learned", norm="layernorm", norm_weight=True, bias=True, tie_weights=True)
    ),
    "n-grams and a mask": Kind(
        dict(document_mask=True, dropout=0.1, ngram_rows=300, ngram_dropout=0.2), "pairs"
    ),
    "n-grams, averaged": Kind(dict(ngram_rows=300, ngram_order=3, average_fraction=0.6)),
    "LoRA beside n-grams": Kind(dict(lora_rank=2, init_from="base with n-grams", ngram_rows=300)),
    "a mixture": Kind(data="text:0.7,other:0.3"),
    "epochs": Kind(dict(batch_size=198, micro_batch_size=99)),  # of two steps each
    "LoRA": Kind(dict(lora_rank=2, init_from="base", learning_rate=0.01)),
    "an early best": Kind(dict(learning_rate=0.5, muon_learning_rate=1.0, warmup_steps=8)),
    "samples": Kind(dict(sample_tokens=6, num_samples=2, sample_prompt="the ", dropout=0.1)),
    "skipped steps": Kind(dict(skip_spikes=1.05, max_skipped_steps=1000)),
    "averaged": Kind(dict(average_fraction=0.6, dropout=0.1)),
    "LoRA, averaged": Kind(dict(average_fraction=0.6, lora_rank=2, init_from="base")),
    "sharded, averaged": Kind(dict(parallel="fsdp", average_fraction=0.6), n_ranks=2),
    "two ranks": Kind(dict(dropout=0.1), n_ranks=2),
    "two ranks, adamw": Kind(dict(optimizer="adamw"), n_ranks=2),
    "sharded": Kind(dict(parallel="fsdp", dropout=0.1), n_ranks=2),
    "sharded, adamw": Kind(dict(parallel="fsdp", optimizer="adamw"), n_ranks=2),
    "two ranks, n-grams": Kind(dict(ngram_rows=300, ngram_dropout=0.2), n_ranks=2),
    "sharded, n-grams": Kind(
        dict(parallel="fsdp", ngram_rows=301, ngram_order=4, average_fraction=0.6), n_ranks=2
    ),
}


def make_data(folder: Path):
    """All that the kinds read: two folders of text, pairs, and runs whose weights LoRA corrects."""
    make_dataset(folder / "text")
    counting = [" ".join(str(i * j) for j in range(30)) for i in range(40)]
    write_dataset(folder / "other", load_tokenizer("byte"), counting[:36], counting[36:])
    paired.prepare(folder / "rows", PAIRS, val_fraction=0.1)
    (folder / "rows" / "data").rename(folder / "pairs")
    for name, ngram_rows in (("base", 0), ("base with n-grams", 300)):
        base = settings(str(folder / "text"), folder / name, max_steps=2, ngram_rows=ngram_rows)
        assert train.train(base) == 0


def settings_of(kind: Kind, data: Path, out_dir: Path, **changed) -> Settings:
    """Of a run of this kind. data: as make_data left it."""
    dataset = ",".join(str(data / part) for part in kind.data.split(","))
    asked = {**kind.changed, **changed}
    if asked.get("init_from", "").startswith("base"):
        asked["init_from"] = str(data / asked["init_from"])
    return settings(dataset, out_dir, rank_timeout=60, **asked)


def rows_without_times(path: Path) -> list[dict]:
    """What a run says of its steps, but for what depends on the machine."""
    of_the_machine = ("tokens_per_second", "elapsed", "memory")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in of_the_machine} for row in rows]
