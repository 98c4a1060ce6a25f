"""Two pages that open offline from disk: what a run did, and what a model does inside for a text.

    python visualize.py run RUN [RUN ...] [--out=FILE]
    python visualize.py model --out_dir=RUN [--prompt=TEXT] [--out=FILE]

Each page is one HTML file that holds its own data and scripts (pages/ has their sources) and loads
nothing: a content-security policy forbids it. The same input gives the same bytes. A run's page is
also written by train.py.
"""

import sys
from pathlib import Path

from lathe import cli, hints
from lathe.commands import command_line
from lathe.terminal import print_note, print_result
from pages.options import ModelOptions, RunOptions

USAGE = (
    "visualize.py run RUN [RUN ...] [--out=FILE] | "
    "visualize.py model --out_dir=RUN [--prompt=TEXT] [--out=FILE]"
)


def main(argv: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(options, RunOptions):
        path = draw_runs(options)
    else:
        path = draw_model(options)
    print_result(path)
    return 0


def parse(argv: list[str]) -> RunOptions | ModelOptions:
    """The options of the sub-command that argv begins with.

    Exits with 2 and one line for wrong use.
    """
    command = argv[0] if argv else ""
    if command == "run":
        return cli.parse(
            RunOptions,
            argv[1:],
            prog="visualize.py run",
            description="Write a page about one run or several.",
            positional="runs",
        )
    if command == "model":
        return cli.parse(
            ModelOptions,
            argv[1:],
            prog="visualize.py model",
            description="Write a page about what a model does inside for a text.",
        )
    if command in ("-h", "--help"):
        about = "Write a page about runs, or about a model. Each has its own --help."
        print_result(f"usage: {USAGE}\n\n{about}")
        sys.exit(0)
    given = repr(command or "nothing")
    advice = f"usage: {USAGE}"
    if hints.is_run(Path(command)):
        advice = f"did you mean {command_line('visualize.py', 'run', command)}?"
    print_note(f"visualize.py: error: {given} is neither run nor model; {advice}")
    sys.exit(2)


def draw_runs(options: RunOptions) -> Path:
    """Write the page of the runs that the options name; returns its path."""
    from pages.render import refuse_to_replace, write
    from pages.run_page import run_page

    path = Path("runs.html")
    if len(options.runs) == 1:
        path = Path(options.runs[0]) / "report.html"
    if options.out:
        path = Path(options.out)
    refuse_to_replace(path)
    write(path, run_page(options.runs, options.max_mb))
    return path


def draw_model(options: ModelOptions) -> Path:
    """Write the page of the model that the options name; returns its path."""
    from lathe.reading import reading
    from lathe.use.find_model import find_model
    from pages.model_page import model_page
    from pages.render import refuse_to_replace, write

    found = find_model(options.model or options.out_dir)
    folder = Path(".")
    if not options.model:
        folder = found.folder.parent if found.is_nanogpt else Path(options.out_dir)
    path = Path(options.out or folder / "model.html")
    refuse_to_replace(path)
    if options.model:
        name = options.model
        about = {"imported": "from Hugging Face"}
    elif found.is_nanogpt:
        name = str(found.folder)
        about = {"imported": "from nanoGPT"}
    else:
        name = folder.resolve().name
        with reading(found.folder, "is damaged: state.json"):
            val_loss = found.state.get("val_loss")
            about = {
                "step": f"{found.state['step']:,}",
                "validation loss": None if val_loss is None else f"{val_loss:.4f}",
                "dataset": found.state["dataset"]["path"],
                "tokenizer": found.state["tokenizer"]["name"],
            }
    about["checkpoint"] = found.name
    model = found.load().float()
    page = model_page(model, found.tokenizer, name, about, options, found.begin, found.ends)
    write(path, page)
    return path


if __name__ == "__main__":
    cli.run(main)
