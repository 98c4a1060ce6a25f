"""Measure the pages of visualize.py: seconds and size of a 124M model's page, and of five long runs'.

    python bench/page_speed.py            GPT-2's shape with random weights, on the CPU
    python bench/page_speed.py --out DIR  keeps the pages

GPT-2's encoding is fetched, or comes from TIKTOKEN_CACHE_DIR. Loading and building the model are not counted.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from bench.results import record
from lathe import cli


@dataclass
class Options:
    out: str = ""  # folder that keeps the pages
    save: bool = False  # append to bench/RESULTS.md


def long_run(folder: Path, points: int, seed: int) -> Path:
    """A run's metrics with as much noise as real ones have."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, points + 1):
            row = {"step": step, "tokens": step * 65536, "loss": 3 + 5 / step + random.normal() * 0.05, "lr": 1e-3}
            row |= {"grad_norm": abs(random.normal()), "tokens_per_second": 1e5 + 1e3 * random.normal()}
            file.write(json.dumps({**row, "elapsed": round(step * 0.61, 3), "memory": 10**9}) + "\n")
            if step % 100 == 0:
                file.write(json.dumps({"step": step, "val_loss": 3 + 5 / step, "elapsed": step * 0.61}) + "\n")
    return folder


def main(argv=None) -> int:
    options = cli.parse(Options, argv, prog="bench/page_speed.py", description=__doc__)
    import torch

    from lathe.text.tokenizer import load_tokenizer
    from model import GPT, GPT2, GPTConfig
    from pages.model_page import model_page
    from pages.options import ModelOptions
    from pages.run_page import run_page

    tokenizer = load_tokenizer("gpt2")
    torch.manual_seed(0)
    model = GPT(GPTConfig(**GPT2))
    ids = tokenizer.encode((ROOT / "model.py").read_text(encoding="utf-8"))
    rows, pages = [], {}
    for tokens in (64, 256):
        prompt = tokenizer.decode(ids[: tokens - 1])
        began = time.perf_counter()
        pages[f"model-{tokens}"] = model_page(model, tokenizer, "124M", {}, ModelOptions(prompt=prompt))
        rows.append([f"model, 124M, {tokens} tokens", time.perf_counter() - began])
    with tempfile.TemporaryDirectory() as folder:
        runs = [long_run(Path(folder) / f"run{i}", 10_000, i) for i in range(5)]
        began = time.perf_counter()
        pages["runs"] = run_page(runs)
        rows.append(["5 runs x 10,000 points", time.perf_counter() - began])
    sizes = [len(page.encode()) / 1e6 for page in pages.values()]
    rows = [[name, f"{seconds:.1f}", f"{size:.2f}"] for (name, seconds), size in zip(rows, sizes, strict=True)]
    record("Pages", ["page", "seconds", "MB"], rows, f"{torch.get_num_threads()} threads.", save=options.save)
    if options.out:
        Path(options.out).mkdir(parents=True, exist_ok=True)
        for name, page in pages.items():
            (Path(options.out) / f"{name}.html").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    cli.run(main)
