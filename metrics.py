"""What a run reports: metrics.jsonl, lines or a progress bar on stderr, and mirrors in wandb and TensorBoard.

A row is a flat dict. Training rows: step, tokens, loss, lr, grad_norm, tokens_per_second, elapsed (and mfu where the
device's peak is known); evaluation rows: step, val_loss, val_bits_per_byte, elapsed, and of eval_tasks TASK/acc and the
like. `elapsed` is in seconds since the process began, `tokens` since step 0, `memory` the most bytes held so far,
`skipped` (once there are any) the steps left out. metrics.jsonl is the source of truth. starts.jsonl beside it tells
how each process of the run was called.
"""

import html
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def _kind(row):
    return "eval" if "val_loss" in row else "train"


def read_lines(path):
    """The JSON objects of a file that may be missing, or half-written when the power went."""
    rows = []
    for line in Path(path).read_bytes().splitlines() if Path(path).exists() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _read_rows(path):
    """{(kind, step): row} of a metrics file in order; the last row of a step stands."""
    return {(_kind(row), row["step"]): row for row in read_lines(path) if isinstance(row.get("step"), int)}


def read_metrics(path):
    """(training rows, evaluation rows) of a metrics.jsonl, also of one that is being written, or not there yet.

    Numbers that were not finite are None."""
    rows = _read_rows(path)
    return tuple([row for (kind, _), row in rows.items() if kind == wanted] for wanted in ("train", "eval"))


class MetricsLog:
    """Appends rows to metrics.jsonl so that each step stands there once per kind, also after crashes and resumes.

    A run that continues after step `resume_step` drops the later rows of its past life; one from scratch (0) drops
    them all. Rows are flushed one by one: a killed process loses none, a machine that loses power the last ones."""

    def __init__(self, path, resume_step=0):
        self.path = Path(path)
        rows = _read_rows(self.path) if resume_step else {}
        rows = {key: row for key, row in rows.items() if row["step"] <= resume_step}
        self.written = set(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(map(_json_line, rows.values()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.file = open(self.path, "a", encoding="utf-8", newline="\n")

    def log(self, row):
        """Append one row, unless its step is already there: resuming at an evaluated step may evaluate it again."""
        key = (_kind(row), row["step"])
        if key not in self.written:
            self.written.add(key)
            self.file.write(_json_line(row))
            self.file.flush()

    def close(self):
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _json_line(row):
    """One line of JSON; nan and inf, which JSON does not have, become null."""
    row = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}  # numpy, torch
    row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return json.dumps(row, allow_nan=False) + "\n"


def log_start(path, step, device, processes, versions, **more):
    """Append to starts.jsonl what repeats this process: its step, command, machine, versions and commit.

    The lines of a run from scratch (step 0) replace those that are there."""
    launcher = f"torchrun --nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', 1)}" if processes > 1 else "python"
    row = {
        "step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": f"{launcher} {shlex.join(sys.argv)}", "device": device if device != "cpu" else cpu_name(),
        "processes": processes, "commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions, "system": platform.platform(terse=True)}, **more,
    }  # fmt: skip
    with open(path, "a" if step else "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(row) + "\n")


def cpu_name():
    """The processor's name and how many cores this process may use."""
    try:
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or a processor that does not say
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name.strip()}, {cores} cores"


def git_commit():
    """The commit that this code is, with + behind it if files differ from it; None where git cannot tell."""
    command = "git describe --always --abbrev=12 --exclude=* --dirty=+".split()
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def keep_samples(path, step):
    """Drop the lines of samples.jsonl of steps that a run at `step` will reach again."""
    rows = read_lines(path) if step else []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step), encoding="utf-8")


def resume_command(settings, more=""):
    """What to type to go on with a run."""
    return f"python train.py {shlex.quote(settings.out_dir)}/settings.toml --init_from=resume{more}"


def farewell(settings, evaluation, seconds):
    """The last samples in full, what came out, and what to type next."""
    step, bits = evaluation["step"], evaluation["val_bits_per_byte"]
    bits = "" if bits is None else f", {bits:.4f} bits per byte"
    where, prompt = shlex.quote(settings.out_dir), shlex.quote(settings.sample_prompt or "The ")
    rows = [row for row in read_lines(Path(settings.out_dir) / "samples.jsonl") if row["step"] == step]
    parts = [f"--- sample {row['sample'] + 1} of {len(rows)}\n{row['prompt']}{row['text']}".rstrip() for row in rows]
    parts += [
        f"---\ndone: validation loss {evaluation['val_loss']:.4f}{bits} at step {step}, {seconds:.0f} s; "
        f"all of it is in {settings.out_dir}\nnext:",
        f"  python sample.py --out_dir={where} --num_samples=3 --prompt={prompt}",
        f"  python evaluate.py --out_dir={where}",
        f"  {resume_command(settings, f' --max_steps={2 * step}')}",
    ]
    return "\n".join(parts)


def train_line(row, max_steps):
    """A training row for people; time per step and time left follow from the row itself."""
    width = len(str(max_steps))
    parts = [f"step {row['step']:>{width}}/{max_steps}", f"loss {row['loss']:.4f}"]
    parts += [f"lr {row['lr']:.2e}", f"grad {row['grad_norm']:.2f}", f"{row['tokens_per_second']:,.0f} tok/s"]
    seconds = row["tokens"] / row["step"] / row["tokens_per_second"]  # per step
    parts.append(f"{1000 * seconds:,.{0 if seconds >= 0.1 else 1}f} ms")
    if "mfu" in row:
        parts.append(f"mfu {row['mfu']:.1%}")
    return " | ".join([*parts, f"eta {_duration((max_steps - row['step']) * seconds)}"])


def eval_line(row, max_steps):
    """An evaluation row for people."""
    parts = [f"step {row['step']:>{len(str(max_steps))}}/{max_steps}", f"val loss {row['val_loss']:.4f}"]
    if row["val_bits_per_byte"] is not None:
        parts.append(f"{row['val_bits_per_byte']:.4f} bits per byte")
    parts += [f"{name} {value:.4f}" for name, value in row.items() if "/" in name]  # scores in tasks
    return " | ".join([*parts, f"{_duration(row['elapsed'])} elapsed"])


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _is_terminal(stream):
    dumb = os.environ.get("TERM") == "dumb" or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return stream.isatty() and not dumb


def with_bar(items, what, total, enabled=True):
    """`items` again; while they are worked through, stderr shows a bar if it is a terminal."""
    if not (enabled and _is_terminal(sys.stderr)):
        return items
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True)


class Progress:
    """A run as seen on stderr: a bar on a terminal, plain lines in a pipe, nothing unless `enabled` (ranks > 0).

    with Progress(max_steps, start) as progress:
        progress.step(k)         # k updates are done
        progress.train(row)      # the bar's figures, or a line
        progress.evaluation(row)
        progress.print(text)     # a line that leaves the bar whole
    """

    def __init__(self, max_steps, start=0, enabled=True):
        self.max_steps, self.start, self.enabled, self.bar = max_steps, start, enabled, None
        self.on_terminal = enabled and _is_terminal(sys.stderr)

    def step(self, step):
        if self.on_terminal:
            if self.bar is None:  # from the first step on: what is printed before it needs no bar
                from tqdm import tqdm

                self.bar = tqdm(total=self.max_steps, initial=self.start, unit="step", dynamic_ncols=True)
            self.bar.update(step - self.bar.n)

    def train(self, row):
        if self.bar is None:
            self.print(train_line(row, self.max_steps))
        else:
            mfu = f", mfu {row['mfu']:.1%}" if "mfu" in row else ""
            text = f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tok/s{mfu}"
            self.bar.set_postfix_str(text, refresh=False)

    def evaluation(self, row):
        self.print(eval_line(row, self.max_steps))

    def print(self, text):
        if self.on_terminal:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)  # above whichever bar there is
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()


class Mirrors:
    """Copies of the metrics in wandb and TensorBoard, where the settings ask for them; made on rank 0 only.

    `settings` is a dataclass instance with out_dir, wandb_log, wandb_project, wandb_run_name and tensorboard_log. A
    resumed run passes the `run_id` of its past life and continues its curves. A mirror that fails says so once through
    `say` and is off from then on: no trouble with a tracker ends a training run."""

    def __init__(self, settings, run_id, resume_step=0, say=lambda text: print(text, file=sys.stderr)):
        self.say, self.open = say, {}  # name -> (log a row, close)
        for name, wanted, start in (
            ("wandb", settings.wandb_log, _start_wandb),
            ("tensorboard", settings.tensorboard_log, _start_tensorboard),
        ):
            if wanted and (mirror := self._attempt(name, start, settings, run_id, resume_step, say)):
                self.open[name] = mirror

    def log(self, row):
        """Copy a row: its numbers, texts (str) and, where the tracker can show one, pages (Path of an HTML file)."""
        values = {key: value for key, value in row.items() if key != "step" and value is not None}
        for name, (log, _) in list(self.open.items()):
            self._attempt(name, log, values, row["step"])

    def close(self):
        for name, (_, close) in list(self.open.items()):
            self._attempt(name, close)
        self.open = {}

    def _attempt(self, name, action, *arguments):
        try:
            return action(*arguments)
        except Exception as error:  # a tracker can fail in any way
            self.open.pop(name, None)
            fix = f"; pip install {name}" if isinstance(error, ImportError) else ""
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"{name} is off, training goes on: {reason}{fix}")


def _start_wandb(settings, run_id, resume_step, say):
    import wandb

    wanted = {"project": settings.wandb_project, "name": settings.wandb_run_name or Path(settings.out_dir).name}
    wanted |= {"id": run_id, "resume": "allow", "config": vars(settings), "dir": settings.out_dir}
    try:
        run = wandb.init(**wanted, settings=wandb.Settings(init_timeout=30))  # seconds
    except wandb.errors.Error as error:  # no key and no terminal to ask for one, or no way to the server
        say(f"wandb: this run is kept offline, `wandb sync` sends it later: {' '.join(str(error).split())}")
        wandb.teardown()  # or the id counts as taken by the attempt that failed
        run = wandb.init(**wanted, mode="offline")

    def shown(value):
        page = value.read_text(encoding="utf-8") if isinstance(value, Path) else None
        page = f"<pre>{html.escape(value)}</pre>" if isinstance(value, str) else page
        return value if page is None else wandb.Html(page, inject=False)

    def attempt(action, *arguments, **named):
        try:
            action(*arguments, **named)
        except Exception:
            with suppress(Exception):
                wandb.teardown()  # or its lost process raises once more when ours ends
            raise

    def log(values, step):
        attempt(run.log, {name: shown(value) for name, value in values.items()}, step=step)

    return log, lambda: attempt(run.finish)


def _start_tensorboard(settings, run_id, resume_step, say):
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides what a past life wrote after the step that this one continues from
    writer = SummaryWriter(Path(settings.out_dir) / "tensorboard", purge_step=resume_step + 1 if resume_step else 0)

    def log(values, step):
        for name, value in values.items():
            if isinstance(value, str):
                writer.add_text(name, f"    {value}".replace("\n", "\n    "), step)  # Markdown's way to leave it alone
            elif not isinstance(value, Path):
                writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close
