"""Copies of the metrics in wandb and TensorBoard."""

import html
import sys
from contextlib import suppress
from pathlib import Path


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
