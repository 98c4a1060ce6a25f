"""Options of the two pages, which visualize.py takes from its command line."""

from dataclasses import dataclass, field

from lathe import hints
from lathe.commands import command_line
from lathe.fields import PathName


@dataclass
class RunOptions:
    """Which runs to show."""

    runs: list[PathName] = field(default_factory=list)  # folders of runs, to be overlaid
    # page to write; empty = report.html in the run's folder, runs.html for several
    out: PathName = ""
    max_mb: float = 5.0  # largest page, in MB

    def __post_init__(self):
        if not self.runs:
            raise ValueError(f"which runs? {command_line('visualize.py', 'run', 'RUN')} [RUN ...]")


@dataclass
class ModelOptions:
    """Which model to look into, with which text."""

    out_dir: PathName = "out/quickstart"  # a run's folder (its best checkpoint), or a checkpoint's
    model: PathName = ""  # instead of out_dir: hf:NAME_OR_FOLDER, a Hugging Face model
    prompt: str = "Jane visits Africa in September."  # text to look at
    out: PathName = ""  # page to write; empty = model.html in the run's folder, or here for hf:
    heads: list[str] = field(default_factory=list)  # LAYER.HEAD ... to show; empty = the strongest
    max_new_tokens: int = 30  # length of the text that the model writes after the prompt
    temperature: float = 0.8  # of that text
    seed: int = 1337  # of that text
    leave_out: int = 0  # leave out this many tokens, from the last, one by one; 0 = some seconds
    max_mb: float = 2.5  # largest page, in MB

    def __post_init__(self):
        for name in ("max_new_tokens", "temperature", "leave_out"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} is {value}: it must be 0 or more")
        if self.model and self.out_dir != ModelOptions.out_dir:
            raise ValueError(f"model is {self.model} and out_dir {self.out_dir}: choose one")
        if self.model and not self.model.startswith("hf:"):
            raise ValueError(f"model is {self.model!r}: {hints.instead_of_hf(self.model)}")
