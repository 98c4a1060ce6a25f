"""Tasks: the same choices as computed one by one by transformers, the same figures in any batches, mistakes named."""

import json
import math
from pathlib import Path

import pytest
import torch

import runtime
import tasks
from model import GPT, GPTConfig
from tasks import Task
from tokenizer import train_char

CPU = runtime.Runtime(torch.device("cpu"), torch.float32)
ALPHABET = "abcdefgh .\n"


def loud_model(vocab_size: int, seed: int = 0, **changes) -> GPT:
    """An untrained network with opinions."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=vocab_size, block_size=48, n_layer=2, n_head=2, n_embd=32, zero_init=False)
    model = GPT(GPTConfig(**shape | changes)).eval()
    for name, p in model.named_parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=1.0 if "wte" in name else 0.3)
    return model


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- exact match


def greedy(model: GPT, ids: list[int], n: int) -> list[int]:
    ids, begin = list(ids), len(ids)
    with torch.no_grad():
        for _ in range(n):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[begin:]


@pytest.fixture
def chars():
    return train_char([ALPHABET])


def answered_rows(model, tokenizer) -> list[dict]:
    """Prompts of several lengths with what the model says up to its fourth character, which is made the stop text."""
    rows = []
    for n in range(1, 25):
        prompt = "".join(ALPHABET[(i * n + n) % 8] for i in range(n))
        text = tokenizer.decode(greedy(model, [tokenizer.eot_id, *tokenizer.encode(prompt)], 20))
        stop = next((c for c in text[4:12] if c not in text[:4]), None)
        if stop and text[:4].strip():
            rows.append({"prompt": prompt, "completion": f" {text.partition(stop)[0].strip()}\n", "stop": stop})
    return rows


def test_exact_match_counts_answers_that_are_right_to_their_end(tmp_path, chars, monkeypatch):
    model = loud_model(chars.vocab_size)
    rows = answered_rows(model, chars)
    assert len(rows) >= 8
    rows[0]["completion"] += "a"  # the model says less
    rows[1]["completion"] = rows[1]["completion"].strip()[:1] + "  "  # the model says more
    spec = f"exact_match:{jsonl(tmp_path / 'rows.jsonl', rows)}"
    for at_once in (1, 100, 8192):
        monkeypatch.setattr(tasks, "TOKENS_AT_ONCE", at_once)
        found = Task(spec, chars, [chars.eot_id], 48).measure(model, CPU, (chars.eot_id,))
        p = 1 - 2 / len(rows)
        assert found["acc"] == pytest.approx(p) and found["items"] == len(rows) and found["cut"] == 0
        assert found["acc_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (len(rows) - 1)))
        assert found["items_per_second"] > 0
