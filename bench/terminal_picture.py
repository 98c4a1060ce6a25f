"""Draw docs/terminal.svg: what a terminal shows in the first minute of `make run` on a fresh clone.

    make install && python bench/terminal_picture.py [--seconds=60] [COMMAND ...]

The command runs in a terminal of its own; what its screen shows after so many seconds is drawn.
"""

import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.screen import Screen, seen_on_terminal
from lathe import ROOT, cli
from lathe.fields import PathName

STYLE = (
    "<style>"
    "text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
    "fill:#d6deeb;white-space:pre}"
    ".typed{fill:#7ee787}"
    ".bar{fill:#79c0ff}"
    "</style>"
)
CHARACTER = 7.8  # width
LINE = 18  # height
MARGIN = 16


@dataclass
class Options:
    """What to run and draw."""

    command: list[str] = field(default_factory=list)  # what is typed; empty = make run
    seconds: float = 60.0  # after which the screen is drawn
    columns: int = 100  # of the terminal
    out: PathName = str(ROOT / "docs" / "terminal.svg")  # file for the picture


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(
        Options, argv, prog="bench/terminal_picture.py", description=__doc__, positional="command"
    )
    words = options.command or ["make", "run"]
    _, written = seen_on_terminal(words, options.columns, seconds=options.seconds)
    screen = Screen(options.columns)
    screen.feed(written)
    picture = draw([f"$ {' '.join(words)}", *screen.text()], options.columns)
    Path(options.out).write_text(picture, encoding="utf-8")
    print(f"{options.out}: {len(picture) / 1000:.0f} kB, {len(screen.text())} lines")
    return 0


def draw(lines: list[str], columns: int) -> str:
    """A dark window with these lines, each as wide as its characters whatever the font."""
    width = round(2 * MARGIN + columns * CHARACTER)
    height = 2 * MARGIN + len(lines) * LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        STYLE,
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
    ]
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        kind = ""
        if line.startswith("$ "):
            kind = ' class="typed"'
        elif line.startswith("loss "):
            kind = ' class="bar"'
        indent = len(line) - len(line.lstrip())
        x = MARGIN + indent * CHARACTER
        y = MARGIN + (i + 0.75) * LINE
        length = len(line.strip()) * CHARACTER
        place = f'x="{x:.1f}" y="{y:.1f}" textLength="{length:.1f}"'
        parts.append(f"<text{kind} {place}>{escape(line.strip())}</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    cli.run(main)
