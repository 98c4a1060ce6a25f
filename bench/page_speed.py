"""Measure the pages of visualize.py: time and size of a 124M model's page, of five long runs', and
of the report of a very long run, whole and refreshed after 1,000 steps more.

    python bench/page_speed.py            GPT-2's shape with random weights, on the CPU
    python bench/page_speed.py --out DIR  keeps the pages

GPT-2's encoding is fetched, or comes from TIKTOKEN_CACHE_DIR. Loading and building the model are
not counted.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.gpt2 import Shape, random_gpt2
from bench.results import record
from lathe import ROOT, cli
from lathe.fields import PathName


@dataclass
class Options(Shape):
    """What to draw."""

    # --- pages
    tokenizer: str = "gpt2"  # byte needs no files
    tokens: list[int] = field(default_factory=lambda: [64, 256])  # of the texts of a model's pages
    points: int = 10_000  # training rows of each run
    report_points: list[int] = field(default_factory=lambda: [300_000, 1_000_000])  # of reports
    models: bool = True  # false leaves the models' pages out
    out: PathName = ""  # folder that keeps the pages
    save: bool = False  # append to bench/RESULTS.md


@dataclass
class Page:
    """A page that was made."""

    title: str
    file_name: str
    html: str
    seconds: float  # of the processor

    def row(self) -> list[str]:
        megabytes = len(self.html.encode()) / 1e6
        return [self.title, f"{self.seconds:.2f}", f"{megabytes:.2f}"]


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(Options, argv, prog="bench/page_speed.py", description=__doc__)

    import torch

    pages = model_pages(options) if options.models else []
    pages.append(runs_page(options.points))
    for n_points in options.report_points:
        pages += report_pages(n_points)
    record(
        "Pages",
        ["page", "CPU seconds", "MB"],
        [page.row() for page in pages],
        f"{torch.get_num_threads()} threads.",
        options.save,
    )
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        for page in pages:
            (folder / page.file_name).write_text(page.html, encoding="utf-8")
    return 0


def timed_page(title: str, file_name: str, draw: Callable[[], str]) -> Page:
    began = time.process_time()
    html = draw()
    return Page(title, file_name, html, time.process_time() - began)


def model_pages(options: Options) -> list[Page]:
    """Pages of a model that reads the first tokens of model.py."""
    from lathe.text.tokenizer import load_tokenizer
    from pages.model_page import model_page
    from pages.options import ModelOptions

    tokenizer = load_tokenizer(options.tokenizer)
    name = options.size_name
    model = random_gpt2(options, tokenizer.vocab_size)
    ids = tokenizer.encode((ROOT / "model.py").read_text(encoding="utf-8"))
    pages = []
    for n_tokens in options.tokens:
        prompt = tokenizer.decode(ids[: n_tokens - 1])  # end-of-text comes before it
        how = ModelOptions(prompt=prompt)
        page = timed_page(
            f"model, {name}, {n_tokens} tokens",
            f"model-{n_tokens}.html",
            lambda how=how: model_page(model, tokenizer, name, {}, how),
        )
        pages.append(page)
    return pages


def runs_page(n_points: int) -> Page:
    """The page of five runs."""
    from pages.run_page import run_page

    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder, f"run{i}") for i in range(5)]
        for seed, run in enumerate(runs):
            write_run(run, n_points, seed)
        return timed_page(f"5 runs x {n_points:,} points", "runs.html", lambda: run_page(runs))


def report_pages(n_points: int) -> list[Page]:
    """A report from nothing, and refreshed."""
    from pages.run_page import Report

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        write_run(run, n_points, seed=0)
        report = Report(run)

        def refresh() -> str:
            fault = report.refresh(now=True)
            assert fault is None, fault
            return (run / "report.html").read_text(encoding="utf-8")

        title = f"report, {n_points:,} points"
        name = f"report-{n_points}"
        first = timed_page(f"{title}, from nothing", f"{name}.html", refresh)
        write_run(run, n_points + 1000, seed=0, done=n_points)
        second = timed_page(f"{title}, 1,000 steps later", f"{name}-later.html", refresh)
        return [first, second]


def write_run(folder: Path, n_points: int, seed: int, done: int = 0):
    """A run's metrics, after the first `done`, with as much noise as real ones have."""
    draw = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as file:
        for step in range(done + 1, n_points + 1):
            loss = 3 + 5 / step
            row = {
                "step": step,
                "tokens": step * 65536,
                "loss": loss + draw.normal() * 0.05,
                "lr": 1e-3,
                "grad_norm": abs(draw.normal()),
                "tokens_per_second": 1e5 + 1e3 * draw.normal(),
                "elapsed": round(step * 0.61, 3),
                "memory": 10**9,
            }
            file.write(json.dumps(row) + "\n")
            if step % 100 == 0:
                row = {"step": step, "val_loss": loss, "elapsed": step * 0.61}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    cli.run(main)
