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


@dataclass
class ModelOptions:
    """Which model to look into, with which text."""

    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    model: str = ""  # instead of out_dir: hf:NAME_OR_FOLDER, a Hugging Face model
    prompt: str = "Jane visits Africa in September."  # text to look at
    out: str = ""  # page to write; empty = model.html in the run's folder, or here for a Hugging Face model
    heads: list[str] = field(default_factory=list)  # LAYER.HEAD ... to show step by step; empty = the most telling ones
    max_new_tokens: int = 40  # length of the text that the model writes behind the prompt
    temperature: float = 0.8  # of that text
    seed: int = 1337  # of that text
    leave_out: int = 0  # how many tokens, from the last, are left out one by one; 0 = as many as take seconds
    max_mb: float = 2.5  # largest page, in MB

    def __post_init__(self):
        if self.max_new_tokens < 0 or self.leave_out < 0 or not self.temperature >= 0:
            name = "max_new_tokens" if self.max_new_tokens < 0 else "leave_out" if self.leave_out < 0 else "temperature"
            raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")


COMMANDS = {
    "run": (RunOptions, dict(description="Write a page about one run or several.", positional="runs")),
    "model": (ModelOptions, dict(description="Write a page about what a model does inside for a text.")),
}


def parse(argv: list[str]):
    """The options of the sub-command that argv begins with. Exits with 2 and one line for wrong use."""
    command, *rest = argv or [""]
    if command in COMMANDS:
        cls, more = COMMANDS[command]
        options = config.parse(cls, rest, prog=f"visualize.py {command}", **more)
        if command == "run" and not options.runs:
            print("visualize.py run: error: which runs? python visualize.py run RUN [RUN ...]", file=sys.stderr)
            sys.exit(2)
        return options
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
import struct
import tomllib
from pathlib import Path

import numpy as np

from metrics import read_metrics

PAGES = Path(__file__).parent / "pages"
MOST_POINTS = 10_000  # per curve; longer ones are thinned


# The page itself


def pack(data: dict) -> str:
    """JSON values and numpy arrays (top level) as base64 of gzip of [length of the JSON, the JSON, the arrays]."""
    arrays = {name: np.ascontiguousarray(value) for name, value in data.items() if isinstance(value, np.ndarray)}
    head = {name: value for name, value in data.items() if name not in arrays}

    def text_with_offsets(begin: int) -> bytes:
        at, places = begin, {}
        for name, array in arrays.items():
            places[name] = {"dtype": str(array.dtype), "shape": array.shape, "at": at}
            at += -(-array.nbytes // 4) * 4
        return json.dumps({**head, "arrays": places}, separators=(",", ":")).encode()

    size = -(-(len(text_with_offsets(0)) + 12 * len(arrays)) // 4) * 4  # room for longer offsets
    text = text_with_offsets(4 + size).ljust(size)
    blob = struct.pack("<I", size) + text + b"".join(a.tobytes() + bytes(-a.nbytes % 4) for a in arrays.values())
    return base64.b64encode(gzip.compress(blob, 6, mtime=0)).decode()


def unpack(page: str) -> dict:
    """What pack() put into a page."""
    blob = gzip.decompress(base64.b64decode(re.search(r'id="data">\s*([\w+/=]+)', page)[1]))
    (size,) = struct.unpack_from("<I", blob)
    data = json.loads(blob[4 : 4 + size])
    for name, about in data.pop("arrays").items():
        count = int(np.prod(about["shape"]))
        data[name] = np.frombuffer(blob, about["dtype"], count, about["at"]).reshape(about["shape"])
    return data


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


def read_lines(path: Path) -> list[dict]:
    """The JSON objects of a file that may be missing or half-written."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def rounded(value):
    """Six significant digits: what a screen can show, and half the bytes."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


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
    """At most about `most` rows: of each stretch its first and the one with the highest (or no) loss, so spikes stay."""
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
        raise FileNotFoundError(
            f"{folder} does not exist: give the out_dir of a run, or train one with python train.py"
        )
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
    curves = {name: [rounded(row.get(name)) for row in few] for name in names if any(name in row for row in few)}
    tokens_per_step = settings.get("batch_size", 0) * settings.get("block_size", 0)
    names = "step val_loss val_bits_per_byte seconds".split()
    evaluations = {name: [rounded(row.get(name)) for row in evaluation] for name in names}
    evaluations["tokens"] = [row["step"] * tokens_per_step or None for row in evaluation]
    scored = [row for row in evaluation if row["val_loss"] is not None]
    best = min(scored, key=lambda row: row["val_loss"], default={})
    last = rows[-1] if rows else {}
    speeds = [row["tokens_per_second"] for row in train[1:] or train if row.get("tokens_per_second")]
    summary = {
        "run": folder.name, "parameters": about.get("parameters"), "step": last.get("step", 0),
        "max_steps": settings.get("max_steps"), "train_loss": next((r["loss"] for r in reversed(train)), None),
        "val_loss": scored[-1]["val_loss"] if scored else None, "best_val_loss": best.get("val_loss"),
        "best_step": best.get("step"), "bits_per_byte": best.get("val_bits_per_byte"),
        "tokens": next((r.get("tokens") for r in reversed(train)), None), "seconds": last.get("seconds"),
        "tokens_per_second": float(np.median(speeds)) if speeds else None, "device": about.get("device"),
        "skipped": next((r["skipped"] for r in reversed(train) if "skipped" in r), 0), "restarts": max(0, len(starts) - 1),
    }  # fmt: skip
    return {
        "name": folder.name, "settings": settings, "starts": starts, "curves": curves, "evaluations": evaluations,
        "flops_per_token": about.get("flops_per_token"), "thinned": len(few) < len(train), "summary": summary,
        "samples": few_samples(read_lines(folder / "samples.jsonl")),
    }  # fmt: skip


def few_samples(rows: list[dict], steps: int = 40, characters: int = 4000) -> list[dict]:
    """Texts of at most `steps` evaluations, evenly spread, the first and the last among them."""
    rows = [row for row in rows if isinstance(row.get("step"), int)]
    found = sorted({row["step"] for row in rows})
    if len(found) > steps:
        found = [found[round(i * (len(found) - 1) / (steps - 1))] for i in range(steps)]
    wanted = set(found)
    return [
        {
            "step": row["step"],
            "sample": row.get("sample", 0),
            "text": f"{row.get('prompt', '')}{row['text']}"[:characters],
        }
        for row in rows
        if row["step"] in wanted and isinstance(row.get("text"), str)
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
    for i, run in enumerate(runs):  # two folders of one name are told apart
        if [r["name"] for r in runs].count(run["name"]) > 1:
            run["summary"]["run"] = str(folders[i])
    for run in runs:
        run["name"] = run["summary"]["run"]
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
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:  # a page is not worth a run
        return f"report.html is not written: {type(error).__name__}: {error}"


# A model


def look_inside(model, tokenizer, ids: list[int], options: ModelOptions) -> dict:
    """Everything that the page shows of `model` (on the CPU, float32) reading `ids`: JSON values and numpy arrays.

    ids begins with the end-of-text token. T = len(ids), L layers, H heads; a row of the logit lens is a residual
    stream: the embeddings, then what is behind each block. Raises ValueError for more tokens than the context.
    """
    import torch
    from torch.nn import functional as F

    c, T = model.config, len(ids)
    if T > c.block_size:
        raise ValueError(f"the prompt has {T:,} tokens, the context is {c.block_size:,} (block_size): shorten --prompt")
    triangles = c.n_layer * c.n_head * T * (T + 1) // 2
    if triangles > 20e6 * options.max_mb:  # these never compress that well: do not begin
        raise ValueError(f"a page of {T:,} tokens would exceed max_mb ({options.max_mb:g}): shorten --prompt")
    model.eval().requires_grad_(False)
    idx = torch.tensor([ids])

    # One pass with attention step by step; the hooks catch what the trace does not hold. Gradients flow back to the
    # residual stream only, not to weights.
    embedded, active, trace = [], [], []
    transformer = model.transformer
    hooks = [transformer.drop.register_forward_hook(lambda module, args, out: embedded.append(out.requires_grad_()))]
    for block in transformer.h:
        hooks.append(block.mlp.c_proj.register_forward_pre_hook(lambda module, args: active.append(args[0].detach())))
    with torch.enable_grad():
        logits = model.logits(model.features(idx, trace=trace))[0]  # (T, V)
        streams = [embedded[0], *(layer["residual"] for layer in trace)]
        for stream in streams[1:]:
            stream.retain_grad()
        if T > 1:
            F.cross_entropy(logits[:-1], idx[0, 1:]).backward()
    for hook in hooks:
        hook.remove()
    nothing = torch.zeros(1, T, c.n_embd)
    norms = torch.stack([stream.detach()[0].norm(dim=-1) for stream in streams])  # (L + 1, T)
    gradients = torch.stack([(nothing if s.grad is None else s.grad)[0].norm(dim=-1) for s in streams])
    # An activation is idle if it moves less than a hundredth of the layer's strongest one.
    idle = [float((a.abs() < 0.01 * a.abs().max()).float().mean()) for a in active]

    # Logit lens (nostalgebraist 2020): the head applied to every residual stream. The last row is the model's output.
    logp = F.log_softmax(logits.detach(), dim=-1)
    following = torch.tensor([*ids[1:], int(logits[-1].argmax())])  # the last position has no true next token
    places = torch.arange(T)
    n_top, lens = min(10, c.vocab_size), {"lens_ids": [], "lens_p": [], "lens_true": []}
    with torch.no_grad():
        for stream in streams:
            row = F.softmax(model.logits(transformer.ln_f(stream))[0], dim=-1)
            top = row.topk(n_top, dim=-1)
            lens["lens_ids"].append(top.indices)
            lens["lens_p"].append(top.values)
            lens["lens_true"].append(row[places, following])
    lens = {name: torch.stack(rows) for name, rows in lens.items()}
    surprisal = -logp[places, following][:-1]  # of tokens 1 .. T-1, in nats
    rank = (logp > logp[places, following].unsqueeze(1)).sum(dim=-1)[:-1] + 1
    entropy = -(logp.exp() * logp.clamp(min=-1e30)).sum(dim=-1)

    weights = torch.stack([layer["weights"][0] for layer in trace]).detach()  # (L, H, T, T)
    scores = head_scores(weights) | {"induction": induction_scores(model, ids)}
    chosen = choose_heads(scores, T, c, options.heads)
    detail = {name: [] for name in "qkv"}
    for layer, head in chosen:
        group = c.n_head // c.n_kv_head  # query heads that share one key/value head
        for name in "qkv":
            detail[name].append(trace[layer][name][0, head if name == "q" else head // group].detach())
    lower = torch.ones(T, T, dtype=torch.bool).tril()
    maps = (255 * weights[:, :, lower]).round().to(torch.uint8)  # row by row, what may not be seen left out
    mean_weights = weights.mean(dim=(0, 1))

    new_ids, new_p, new_top, reason = write_on(model, tokenizer, ids, options)
    influence, first_left_out = leave_one_out(model, ids, logp, following, options.leave_out)
    last = logits[-1].detach()
    top = last.topk(min(1000, c.vocab_size))
    tail = last.clone()
    tail[top.indices] = float("-inf")
    tail = tail[tail > float("-inf")].double()
    edges = torch.linspace(float(tail.min()), float(tail.max()) + 1e-6, 33, dtype=torch.float64) if len(tail) else []
    bins = [tail[(tail >= a) & (tail < b)] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    bins = [(len(x), float(x.logsumexp(0)) - float(np.log(len(x)))) for x in bins if len(x)]

    nearest_ids, nearest_cosine = nearest_embeddings(model, list(dict.fromkeys(ids)))
    picture = positions(model, T)
    used = [
        idx[0],
        lens["lens_ids"].flatten(),
        top.indices,
        torch.tensor(new_ids, dtype=torch.long),
        new_top[0].flatten(),
    ]
    shown = torch.cat([*used, nearest_ids.flatten()]).unique()
    at = {token: i for i, token in enumerate(shown.tolist())}
    kind = np.uint16 if len(shown) < 65536 else np.uint32

    def index(values) -> np.ndarray:
        return np.vectorize(at.get, otypes=[kind])(np.asarray(values)) if np.size(values) else np.zeros(0, kind)

    def half(values) -> np.ndarray:
        return np.asarray(values, np.float32).astype(np.float16)

    n_bytes = sum(len(tokenizer.token_bytes(i)) for i in ids)
    nats = float(surprisal.double().sum())
    return {
        "tokens": [visible(tokenizer, i) for i in shown.tolist()], "config": vars(c), "first_left_out": first_left_out,
        "nats": nats, "bits_per_byte": nats / np.log(2) / n_bytes if n_bytes else None, "bytes": n_bytes,
        "chosen": chosen, "scores": {name: [[rounded(x) for x in row] for row in v] for name, v in scores.items()},
        "idle": [rounded(x) for x in idle], "tail": bins, "stopped": reason, "position_about": picture[0],
        "temperature": options.temperature, "new_p": [rounded(p) for p in new_p],
        "ids": index(ids), "surprisal": surprisal.numpy(), "rank": rank.numpy().astype(np.uint32),
        "entropy": half(entropy), "maps": maps.numpy(), "mean_weights": half(mean_weights), "lens_ids": index(lens["lens_ids"]),
        "lens_p": half(lens["lens_p"]), "lens_true": half(lens["lens_true"]), "norms": half(norms),
        "gradients": gradients.numpy(), "logit_ids": index(top.indices), "logits": top.values.numpy(),
        "new_ids": index(new_ids), "new_top_ids": index(new_top[0]), "new_top_p": half(new_top[1]),
        "influence": half(influence), "near_ids": index(nearest_ids), "near_cosine": half(nearest_cosine),
        **{name: half(torch.stack(rows)) for name, rows in detail.items()}, **picture[1],
    }  # fmt: skip


def visible(tokenizer, token: int) -> str:
    """A token's text; bytes that are no whole character as <hex>, and special tokens by name."""
    piece = tokenizer.token_bytes(token)
    if not piece:
        return next((text for text, i in tokenizer.specials.items() if i == token), f"<{token}>")
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02x}>" for byte in piece)


def head_scores(weights) -> dict:
    """Five numbers a head, each (L, H), as means over the rows of its map; weights (L, H, T, T)."""
    import torch

    T = weights.shape[-1]
    place = torch.arange(T, dtype=weights.dtype)
    back = place.unsqueeze(1) - place  # how far each key lies behind each query
    rows = max(1, T - 1)  # the first row has no choice
    return {
        "entropy": (-(weights * weights.clamp(min=1e-12).log2()).sum(-1)[..., 1:].sum(-1) / rows).tolist(),  # bits
        "distance": ((weights * back).sum(-1)[..., 1:].sum(-1) / rows).tolist(),  # tokens
        "previous": (weights.diagonal(-1, -2, -1).sum(-1) / rows).tolist() if T > 1 else weights[..., 0, 0].tolist(),
        "first": (weights[..., 1:, 0].sum(-1) / rows).tolist(),
    }


def induction_scores(model, ids: list[int]) -> list[list[float]]:
    """(L, H): in a text that is read twice, how much attention goes from the second copy of a token to what followed
    its first copy (Olsson et al. 2022, arXiv 2209.11895)."""
    import torch

    text = ids[1:][: min(64, (model.config.block_size - 1) // 2)]
    if len(text) < 2:
        return [[0.0] * model.config.n_head for _ in range(model.config.n_layer)]
    trace = []
    with torch.no_grad():
        model.features(torch.tensor([[ids[0], *text, *text]]), trace=trace)
    n = len(text)
    weights = torch.stack([layer["weights"][0, :, n + 1 :, 2 : n + 2] for layer in trace])  # queries: the second copy
    return weights[..., :n, :].diagonal(0, -2, -1)[..., : n - 1].mean(-1).tolist()


def choose_heads(scores: dict, T: int, c, wanted: list[str]) -> list[tuple[int, int]]:
    """The heads whose q, k and v the page holds: those wanted, or all if they are small, or the strongest by each
    score in turn until they fill 350 kB."""
    names = [f"{layer}.{head}" for layer in range(c.n_layer) for head in range(c.n_head)]
    for name in wanted:
        if name not in names:
            raise ValueError(f"heads: {name!r} is not one of 0.0 to {names[-1]} (LAYER.HEAD)")
    if wanted:
        return sorted({tuple(map(int, name.split("."))) for name in wanted})
    most = max(1, 350_000 // (3 * 2 * T * c.head_dim))
    flat = {name: np.array(values).ravel() * (-1 if name == "entropy" else 1) for name, values in scores.items()}
    orders = [np.argsort(-values, kind="stable") for values in flat.values()]
    mixed = dict.fromkeys(int(order[i]) for i in range(len(names)) for order in orders)
    return sorted(divmod(head, c.n_head) for head in list(mixed)[:most])


def write_on(model, tokenizer, ids: list[int], options: ModelOptions):
    """What the model writes behind ids: (new ids, their probabilities, (ids, probabilities) of the likeliest ten at
    each step, why it stopped), all at temperature 1."""
    import torch

    from sample import generate

    room = model.config.block_size - len(ids) + 1  # the last token written need not be read
    n = min(options.max_new_tokens, room)
    stops = (tokenizer.eot_id,)
    steps = generate(model, ids, 1, n, options.temperature, 0, seed=options.seed, stop_ids=stops) if n else []
    new = [row[0] for row in steps]
    reason = f"the length asked for (max_new_tokens={n})" if n < room else "the context is full (block_size)"
    if new and new[-1] in stops:
        reason = "the end-of-text token came"
    with torch.no_grad():
        p = model(torch.tensor([[*ids, *new[:-1]]]))[0, len(ids) - 1 :][: len(new)].softmax(dim=-1)
    top = p.topk(min(10, p.shape[-1]), dim=-1)
    return new, p[torch.arange(len(new)), new].tolist(), (top.indices, top.values), reason


def leave_one_out(model, ids: list[int], logp, following, wanted: int):
    """((T, T) effects, the first token that was left out): effect [i, p] is how many nats likelier `following[p]`, as
    foretold at position p, is with token i than without it; nan where it was not computed.

    Later tokens move up by one place when i is gone. The keys and values before i are read once and kept.
    """
    import torch
    from torch.nn import functional as F

    from model import KVCache

    T, places = len(ids), torch.arange(len(ids))
    effects = torch.full((T, T), float("nan"))
    cost = model.flops_per_token(T, training=False)
    affordable = max(1, int((2 * 3e11 / cost) ** 0.5))  # n tokens left out are n * n / 2 tokens read: a few seconds
    begin = max(1, T - (wanted or affordable))  # text without its beginning has no first prediction: 0 stays
    base = logp[places, following]
    cache = KVCache(model.config, 1, T)
    with torch.no_grad():
        model.features(torch.tensor([ids]), cache)
        for i in range(T - 1, begin - 1, -1):
            cache.pos = i  # what was before i is still there
            effects[i, i] = base[i] - logp[i - 1, following[i]]
            if i < T - 1:
                without = F.log_softmax(model.logits(model.features(torch.tensor([ids[i + 1 :]]), cache))[0], dim=-1)
                effects[i, i + 1 :] = base[i + 1 :] - without[torch.arange(T - 1 - i), following[i + 1 :]]
    return effects, begin


def nearest_embeddings(model, ids: list[int], n: int = 5):
    """(ids, cosines), each (len(ids), n): the tokens whose embeddings point in the most similar directions."""
    from torch.nn import functional as F

    table = F.normalize(model.transformer.wte.weight.detach()[: model.config.vocab_size].float(), dim=-1)
    top = (table[ids] @ table.T).topk(min(n + 1, len(table)), dim=-1)  # the first is the token itself
    return top.indices[:, 1:], top.values[:, 1:]


def positions(model, T: int) -> tuple[dict, dict]:
    """How the model tells places apart: (JSON values, arrays `position_picture` (places, features) in 0..255 and
    `position_similarity` (places, places) as cosines)."""
    import torch
    from torch.nn import functional as F

    c = model.config
    about = {"kind": c.position}
    if c.position == "none":
        return about, {}
    n = min(c.block_size, max(64, T))
    places = torch.linspace(0, n - 1, min(n, 96)).round().long()
    if c.position == "rope":
        picture = model.table[0, places, 0].float()  # cosines of the angles, (places, hd / 2)
        turned = torch.cat((model.table[0, places, 0], model.table[1, places, 0]), dim=-1).float()
        frequency = c.rope_theta ** -(torch.arange(0, c.head_dim, 2) / c.head_dim)
        about["wavelengths"] = [rounded(x) for x in (2 * np.pi / frequency.double()).tolist()]  # tokens per full turn
    else:
        turned = (model.transformer.wpe.weight if c.position == "learned" else model.table).detach()[places].float()
        features = torch.linspace(0, c.n_embd - 1, min(c.n_embd, 160)).round().long()
        picture = turned[:, features]
    turned = F.normalize(turned, dim=-1)
    picture = 127.5 * (1 + picture / picture.abs().max().clamp(min=1e-9))
    about["places"] = places.tolist()
    similarity = (turned @ turned.T).numpy().astype(np.float16)
    return about, {"position_picture": picture.round().byte().numpy(), "position_similarity": similarity}


def parts(model) -> tuple[list[dict], int]:
    """The drawing of the network: its parts from bottom to top, with real sizes and numbers of parameters."""
    c, t = model.config, model.transformer

    def count(*modules) -> int:
        return sum(p.numel() for m in modules if m is not None for p in m.parameters())

    block, attention = t.h[0], t.h[0].attn
    keys = f"{c.n_kv_head} key/value heads" if c.n_kv_head != c.n_head else f"{c.n_head} key and value heads"
    norm = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[c.norm] + (", learned gains" if c.norm_weight else "")
    place = {"rope": f"rotary, in attention (theta {c.rope_theta:g})", "learned": f"learned, {c.block_size} x {c.n_embd}, added",
             "sinusoidal": "sinusoidal, fixed, added", "none": "none"}[c.position]  # fmt: skip
    head = "the embedding table again" if c.tie_weights else f"{c.n_embd} -> {c.vocab_size:,}"
    hidden = f"{c.n_embd} -> {c.n_hidden}{' x 2 (gate and value)' if c.activation == 'swiglu' else ''} -> {c.n_embd}"
    qkv = f"{c.n_embd} -> {attention.c_attn.out_features}"
    return [
        {"name": "Token embedding", "what": f"{c.vocab_size:,} x {c.n_embd}", "n": count(t.wte)},
        {"name": "Positions", "what": place, "n": t.wpe.weight.numel() if c.position == "learned" else 0},
        {"name": "Block", "what": f"x {c.n_layer}", "n": count(*t.h), "inner": [
            {"name": "Norm", "what": norm, "n": count(block.ln_1)},
            {"name": "Attention", "what": f"queries, keys, values {qkv}: {c.n_head} query heads, {keys} of {c.head_dim}"
             + (", normed" if c.qk_norm else "") + f"; joined side by side and projected to {c.n_embd}",
             "n": count(attention)},
            {"name": "Norm", "what": norm, "n": count(block.ln_2)},
            {"name": "MLP", "what": f"{hidden}, {c.activation}", "n": count(block.mlp)}]},
        {"name": "Norm", "what": norm, "n": count(t.ln_f)},
        {"name": "Head", "what": head + (f", capped at {c.logit_softcap:g}" if c.logit_softcap else ""),
         "n": count(model.lm_head)},
    ], count(model)  # fmt: skip


def model_page(model, tokenizer, name: str, about: dict, options: ModelOptions) -> str:
    """The page of a model reading options.prompt. Raises ValueError for a prompt too long or a page too large."""
    ids = [tokenizer.eot_id, *tokenizer.encode(options.prompt)]
    data = look_inside(model, tokenizer, ids, options)
    rows = [
        {"text": data["tokens"][token], "bits": float(data["surprisal"][i - 1]) / np.log(2) if i else None}
        for i, token in enumerate(data["ids"].tolist())
    ]
    drawing, n_params = parts(model)
    return render(
        "model", ("common.js", "model.js"), ("style.css",), data, options.max_mb,
        "shorten --prompt, name fewer --heads, or raise --max_mb", name=name, about=about, prompt=options.prompt,
        rows=rows, drawing=drawing, n_params=n_params, config=vars(model.config), nats=data["nats"],
        bits_per_byte=data["bits_per_byte"], stopped=data["stopped"],
    )  # fmt: skip


def load(options: ModelOptions):
    """(model, tokenizer, its name, what is known of it, the folder for its page)."""
    if options.model:
        import huggingface

        model, tokenizer = huggingface.load(options.model)
        return model, tokenizer, options.model, {"imported from": options.model}, Path(".")
    import checkpoint
    from tokenizer import load_tokenizer

    path = checkpoint.find_checkpoint(options.out_dir)
    state = checkpoint.read_state(path)
    about = {
        "checkpoint": path, "step": f"{state['step']:,}", "validation loss": state.get("val_loss"),
        "dataset": state["dataset"]["path"], "tokenizer": state["tokenizer"]["name"],
    }  # fmt: skip
    folder = Path(options.out_dir)
    return checkpoint.load_model(path), load_tokenizer(path), folder.name, about, folder


def main(argv: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(options, RunOptions):
        page = run_page(options.runs, options.max_mb)
        path = Path(options.out or (Path(options.runs[0]) / "report.html" if len(options.runs) == 1 else "runs.html"))
    else:
        model, tokenizer, name, about, folder = load(options)
        page = model_page(model, tokenizer, name, about, options)
        path = Path(options.out or folder / "model.html")
    write(path, page)
    print(path)
    return 0


if __name__ == "__main__":
    config.run(main)
