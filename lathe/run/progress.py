"""Lines or a progress bar on stderr, and what is said at the end."""

import os
import shlex
import sys
from pathlib import Path

from lathe.run.metrics import read_lines


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
