"""What the page of a run shows."""

import tomllib
from pathlib import Path

import numpy as np

from lathe.run.metrics import read_lines, read_metrics
from pages.render import render, write

MOST_POINTS = 10_000  # per curve; longer ones are thinned


# A run


def running_seconds(rows: list[dict]) -> list[float]:
    """`elapsed` begins anew with each process; this goes on."""
    total, before, out = 0.0, 0.0, []
    for row in rows:
        elapsed = row.get("elapsed") or before
        total += elapsed - before if elapsed >= before else elapsed
        before = elapsed
        out.append(total)
    return out


def thinned(rows: list[dict], most: int) -> list[dict]:
    """At most about `most` rows: of each stretch the first and that of the highest (or no) loss: spikes stay."""
    if len(rows) <= most:
        return rows
    width, kept = -(-2 * len(rows) // most), []
    for begin in range(0, len(rows), width):
        stretch = rows[begin : begin + width]
        worst = max(range(len(stretch)), key=lambda i: np.inf if (loss := stretch[i].get("loss")) is None else loss)
        kept += [stretch[i] for i in sorted({0, worst})]
    return kept


def read_run(folder: str | Path, most_points: int = MOST_POINTS) -> dict:
    """What a run's folder tells, also of one in progress or crashed. Raises FileNotFoundError without metrics."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: give a run's out_dir, or train one with python train.py")
    if not (folder / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{folder} holds no metrics.jsonl: it is not the out_dir of a run that has begun")
    train, evaluation = read_metrics(folder / "metrics.jsonl")
    rows = sorted(train + evaluation, key=lambda row: row["step"])
    for row, seconds in zip(rows, running_seconds(rows), strict=True):
        row["seconds"] = seconds
    try:
        settings = tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    starts = read_lines(folder / "starts.jsonl")
    about = starts[-1] if starts else {}
    names = "step tokens loss lr grad_norm tokens_per_second mfu memory skipped seconds".split()
    few = thinned(train, most_points)
    curves = {name: [row.get(name) for row in few] for name in names if any(name in row for row in few)}
    tokens_per_step = settings.get("batch_size", 0) * settings.get("block_size", 0)
    tasks = {name for row in evaluation for name in row if "/" in name}  # TASK/acc and the like
    names = [*"step val_loss val_bits_per_byte seconds".split(), *sorted(tasks)]
    evaluations = {name: [row.get(name) for row in evaluation] for name in names}
    evaluations["tokens"] = [row["step"] * tokens_per_step or None for row in evaluation]
    scored = [row for row in evaluation if row["val_loss"] is not None]
    best = min(scored, key=lambda row: row["val_loss"], default={})
    last, last_train = (of[-1] if of else {} for of in (rows, train))
    speeds = [row["tokens_per_second"] for row in train[1:] or train if row.get("tokens_per_second")]
    summary = {
        "run": folder.name, "parameters": about.get("parameters"), "step": last.get("step", 0),
        "max_steps": settings.get("max_steps"), "train_loss": last_train.get("loss"),
        "val_loss": scored[-1]["val_loss"] if scored else None, "best_val_loss": best.get("val_loss"),
        "best_step": best.get("step"), "bits_per_byte": best.get("val_bits_per_byte"),
        "tokens": last_train.get("tokens"), "seconds": last.get("seconds"),
        "tokens_per_second": float(np.median(speeds)) if speeds else None, "device": about.get("device"),
        "skipped": last_train.get("skipped", 0), "restarts": max(0, len(starts) - 1),
    }  # fmt: skip
    return {
        "name": folder.name, "settings": settings, "starts": starts, "curves": curves, "evaluations": evaluations,
        "flops_per_token": about.get("flops_per_token"), "thinned": len(few) < len(train), "summary": summary,
        "samples": few_samples(read_lines(folder / "samples.jsonl")),
    }  # fmt: skip


def few_samples(rows: list[dict], steps: int = 40, characters: int = 4000) -> list[dict]:
    """Texts of at most `steps` evaluations, evenly spread, the first and the last among them."""
    rows = [row for row in rows if isinstance(row.get("step"), int) and isinstance(row.get("text"), str)]
    found = sorted({row["step"] for row in rows})
    if len(found) > steps:
        found = [found[round(i * (len(found) - 1) / (steps - 1))] for i in range(steps)]
    return [
        {
            "step": row["step"],
            "sample": row.get("sample", 0),
            "text": (row.get("prompt", "") + row["text"])[:characters],
        }
        for row in rows
        if row["step"] in found
    ]


def differing_settings(runs: list[dict]) -> list[tuple[str, list]]:
    """[(setting, its value in each run)] of those that are not the same in all; folders are left out."""
    names = dict.fromkeys(name for run in runs for name in run["settings"])
    table = [(name, [run["settings"].get(name, "") for run in runs]) for name in names if name != "out_dir"]
    return [(name, values) for name, values in table if any(value != values[0] for value in values)]


SUMMARY = {
    "run": "{}", "parameters": "{:,}", "step": "{:,}", "train_loss": "{:.4f}", "val_loss": "{:.4f}",
    "best_val_loss": "{:.4f}", "best_step": "{:,}", "bits_per_byte": "{:.4f}", "tokens": "{:,}", "seconds": "{:,.0f}",
    "tokens_per_second": "{:,.0f}", "skipped": "{}", "restarts": "{}", "device": "{}",
}  # fmt: skip


def run_page(folders: list[str | Path], max_mb: float = 5.0, most_points: int = MOST_POINTS) -> str:
    """One page about the runs in these folders. Raises FileNotFoundError or ValueError."""
    runs = [read_run(folder, most_points) for folder in folders]
    names = [run["name"] for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = run["summary"]["run"] = str(folder)
    cells = [
        [form.format(run["summary"][key]) if run["summary"][key] is not None else "" for key, form in SUMMARY.items()]
        for run in runs
    ]
    titles = [key.replace("_", " ") for key in SUMMARY]
    lines = [titles, ["---"] * len(titles), *cells]
    return render(
        "run", ("uPlot.iife.min.js", "common.js", "run.js"), ("uPlot.min.css", "style.css"), {"runs": runs}, max_mb,
        "show fewer runs, or raise --max_mb", runs=runs, titles=titles, cells=cells,
        differing=differing_settings(runs), pasted="\n".join("| " + " | ".join(line) + " |" for line in lines),
    )  # fmt: skip


def write_report(out_dir: str | Path) -> str | None:
    """Write or refresh out_dir/report.html for a run, in progress or done. Returns what went wrong, or None."""
    try:
        write(Path(out_dir) / "report.html", run_page([out_dir], max_mb=float("inf"), most_points=4000))
    except Exception as error:  # whatever it is: no page is worth a run
        return f"report.html is not written: {' '.join(str(error).split()) or type(error).__name__}"
