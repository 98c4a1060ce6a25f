"""What a run says at its end, and how to go on with it."""

import os
import shlex
from pathlib import Path
from typing import Any

from lathe import ROOT
from lathe.commands import command_line, from_here, python, torchrun
from lathe.run.metrics import read_lines
from lathe.settings import Settings


def resume_command(settings: Settings, *options: str) -> str:
    """What to type to go on with a run on as many processes."""
    preset = f"{settings.out_dir}/settings.toml"
    words = ["--init_from=resume", *options]
    script = from_here(ROOT / "train.py")
    return " ".join([_launcher(), *map(shlex.quote, [script, preset, *words])])


def _launcher() -> str:
    n = int(os.environ.get("WORLD_SIZE", 1))
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", n))
    if n == 1:
        return python()
    nodes = "--standalone" if of_node == n else f"--nnodes={n // of_node}"
    return f"{torchrun()} {nodes} --nproc-per-node={of_node}"


def farewell(settings: Settings, evaluation: dict[str, Any], seconds: float) -> str:
    """The last samples in full, what came out, and what to type next."""
    step = evaluation["step"]
    samples = []
    for row in read_lines(Path(settings.out_dir) / "samples.jsonl"):
        if row["step"] == step:
            samples.append(row)
    lines = []
    for row in samples:
        heading = f"--- sample {row['sample'] + 1} of {len(samples)}"
        lines.append(f"{heading}\n{row['prompt']}{row['text']}".rstrip())

    loss = f"validation loss {evaluation['val_loss']:.4f}"
    if evaluation["val_bits_per_byte"] is not None:
        loss += f", {evaluation['val_bits_per_byte']:.4f} bits per byte"
    out_dir = f"--out_dir={settings.out_dir}"
    prompt = [f"--prompt={settings.sample_prompt}"] if settings.sample_prompt else []
    longer = f"--max_steps={2 * step}"
    if settings.minutes:
        longer = f"--minutes={2 * settings.minutes:g}"
    lines += [
        "---",
        f"done: {loss} at step {step}, {seconds:.0f} s; all of it is in {settings.out_dir}",
        "next:",
        f"  {command_line('sample.py', out_dir, '--num_samples=3', *prompt)}",
        f"  {command_line('evaluate.py', out_dir)}",
        f"  {resume_command(settings, longer)}",
    ]
    return "\n".join(lines)
