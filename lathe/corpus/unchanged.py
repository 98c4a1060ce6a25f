"""Whether the files of an input are still those that a dataset was made of.

By their content: a file that took another's place may have its name, its size and an older time.
To read all of it again takes a while, so the file `inputs.json` keeps what the system said of each
file before it was read: its number, its size, and when it was last written or renamed. Where that
is the same, nothing is read.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from lathe.corpus.cut import cut_units
from lathe.corpus.options import Plan
from lathe.corpus.report import say
from lathe.corpus.source import Source
from lathe.json_text import read_json

INPUTS_FILE = "inputs.json"


def content_of(unit_hashes: Iterable[str]) -> str:
    """What meta.json keeps of an input, from the sha256 of each unit."""
    return hashlib.sha256("\n".join(unit_hashes).encode()).hexdigest()


def note_inputs(plan: Plan):
    """Remember what the system said of the files, as it was before they were read."""
    versions = _versions(plan.sources)
    Path(plan.out, INPUTS_FILE).write_text(f'{{"versions": "{versions}"}}\n', encoding="utf-8")


def is_unchanged(plan: Plan, content: str) -> bool:
    """Whether the files of the plan have the content that `content_of` told of."""
    noted = ""
    try:
        noted = read_json(Path(plan.out, INPUTS_FILE))["versions"]
    except (OSError, ValueError, LookupError):
        pass  # all is read, then
    if noted and noted == _versions(plan.sources):
        return True
    say(f"comparing the input with what {plan.out} was made of")
    units = cut_units(plan.sources, plan.rules)
    if content_of(unit.sha256() for unit in units) != content:
        say("the input has changed: preparing it again")
        return False
    note_inputs(plan)
    return True


def _versions(sources: Iterable[Source]) -> str:
    """The same as long as no file has changed; "" where that cannot be told of each."""
    rows = []
    for source in sources:
        if not source.version:
            return ""
        rows.append([source.path, source.version])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
