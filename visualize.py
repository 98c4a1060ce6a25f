"""Two pages that open offline from disk: what a run did, and what a model does inside for a given text.

    python visualize.py run RUN [RUN ...] [--out=FILE]
    python visualize.py model --out_dir=RUN [--prompt=TEXT] [--out=FILE]

Each page is one HTML file that holds its own data and scripts (pages/ has their sources) and loads nothing: a
content-security policy forbids it. The same input gives the same bytes. A run's page is also written by train.py.
"""

import sys
from dataclasses import dataclass, field

from lathe import cli
from pages.model_page import ModelOptions


@dataclass
class RunOptions:
    """Which runs to show."""

    runs: list[str] = field(default_factory=list)  # folders of runs, to be overlaid
    out: str = ""  # page to write; empty = report.html in the run's folder, runs.html here for several runs
    max_mb: float = 5.0  # largest page, in MB

    def __post_init__(self):
        if not self.runs:
            raise ValueError("which runs? python visualize.py run RUN [RUN ...]")


def parse(argv: list[str]) -> RunOptions | ModelOptions:
    """The options of the sub-command that argv begins with. Exits with 2 and one line for wrong use."""
    command, *rest = argv or [""]
    if command == "run":
        about = "Write a page about one run or several."
        return cli.parse(RunOptions, rest, prog="visualize.py run", description=about, positional="runs")
    if command == "model":
        about = "Write a page about what a model does inside for a text."
        return cli.parse(ModelOptions, rest, prog="visualize.py model", description=about)
    usage = "visualize.py run RUN [RUN ...] [--out=FILE] | visualize.py model --out_dir=RUN [--prompt=TEXT]"
    if command in ("-h", "--help"):
        print(f"usage: {usage}\n\nWrite a page about runs, or about a model. Each has its own --help.")
        sys.exit(0)
    print(f"visualize.py: error: {command or 'nothing'!r} is neither run nor model; usage: {usage}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    parse(sys.argv[1:])  # --help and mistakes are answered before anything slow is imported

from pathlib import Path

from pages.model_page import ModelOptions, model_page
from pages.render import write
from pages.run_page import run_page


def open_and_draw(options: ModelOptions) -> tuple[str, Path]:
    """The page of the model that the options name, and where it belongs."""
    from lathe.use.find_model import find_model

    source = find_model(options.model or options.out_dir)
    model = source.load().float()
    name, about, folder = options.model, {"imported": "from Hugging Face"}, Path(".")
    if not options.model:
        folder, state = Path(options.out_dir), source.state
        name, loss = folder.resolve().name, state.get("val_loss")
        about = {"step": f"{state['step']:,}", "validation loss": None if loss is None else f"{loss:.4f}"}
        about |= {"dataset": state["dataset"]["path"], "tokenizer": state["tokenizer"]["name"]}
    about["checkpoint"] = source.name
    page = model_page(model, source.tokenizer, name, about, options, source.begin, source.ends)
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
    cli.run(main)
