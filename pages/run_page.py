"""What the page of one run or several shows: curves, losses, samples, settings, a summary."""

from pathlib import Path

import numpy as np

from lathe import cli
from lathe.run.metrics import read_lines, read_metrics
from pages.render import render, write

MOST_POINTS = 10_000  # per curve; longer ones are thinned
CURVES = "step tokens loss lr grad_norm tokens_per_second mfu memory skipped seconds".split()
EVALUATIONS = "step val_loss val_bits_per_byte seconds".split()

# The columns of the table that compares runs, and how each is written.
SUMMARY = {
    "run": "{}",
    "parameters": "{:,}",
    "step": "{:,}",
    "train_loss": "{:.4f}",
    "val_loss": "{:.4f}",
    "best_val_loss": "{:.4f}",
    "best_step": "{:,}",
    "bits_per_byte": "{:.4f}",
    "tokens": "{:,}",
    "seconds": "{:,.0f}",
    "tokens_per_second": "{:,.0f}",
    "skipped": "{}",
    "restarts": "{}",
    "device": "{}",
}


def write_report(out_dir: str | Path) -> str | None:
    """Write or refresh out_dir/report.html; returns what went wrong, or None."""
    try:
        page = run_page([out_dir], max_mb=float("inf"), most_points=4000)
        write(Path(out_dir) / "report.html", page)
    except Exception as error:  # whatever it is: no page is worth a run
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"report.html is not written: {reason}"
    return None


def run_page(folders: list[str | Path], max_mb: float = 5.0, most_points: int = MOST_POINTS) -> str:
    """One page about the runs in these folders. Raises FileNotFoundError or ValueError."""
    runs = [read_run(folder, most_points) for folder in folders]
    names = [run["name"] for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = str(folder)
            run["summary"]["run"] = str(folder)
    titles = [key.replace("_", " ") for key in SUMMARY]
    cells = [summary_cells(run["summary"]) for run in runs]
    markdown = [titles, ["---"] * len(titles), *cells]
    return render(
        "run",
        scripts=("uPlot.iife.min.js", "common.js", "run.js"),
        styles=("uPlot.min.css", "style.css"),
        data={"runs": runs},
        max_mb=max_mb,
        shrink="show fewer runs, or raise --max_mb",
        runs=runs,
        titles=titles,
        cells=cells,
        differing=differing_settings(runs),
        pasted="\n".join("| " + " | ".join(line) + " |" for line in markdown),
    )


def summary_cells(summary: dict) -> list[str]:
    """A run's row of the table, in the order of SUMMARY; what is not known is empty."""
    cells = []
    for key, form in SUMMARY.items():
        value = summary[key]
        cells.append("" if value is None else form.format(value))
    return cells


def differing_settings(runs: list[dict]) -> list[tuple[str, list]]:
    """[(setting, its value in each run)] of those that are not the same in all; out_dir aside."""
    names = dict.fromkeys(name for run in runs for name in run["settings"])
    table = []
    for name in names:
        values = [run["settings"].get(name, "") for run in runs]
        if name != "out_dir" and any(value != values[0] for value in values):
            table.append((name, values))
    return table


# -----------------------------------------------------------------------------
# Reading a run's folder


def read_run(folder: str | Path, most_points: int = MOST_POINTS) -> dict:
    """What a run's folder tells, also of one in progress or crashed.

    Raises FileNotFoundError without metrics.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: give a run's out_dir, or train one with python train.py"
        )
    if not (folder / "metrics.jsonl").is_file():
        raise FileNotFoundError(
            f"{folder} holds no metrics.jsonl: it is not the out_dir of a run that has begun"
        )
    train, evaluations = read_metrics(folder / "metrics.jsonl")
    add_running_seconds(train, evaluations)
    settings = read_settings(folder)
    starts = read_lines(folder / "starts.jsonl")
    points = thinned(train, most_points)
    return {
        "name": folder.name,
        "settings": settings,
        "starts": starts,
        "curves": curves(points),
        "evaluations": evaluation_curves(evaluations, settings),
        "flops_per_token": starts[-1].get("flops_per_token") if starts else None,
        "thinned": len(points) < len(train),
        "summary": summarize(folder.name, train, evaluations, settings, starts),
        "samples": few_samples(read_lines(folder / "samples.jsonl")),
    }


def read_settings(folder: Path) -> dict:
    """settings.toml of a run; {} where it is missing or damaged."""
    try:
        return cli.from_toml((folder / "settings.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def add_running_seconds(train: list[dict], evaluations: list[dict]):
    """Give each row `seconds` since the run began: `elapsed` begins anew with each process."""
    total = 0.0
    before = 0.0
    for row in sorted(train + evaluations, key=lambda row: row["step"]):
        elapsed = row.get("elapsed") or before
        is_new_process = elapsed < before
        total += elapsed if is_new_process else elapsed - before
        before = elapsed
        row["seconds"] = total


def curves(rows: list[dict]) -> dict[str, list]:
    """{name: a value per row} of the training metrics that any row has."""
    return {
        name: [row.get(name) for row in rows] for name in CURVES if any(name in r for r in rows)
    }


def evaluation_curves(rows: list[dict], settings: dict) -> dict[str, list]:
    """{name: a value per evaluation}: losses, and scores of tasks (TASK/acc and the like)."""
    scores = sorted({name for row in rows for name in row if "/" in name})
    columns = {name: [row.get(name) for row in rows] for name in [*EVALUATIONS, *scores]}
    tokens_per_step = settings.get("batch_size", 0) * settings.get("block_size", 0)
    columns["tokens"] = [row["step"] * tokens_per_step or None for row in rows]
    return columns


def summarize(
    name: str, train: list[dict], evaluations: list[dict], settings: dict, starts: list[dict]
) -> dict:
    """{column of SUMMARY: value, None if it is not known}."""
    rows = sorted(train + evaluations, key=lambda row: row["step"])
    last = rows[-1] if rows else {}
    last_train = train[-1] if train else {}
    start = starts[-1] if starts else {}
    scored = [row for row in evaluations if row["val_loss"] is not None]
    best = min(scored, key=lambda row: row["val_loss"], default={})
    after_warmup = train[1:] or train
    speeds = [row["tokens_per_second"] for row in after_warmup if row.get("tokens_per_second")]
    return {
        "run": name,
        "parameters": start.get("parameters"),
        "step": last.get("step", 0),
        "max_steps": settings.get("max_steps"),
        "train_loss": last_train.get("loss"),
        "val_loss": scored[-1]["val_loss"] if scored else None,
        "best_val_loss": best.get("val_loss"),
        "best_step": best.get("step"),
        "bits_per_byte": best.get("val_bits_per_byte"),
        "tokens": last_train.get("tokens"),
        "seconds": last.get("seconds"),
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
        "device": start.get("device"),
        "skipped": last_train.get("skipped", 0),
        "restarts": max(0, len(starts) - 1),
    }


def thinned(rows: list[dict], most: int) -> list[dict]:
    """At most about `most` rows: of each stretch the first and the one of the highest loss, or of
    one that is not finite, so that spikes stay."""
    if len(rows) <= most:
        return rows
    width = -(-2 * len(rows) // most)
    kept = []
    for begin in range(0, len(rows), width):
        stretch = rows[begin : begin + width]
        losses = [row.get("loss") for row in stretch]
        heights = [np.inf if loss is None else loss for loss in losses]
        highest = int(np.argmax(heights))
        kept += [stretch[i] for i in sorted({0, highest})]
    return kept


def few_samples(rows: list[dict], steps: int = 40, characters: int = 4000) -> list[dict]:
    """Texts of at most `steps` evaluations, evenly spread, the first and the last among them."""
    rows = [r for r in rows if isinstance(r.get("step"), int) and isinstance(r.get("text"), str)]
    chosen = sorted({row["step"] for row in rows})
    if len(chosen) > steps:
        spread = [round(i * (len(chosen) - 1) / (steps - 1)) for i in range(steps)]
        chosen = [chosen[i] for i in spread]
    samples = []
    for row in rows:
        if row["step"] in chosen:
            text = row.get("prompt", "") + row["text"]
            sample = {
                "step": row["step"],
                "sample": row.get("sample", 0),
                "text": text[:characters],
            }
            samples.append(sample)
    return samples
