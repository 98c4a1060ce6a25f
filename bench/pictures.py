"""Draw the README's pictures of a run: docs/curves.svg, its losses, and docs/heads.svg, what its
attention heads read.

    python bench/pictures.py out/quickstart [--prompt=TEXT]

Vector graphics under 100 kB each; they follow the reader's light or dark scheme.
"""

import math
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lathe import ROOT, cli
from lathe.fields import PathName
from pages.options import ModelOptions
from pages.run_reader import RunReader

STYLE = (
    "<style>"
    "text{font:12px system-ui,sans-serif;fill:#57606a}"
    ".grid{stroke:#8b949e;stroke-opacity:.25}"
    ".train{stroke:#0b7fd4;stroke-width:1.2}"
    ".val{stroke:#e8590c;stroke-width:2.5}"
    "path{fill:none}"
    ".key{font-size:13px}"
    "@media(prefers-color-scheme:dark){text{fill:#9aa5b1}}"
    "</style>"
)
# From little attention to much; where there is none, nothing is drawn.
VIRIDIS = ("#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")


@dataclass
class Options:
    """What to draw."""

    run: list[PathName] = field(default_factory=list)  # folder of the run
    prompt: str = ModelOptions.prompt  # text that the heads read
    out: PathName = str(ROOT / "docs")  # folder for the pictures

    def __post_init__(self):
        if len(self.run) != 1:
            raise ValueError("run: give the folder of one run")


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(
        Options, argv, prog="bench/pictures.py", description=__doc__, positional="run"
    )
    (folder,) = options.run
    write(Path(options.out, "curves.svg"), draw_curves(folder))
    write(Path(options.out, "heads.svg"), draw_heads(folder, options.prompt))
    return 0


def write(path: Path, picture: str):
    path.write_text(picture, encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def svg(width: int, height: int, parts: list[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, STYLE, *parts, "</svg>"]) + "\n"


# -----------------------------------------------------------------------------
# Losses

WIDTH = 760
HEIGHT = 310
LEFT = 46  # margins
RIGHT = 24
TOP = 12
BOTTOM = 44


@dataclass
class Point:
    step: float
    loss: float


@dataclass
class Scale:
    """From steps and losses to places in the picture."""

    last_step: float
    lowest: float  # loss at the bottom, a multiple of tick
    highest: float  # loss at the top, a multiple of tick
    tick: float  # losses between two lines of the grid, a power of ten

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last_step

    def y(self, loss: float) -> float:
        share = (self.highest - loss) / (self.highest - self.lowest)
        return TOP + (HEIGHT - BOTTOM - TOP) * share


def draw_curves(folder: str) -> str:
    """Training and validation loss against the step."""
    run = RunReader(folder, most_points=400).read()
    train = points(run["curves"]["step"], run["curves"]["loss"])
    val = points(run["evaluations"]["step"], run["evaluations"]["val_loss"])
    scale = scale_around(train + val)
    key = (
        '<path class="train" d="M470 24h28"/>'
        '<text class="key" x="506" y="28">training loss</text>'
        '<path class="val" d="M470 46h28"/>'
        '<text class="key" x="506" y="50">'
        f"validation loss, {val[-1].loss:.3f} at the end</text>"
    )
    parts = [*axes(scale), line(train, "train", scale), line(val, "val", scale), key]
    return svg(WIDTH, HEIGHT, parts)


def points(steps: list, losses: list) -> list[Point]:
    """Without losses that were not finite."""
    pairs = zip(steps, losses, strict=True)
    return [Point(step, loss) for step, loss in pairs if loss is not None]


def scale_around(shown: list[Point]) -> Scale:
    lowest = min(point.loss for point in shown)
    highest = max(point.loss for point in shown)
    tick = 10 ** math.floor(math.log10((highest - lowest) / 2 or 1))
    return Scale(
        last_step=max(point.step for point in shown),
        lowest=math.floor(lowest / tick) * tick,
        highest=math.ceil(highest / tick) * tick,
        tick=tick,
    )


def axes(scale: Scale) -> list[str]:
    """The grid of losses and what stands beside and below it."""
    parts = []
    for loss in np.arange(scale.lowest, scale.highest + scale.tick / 2, scale.tick):
        y = scale.y(loss)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>')
    for step in np.linspace(0, scale.last_step, 6):
        x = scale.x(step)
        y = HEIGHT - 26
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{step:,.0f}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">optimizer steps</text>')
    return parts


def line(curve: list[Point], kind: str, scale: Scale) -> str:
    places = [f"{scale.x(point.step):.1f} {scale.y(point.loss):.1f}" for point in curve]
    return f'<path class="{kind}" d="M{"L".join(places)}"/>'


# -----------------------------------------------------------------------------
# Heads

MAP_SIZE = 110  # of one head
GAP = 14
TITLE_HEIGHT = 20
TITLES = {
    "previous": "previous token",
    "first": "first token",
    "induction": "induction",
    "distance": "farthest",
}


def draw_heads(folder: str, prompt: str) -> str:
    """The attention maps of all heads on one text, named by what they do most."""
    from lathe.use.find_model import find_model
    from pages.inside import look_inside

    options = ModelOptions(out_dir=folder, prompt=prompt, max_new_tokens=0, leave_out=1)
    source = find_model(folder)
    ids = source.encode(prompt)
    inside = look_inside(source.load(), source.tokenizer, ids, options, source.ends)
    n_layer, n_head = inside["maps"].shape[:2]
    titles = strongest_heads(inside["scores"], n_head)
    parts = []
    for layer in range(n_layer):
        for head in range(n_head):
            x = head * (MAP_SIZE + GAP)
            y = layer * (MAP_SIZE + GAP + TITLE_HEIGHT)
            title = f"{layer}.{head}"
            if (layer, head) in titles:
                title += " " + titles[layer, head]
            levels = map_levels(inside["maps"][layer, head], len(ids))
            parts.append(f'<text x="{x}" y="{y + 13}">{title}</text>')
            parts.append(draw_map(levels, x, y + TITLE_HEIGHT))
    height = n_layer * (MAP_SIZE + GAP + TITLE_HEIGHT)
    legend = f'rows read, columns are read; the text is "{escape(prompt)}"'
    parts.append(f'<text x="0" y="{height + 8}">{legend}</text>')
    return svg(max(n_head * (MAP_SIZE + GAP), 480), height + 16, parts)


def strongest_heads(scores: dict[str, list], n_head: int) -> dict[tuple[int, int], str]:
    """{(layer, head): the first of TITLES that it does more than all others}.

    scores: by what heads may do, (L, H).
    """
    titles = {}
    for name, title in TITLES.items():
        layer, head = divmod(int(np.argmax(scores[name])), n_head)
        titles.setdefault((layer, head), title)
    return titles


def map_levels(weights: np.ndarray, T: int) -> np.ndarray:
    """(T, T), 1 to 8 for how much row i attends to column j, 0 where it may not.

    weights: uint8 (T (T + 1) / 2), the lower triangle row by row, 255 for all of the attention.
    """
    levels = np.zeros((T, T), int)
    levels[np.tril_indices(T)] = 1 + np.minimum(7, np.sqrt(weights / 255.0) * 8)
    return levels


def draw_map(levels: np.ndarray, x: int, y: int) -> str:
    """A row's neighbours of one colour are one stroke, and a colour's strokes are one path."""
    T = len(levels)
    paths = {level: "" for level in range(1, 9)}
    for i in range(T):
        j = 0
        while j <= i:
            level = int(levels[i, j])
            end = j
            while end <= i and levels[i, end] == level:
                end += 1
            paths[level] += f"M{j} {i}.5h{end - j}"
            j = end
    strokes = [
        f'<path stroke="{VIRIDIS[level - 1]}" d="{path}"/>' for level, path in paths.items() if path
    ]
    place = f"translate({x} {y}) scale({MAP_SIZE / T:.4f})"
    return f'<g transform="{place}" shape-rendering="crispEdges">{"".join(strokes)}</g>'


if __name__ == "__main__":
    cli.run(main)
