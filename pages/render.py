"""A page with its data, scripts and styles in one file."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from lathe.run.files import write_atomically

PAGES = Path(__file__).parent


def pack(data: dict) -> str:
    """Data for a page's script: base64 of gzip of (length of JSON, JSON, bytes of arrays).

    data: JSON values, floats kept to six digits, and numpy arrays (at the top level only).
    """
    values = {}
    arrays = {}
    blob = b""
    for name, value in data.items():
        if isinstance(value, np.ndarray):
            arrays[name] = {"dtype": str(value.dtype), "shape": value.shape, "at": len(blob)}
            blob += aligned(value.tobytes(), b"\0")
        else:
            values[name] = value
    rounded = json.loads(json.dumps(values), parse_float=six_digits)
    text = json.dumps({**rounded, "arrays": arrays}, separators=(",", ":")).encode()
    text = aligned(text, b" ")
    length = len(text).to_bytes(4, "little")
    return base64.b64encode(gzip.compress(length + text + blob, 6, mtime=0)).decode()


def six_digits(digits: str) -> float:
    return float(f"{float(digits):.6g}")


def aligned(data: bytes, filling: bytes) -> bytes:
    """`data` filled up to a multiple of four bytes, at which a browser wants arrays to begin."""
    return data + filling * (-len(data) % 4)


def render(
    template: str,
    scripts: tuple[str, ...],
    styles: tuple[str, ...],
    data: dict,
    max_mb: float,
    shrink: str,
    **values: object,
) -> str:
    """The page of pages/TEMPLATE.html, which sees `values`, while its script sees `data`.

    scripts, styles: names of files in pages/. Raises ValueError beyond max_mb, with `shrink`, the
    words that say how to make it smaller.
    """
    from jinja2 import Environment, FileSystemLoader

    sources = [(PAGES / script).read_text(encoding="utf-8") for script in scripts]
    sheets = [(PAGES / style).read_text(encoding="utf-8") for style in styles]
    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(f"{template}.html").render(
        policy=security_policy(sources),
        style="\n".join(sheets),
        scripts=sources,
        data=pack(data),
        **values,
    )
    page = re.sub("[\ud800-\udfff]", "\ufffd", page)  # half a character in somebody's text
    megabytes = len(page.encode()) / 1e6
    if megabytes > max_mb:
        raise ValueError(f"the page would have {megabytes:.1f} MB, max_mb is {max_mb:g}: {shrink}")
    return page


def security_policy(sources: list[str]) -> str:
    """A content-security policy that lets these scripts run and forbids to load anything."""
    digests = [hashlib.sha256(source.encode()).digest() for source in sources]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


OURS = b"default-src &#39;none&#39;; style-src"  # what the beginning of each of our pages has


def refuse_to_replace(path: Path):
    """ValueError if there is something under this name that is no page of ours."""
    if path.is_dir():
        raise ValueError(f"out is {path}, a folder: name a file, such as {path / 'page.html'}")
    if not path.exists():
        return
    with open(path, "rb") as file:
        beginning = file.read(4096)
    if beginning and OURS not in beginning:
        raise ValueError(f"out is {path}, which is no page of visualize.py's: choose another file")


def write(path: Path, page: str):
    """Whole or not at all: a browser may be looking at it while a run refreshes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
