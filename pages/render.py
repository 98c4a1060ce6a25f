"""A page with its data, scripts and styles in one file."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np

PAGES = Path(__file__).parent


# The page itself


def pack(data: dict) -> str:
    """JSON values, to six digits, and arrays (top level only): base64 of gzip of [length of JSON, JSON, arrays]."""
    values, arrays, blob = {}, {}, b""
    for name, value in data.items():
        if isinstance(value, np.ndarray):
            arrays[name] = {"dtype": str(value.dtype), "shape": value.shape, "at": len(blob)}
            blob += value.tobytes() + bytes(-value.nbytes % 4)
        else:
            values[name] = value
    values = json.loads(json.dumps(values), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    text = json.dumps({**values, "arrays": arrays}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # a browser wants arrays at multiples of four
    return base64.b64encode(gzip.compress(len(text).to_bytes(4, "little") + text + blob, 6, mtime=0)).decode()


def render(
    template: str, scripts: tuple[str, ...], styles: tuple[str, ...], data: dict, max_mb: float, shrink: str, **shown
) -> str:
    """The page of pages/TEMPLATE.html. Raises ValueError, saying how to shrink it, beyond max_mb."""
    from jinja2 import Environment, FileSystemLoader

    sources = [(PAGES / script).read_text(encoding="utf-8") for script in scripts]
    hashes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
    style = "\n".join((PAGES / sheet).read_text(encoding="utf-8") for sheet in styles)
    environment = Environment(loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template(f"{template}.html").render(
        policy=policy, style=style, scripts=sources, data=pack(data), **shown
    )
    page = re.sub("[\ud800-\udfff]", "\ufffd", page)  # half a character in somebody's text has no bytes
    if len(page.encode()) > max_mb * 1e6:
        raise ValueError(f"the page would have {len(page.encode()) / 1e6:.1f} MB, max_mb is {max_mb:g}: {shrink}")
    return page


def write(path: Path, page: str):
    """Whole or not at all: a browser may be looking at it while a run refreshes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8", newline="\n")
    temporary.replace(path)
