"""Draw the README's pictures of a run: docs/curves.svg, its losses, and docs/heads.svg, what its attention heads read.

    python bench/pictures.py out/quickstart [--prompt=TEXT]

Vector graphics under 100 kB each; they follow the reader's light or dark scheme.
"""

import math
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from lathe import cli
from pages.options import ModelOptions
from pages.run_page import read_run

STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#57606a}.grid{stroke:#8b949e;stroke-opacity:.25}"
    ".train{stroke:#0b7fd4;stroke-width:1.2}.val{stroke:#e8590c;stroke-width:2.5}path{fill:none}.key{font-size:13px}"
    "@media(prefers-color-scheme:dark){text{fill:#9aa5b1}}</style>"
)
VIRIDIS = ["#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"]


@dataclass
class Options:
    run: list[str] = field(default_factory=list)  # folder of the run
    prompt: str = ModelOptions.prompt  # text that the heads read
    out: str = str(ROOT / "docs")  # folder for the pictures


def svg(width: int, height: int, *content: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, STYLE, *content, "</svg>"]) + "\n"


def curves(folder: str) -> str:
    """Training and validation loss against the step."""
    run = read_run(folder, most_points=400)
    train = [p for p in zip(run["curves"]["step"], run["curves"]["loss"], strict=True) if p[1] is not None]
    val = [p for p in zip(run["evaluations"]["step"], run["evaluations"]["val_loss"], strict=True) if p[1] is not None]
    width, height, left, right, bottom = 760, 310, 46, 24, 44
    last, low, high = (f(p[i] for p in train + val) for f, i in ((max, 0), (min, 1), (max, 1)))
    step = 10 ** math.floor(math.log10((high - low) / 2 or 1))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step

    def x(step):
        return left + (width - left - right) * step / last

    def y(loss):
        return 12 + (height - bottom - 12) * (high - loss) / (high - low)

    def line(points, kind):
        return f'<path class="{kind}" d="M' + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points) + '"/>'

    ticks = []
    for value in np.arange(low, high + step / 2, step):
        ticks.append(f'<path class="grid" d="M{left} {y(value):.1f}H{width - right}"/>')
        ticks.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in np.linspace(0, last, 6):
        ticks.append(f'<text x="{x(value):.1f}" y="{height - 26}" text-anchor="middle">{value:,.0f}</text>')
    ticks.append(f'<text x="{left}" y="{height - 6}">optimizer steps</text>')
    key = (
        '<path class="train" d="M470 24h28"/><text class="key" x="506" y="28">training loss</text>'
        '<path class="val" d="M470 46h28"/><text class="key" x="506" y="50">'
        f"validation loss, {val[-1][1]:.3f} at the end</text>"
    )
    return svg(width, height, *ticks, line(train, "train"), line(val, "val"), key)


def heads(folder: str, prompt: str) -> str:
    """The attention maps of all heads on one text, named by what they do most."""
    from lathe.use.find_model import find_model
    from pages.inside import look_inside

    options = ModelOptions(out_dir=folder, prompt=prompt, max_new_tokens=0, leave_out=1)
    source = find_model(folder)
    ids = source.encode(prompt)
    data = look_inside(source.load(), source.tokenizer, ids, options, source.ends)
    L, H, T = *data["maps"].shape[:2], len(ids)
    size, gap, top = 110, 14, 20
    strongest = {}
    for name in ("previous", "first", "induction", "distance"):
        layer, head = np.unravel_index(np.argmax(data["scores"][name]), (L, H))
        strongest.setdefault((int(layer), int(head)), name)
    words = {"previous": "previous token", "first": "first token", "distance": "farthest"}
    parts = []
    for layer in range(L):
        for head in range(H):
            levels = np.zeros((T, T), int)
            levels[np.tril_indices(T)] = 1 + np.minimum(7, np.sqrt(data["maps"][layer, head] / 255.0) * 8)
            paths = [""] * 9
            for i in range(T):  # runs of one colour in a row are one stroke
                j = 0
                while j <= i:
                    end = j
                    while end <= i and levels[i, end] == levels[i, j]:
                        end += 1
                    paths[levels[i, j]] += f"M{j} {i}.5h{end - j}"
                    j = end
            x, y = head * (size + gap), layer * (size + gap + top)
            what = words.get(name := strongest.get((layer, head), ""), name)
            parts.append(f'<text x="{x}" y="{y + 13}">{layer}.{head}{" " + what if what else ""}</text>')
            strokes = "".join(f'<path stroke="{VIRIDIS[k - 1]}" d="{paths[k]}"/>' for k in range(1, 9) if paths[k])
            place = f"translate({x} {y + top}) scale({size / T:.4f})"
            parts.append(f'<g transform="{place}" shape-rendering="crispEdges">{strokes}</g>')
    height = L * (size + gap + top)
    text = f'<text x="0" y="{height + 8}">rows read, columns are read; the text is "{escape(prompt)}"</text>'
    return svg(max(H * (size + gap), 480), height + 16, *parts, text)


def main(argv=None) -> int:
    options = cli.parse(Options, argv, prog="bench/pictures.py", description=__doc__, positional="run")
    if len(options.run) != 1:
        raise ValueError("run: give the folder of one run")
    for name, picture in (("curves", curves(*options.run)), ("heads", heads(*options.run, options.prompt))):
        path = Path(options.out) / f"{name}.svg"
        path.write_text(picture, encoding="utf-8")
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    cli.run(main)
