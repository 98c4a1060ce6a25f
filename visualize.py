"""Two pages that open offline from disk: what a run did, and what a model does inside for a given text.

    python visualize.py run RUN [RUN ...] [--out=FILE]
    python visualize.py model --out_dir=RUN [--prompt=TEXT] [--out=FILE]

Each page is one HTML file that holds its own data and scripts (pages/ has their sources) and loads nothing: a
content-security policy forbids it. The same input gives the same bytes. A run's page is also written by train.py.
"""

import sys
from dataclasses import dataclass, field

import config


@dataclass
class RunOptions:
    """Which runs to show."""

    runs: list[str] = field(default_factory=list)  # folders of runs, to be overlaid
    out: str = ""  # page to write; empty = report.html in the run's folder, runs.html here for several runs
    max_mb: float = 5.0  # largest page, in MB

    def __post_init__(self):
        if not self.runs:
            raise ValueError("which runs? python visualize.py run RUN [RUN ...]")


@dataclass
class ModelOptions:
    """Which model to look into, with which text."""

    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    model: str = ""  # instead of out_dir: hf:NAME_OR_FOLDER, a Hugging Face model
    prompt: str = "Jane visits Africa in September."  # text to look at
    out: str = ""  # page to write; empty = model.html in the run's folder, or here for a Hugging Face model
    heads: list[str] = field(default_factory=list)  # LAYER.HEAD ... to show step by step; empty = the most telling ones
    max_new_tokens: int = 30  # length of the text that the model writes behind the prompt
    temperature: float = 0.8  # of that text
    seed: int = 1337  # of that text
    leave_out: int = 0  # how many tokens, from the last, are left out one by one; 0 = as many as take seconds
    max_mb: float = 2.5  # largest page, in MB

    def __post_init__(self):
        for name in ("max_new_tokens", "temperature", "leave_out"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")


def parse(argv: list[str]) -> RunOptions | ModelOptions:
    """The options of the sub-command that argv begins with. Exits with 2 and one line for wrong use."""
    command, *rest = argv or [""]
    if command == "run":
        about = "Write a page about one run or several."
        return config.parse(RunOptions, rest, prog="visualize.py run", description=about, positional="runs")
    if command == "model":
        about = "Write a page about what a model does inside for a text."
        return config.parse(ModelOptions, rest, prog="visualize.py model", description=about)
    usage = "visualize.py run RUN [RUN ...] [--out=FILE] | visualize.py model --out_dir=RUN [--prompt=TEXT]"
    if command in ("-h", "--help"):
        print(f"usage: {usage}\n\nWrite a page about runs, or about a model. Each has its own --help.")
        sys.exit(0)
    print(f"visualize.py: error: {command or 'nothing'!r} is neither run nor model; usage: {usage}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    parse(sys.argv[1:])  # --help and mistakes are answered before anything slow is imported

import base64
import gzip
import hashlib
import json
import re
import tomllib
from pathlib import Path

import numpy as np

from metrics import read_lines, read_metrics

PAGES = Path(__file__).parent / "pages"
MOST_POINTS = 10_000  # per curve; longer ones are thinned


# The page itself


def pack(data: dict) -> str:
    """JSON values, to six digits, and arrays (top level only): base64 of gzip of [length of JSON, JSON, arrays]."""
    values, arrays, blob = {}, {}, b""
    for name, value in data.items():
        if isinstance(value, np.ndarray):
            arrays[name] = {"dtype": str(value.dtype), "shape": value.shape, "at": len(blob)}
            blob += value.tobytes() + bytes(-value.nbytes % 4)
        else:
            values[name] = value
    values = json.loads(json.dumps(values), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    text = json.dumps({**values, "arrays": arrays}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # a browser wants arrays at multiples of four
    return base64.b64encode(gzip.compress(len(text).to_bytes(4, "little") + text + blob, 6, mtime=0)).decode()


def render(
    template: str, scripts: tuple[str, ...], styles: tuple[str, ...], data: dict, max_mb: float, shrink: str, **shown
) -> str:
    """The page of pages/TEMPLATE.html. Raises ValueError, saying how to shrink it, beyond max_mb."""
    from jinja2 import Environment, FileSystemLoader

    sources = [(PAGES / script).read_text(encoding="utf-8") for script in scripts]
    hashes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
    style = "\n".join((PAGES / sheet).read_text(encoding="utf-8") for sheet in styles)
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template(f"{template}.html").render(
        policy=policy, style=style, scripts=sources, data=pack(data), **shown
    )
    page = re.sub("[\ud800-\udfff]", "\ufffd", page)  # half a character in somebody's text has no bytes
    if len(page.encode()) > max_mb * 1e6:
        raise ValueError(f"the page would have {len(page.encode()) / 1e6:.1f} MB, max_mb is {max_mb:g}: {shrink}")
    return page


def write(path: Path, page: str):
    """Whole or not at all: a browser may be looking at it while a run refreshes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8", newline="\n")
    temporary.replace(path)


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


# A model


def model_page(model, tokenizer, name: str, about: dict, options: ModelOptions, begin=None, ends=None) -> str:
    """The page of a model (on the CPU, float32) reading options.prompt behind the ids `begin`; the ids `ends` stop what
    it writes; both are end-of-text by default. Raises ValueError for a prompt too long or a page too large."""
    from pages.inside import look_inside, parts

    ids = [*(begin or [tokenizer.eot_id]), *tokenizer.encode(options.prompt)]
    data = look_inside(model, tokenizer, ids, options, ends or (tokenizer.eot_id,))
    bits = [None, *(data["surprisal"] / np.log(2)).tolist()]
    texts = [data["tokens"][token] for token in data["ids"]]
    drawing, n_params = parts(model)
    return render(
        "model", ("common.js", "model.js"), ("style.css",), data, options.max_mb,
        "shorten --prompt, name fewer --heads, or raise --max_mb", name=name, about=about,
        rows=list(zip(texts, bits, strict=True)), drawing=drawing, n_params=n_params, config=vars(model.config),
        nats=data["nats"], bits_per_byte=data["bits_per_byte"], stopped=data["stopped"],
    )  # fmt: skip


def open_and_draw(options: ModelOptions) -> tuple[str, Path]:
    """The page of the model that the options name, and where it belongs."""
    from sample import open_model

    opened = open_model(options)
    model = opened.load().float()
    name, about, folder = options.model, {"imported": "from Hugging Face"}, Path(".")
    if not options.model:
        import checkpoint

        folder, state = Path(options.out_dir), checkpoint.read_state(Path(opened.name))
        name, loss = folder.resolve().name, state.get("val_loss")
        about = {"step": f"{state['step']:,}", "validation loss": None if loss is None else f"{loss:.4f}"}
        about |= {"dataset": state["dataset"]["path"], "tokenizer": state["tokenizer"]["name"]}
    about["checkpoint"] = opened.name
    page = model_page(model, opened.tokenizer, name, about, options, opened.begin, opened.ends)
    return page, Path(options.out or folder / "model.html")


def main(argv: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(options, RunOptions):
        page = run_page(options.runs, options.max_mb)
        path = Path(options.out or (Path(options.runs[0]) / "report.html" if len(options.runs) == 1 else "runs.html"))
    else:
        page, path = open_and_draw(options)
    write(path, page)
    print(path)
    return 0


if __name__ == "__main__":
    config.run(main)
