"""Copies of the metrics in wandb and TensorBoard."""

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lathe.settings import Settings
from lathe.terminal import print_note


class Mirrors:
    """Copies of the metrics in the trackers that the settings ask for; made on rank 0 only.

    A resumed run passes the `run_id` of its past life and continues its curves. That a tracker
    fails is said once, through `say`, and it is off from then on: it does not end a training run.
    """

    def __init__(
        self,
        settings: Settings,
        run_id: str,
        resume_step: int = 0,
        say: Callable[[str], None] = print_note,
    ):
        self.say = say
        self.trackers: dict[str, Wandb | TensorBoard] = {}  # those that are on
        if settings.wandb_log:
            with self._off_if_it_fails("wandb"):
                self.trackers["wandb"] = Wandb(settings, run_id, say)
        if settings.tensorboard_log:
            with self._off_if_it_fails("tensorboard"):
                self.trackers["tensorboard"] = TensorBoard(settings.out_dir, resume_step)

    def log(self, row: dict[str, Any]):
        """Copy a row: its numbers, texts (str) and, where the tracker can show one, pages (Path of
        an HTML file)."""
        values = {name: value for name, value in row.items() if value is not None}
        step = values.pop("step")
        for name, tracker in list(self.trackers.items()):
            with self._off_if_it_fails(name):
                tracker.log(values, step)

    def close(self):
        for name, tracker in list(self.trackers.items()):
            with self._off_if_it_fails(name):
                tracker.close()
        self.trackers = {}

    @contextmanager
    def _off_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracker can fail in any way
            self.trackers.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            fix = f"; pip install {name}" if isinstance(error, ImportError) else ""
            self.say(f"{name} is off, training goes on: {reason}{fix}")


class Wandb:
    """A run in wandb; one without a key, or without a way to the server, is kept offline."""

    def __init__(self, settings: Settings, run_id: str, say: Callable[[str], None]):
        import wandb

        self.wandb = wandb
        options = {
            "project": settings.wandb_project,
            "name": settings.wandb_run_name or Path(settings.out_dir).name,
            "id": run_id,
            "resume": "allow",
            "config": vars(settings),
            "dir": settings.out_dir,
        }
        try:
            self.run = wandb.init(**options, settings=wandb.Settings(init_timeout=30))  # seconds
        except wandb.errors.Error as error:  # no key and no terminal to ask for one, or no network
            reason = " ".join(str(error).split())
            say(f"wandb: this run is kept offline, `wandb sync` sends it later: {reason}")
            wandb.teardown()  # or the id counts as taken by the attempt that failed
            self.run = wandb.init(**options, mode="offline")

    def log(self, values: dict[str, Any], step: int):
        shown = {name: self._as_wandb_shows(value) for name, value in values.items()}
        with self._torn_down_if_it_fails():
            self.run.log(shown, step=step)

    def close(self):
        with self._torn_down_if_it_fails():
            self.run.finish()

    def _as_wandb_shows(self, value: Any) -> Any:
        if isinstance(value, Path):
            page = value.read_text(encoding="utf-8")
        elif isinstance(value, str):
            page = f"<pre>{html.escape(value)}</pre>"
        else:
            return value
        return self.wandb.Html(page, inject=False)

    @contextmanager
    def _torn_down_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            with suppress(Exception):
                self.wandb.teardown()  # or its lost process raises once more when ours ends
            raise


class TensorBoard:
    """Event files in out_dir/tensorboard. Pages are left out: TensorBoard shows none."""

    def __init__(self, out_dir: str, resume_step: int):
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a past life wrote after the step that this one continues from.
        purge_step = resume_step + 1 if resume_step > 0 else 0
        self.writer = SummaryWriter(Path(out_dir) / "tensorboard", purge_step=purge_step)

    def log(self, values: dict[str, Any], step: int):
        for name, value in values.items():
            if isinstance(value, str):
                as_code = "    " + value.replace("\n", "\n    ")  # which Markdown leaves alone
                self.writer.add_text(name, as_code, step)
            elif not isinstance(value, Path):
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self):
        self.writer.close()
