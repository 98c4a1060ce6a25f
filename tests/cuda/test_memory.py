"""Planned memory is what is held on CUDA, whatever the settings: counted without a GPU by live_memory.py."""

import json
import os
from pathlib import Path

import pytest
from tiny_run import command, finished

from model import GPT2

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent

# The presets' shapes with few layers, since these take the time
MODERN = dict(
    n_layer=4, n_embd=768, n_head=6, block_size=1024, micro_batch_size=8, batch_size=16, max_steps=9
)
PUBLISHED = dict(MODERN, **GPT2, n_head=12, optimizer="adamw")
LARGE = dict(MODERN, n_layer=6, n_embd=1600, n_head=25, micro_batch_size=4)
LORA = dict(lora_rank=8, optimizer="adamw")
EIGHT = dict(world=8, batch_size=128)
CASES = {
    "modern_124m": MODERN,
    "modern_124m, 64 sequences": dict(MODERN, micro_batch_size=64, batch_size=64),
    "gpt2_124m": PUBLISHED,
    "gpt2_124m, 60 sequences": dict(PUBLISHED, micro_batch_size=60, batch_size=120),
    "1.5B": dict(LARGE, batch_size=8),
    "shakespeare_char": dict(
        vocab_size=66, n_layer=6, n_head=6, n_embd=384, block_size=256, micro_batch_size=64,
        batch_size=64, dropout=0.2, max_steps=9,
    ),
    "quickstart": dict(
        vocab_size=1024, n_layer=4, n_head=4, n_embd=128, block_size=128, micro_batch_size=16,
        batch_size=16, max_steps=9,
    ),
    "o200k_base": dict(MODERN, vocab_size=200_019),
    "one micro-batch": dict(MODERN, batch_size=8),
    "micro-batches of one": dict(MODERN, micro_batch_size=1),  # where an evaluation holds most
    "adamw": dict(MODERN, optimizer="adamw"),
    "float16": dict(MODERN, dtype="float16"),
    "float32": dict(PUBLISHED, dtype="float32", micro_batch_size=16, batch_size=32),
    "document_mask": dict(MODERN, document_mask=True),
    "document_mask, 4,096": dict(MODERN, document_mask=True, block_size=4096),
    "document_mask, 8,192": dict(MODERN, document_mask=True, block_size=8192, batch_size=8),
    "document_mask, 8,192, compiled": dict(
        PUBLISHED, document_mask=True, block_size=8192, batch_size=8, compile="true"
    ),
    "document_mask, compiled, dropout": dict(
        PUBLISHED, document_mask=True, compile="true", dropout=0.1
    ),
    "document_mask, float32": dict(PUBLISHED, document_mask=True, dtype="float32"),
    "grouped queries": dict(MODERN, n_kv_head=2),
    "relu2": dict(MODERN, activation="relu2", tie_weights=True),
    "dropout": dict(PUBLISHED, dropout=0.1),
    "gains, a cap, n-grams": dict(MODERN, norm_weight=True, bias=True, logit_softcap=15.0, ngram_rows=32768),
    "full": dict(MODERN, activation_checkpointing="full", micro_batch_size=64, batch_size=128),
    "selective": dict(MODERN, activation_checkpointing="selective", micro_batch_size=64, batch_size=128),
    "gpt2_124m, selective": dict(PUBLISHED, activation_checkpointing="selective"),
    "lora": dict(MODERN, **LORA),
    "gpt2_124m, lora, full": dict(PUBLISHED, **LORA, activation_checkpointing="full"),
    "ddp": dict(MODERN, **EIGHT),
    "ddp, one micro-batch": dict(MODERN, world=8, batch_size=64),
    "ddp, 64 ranks": dict(LARGE, world=64, batch_size=512),
    "ddp, gpt2_124m, 2 ranks": dict(PUBLISHED, world=2, batch_size=32),
    "ddp, lora": dict(MODERN, **EIGHT, **LORA),
    "fsdp": dict(MODERN, **EIGHT, parallel="fsdp"),
    "fsdp, 64 ranks, full": dict(
        LARGE, world=64, batch_size=512, parallel="fsdp", activation_checkpointing="full"
    ),
    "fsdp, gpt2_124m, 2 ranks": dict(PUBLISHED, world=2, batch_size=32, parallel="fsdp"),
    "fsdp, float32": dict(MODERN, **EIGHT, parallel="fsdp", dtype="float32"),
    "fsdp, lora": dict(MODERN, **EIGHT, **LORA, parallel="fsdp"),
}  # fmt: skip
FAULTS = {
    "a float mask a layer": dict(CASES["document_mask, 8,192"], fault="a float mask a layer"),
}
ALWAYS = ["modern_124m", "gpt2_124m", "quickstart", "micro-batches of one", "document_mask, 8,192"]
ALWAYS += [
    "document_mask, 8,192, compiled",
    "grouped queries",
    "full",
    "lora",
    "ddp",
    "fsdp",
    "float16",
    "float32",
]
if os.environ.get("LATHE_EXHAUSTIVE") != "1":
    CASES = {name: CASES[name] for name in ALWAYS}


@pytest.fixture(scope="module")
def reports(library, tmp_path_factory) -> dict[str, dict]:
    path = tmp_path_factory.mktemp("memory") / "cases.json"
    path.write_text(json.dumps(CASES | FAULTS))
    code, out, err = finished(command("-W", "ignore", HERE / "live_memory.py", library, path), 1800)
    assert code == 0, err[-3000:]
    return json.loads(out)


def ratio(report: dict) -> float:
    return report["planned"] / max(report["counted"].values())


@pytest.mark.parametrize("name", CASES)
def test_what_is_planned_is_held(reports, name):
    assert 0.92 <= ratio(reports[name]) <= 1.10, reports[name]


def test_a_mask_a_layer_would_be_seen(reports):
    assert ratio(reports["a float mask a layer"]) < 0.92
