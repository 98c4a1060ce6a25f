"""What the source of a dataclass says of its fields: type, default, help and section.

One line says all there is to know of a setting,

    name: type = default  # help

unless the line gets too long: then the help stands above it. A line `# --- title` opens a section.
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass, fields
from typing import NewType

# The type of a setting that is a path, or has one in it, such as hf:FOLDER or FOLDER:WEIGHT. On the
# command line and in presets `~` in it is the home folder, and it may be no UTF-8.
PathName = NewType("PathName", str)


@dataclass(frozen=True)
class FieldSource:
    """A field as it is written; `type` and `default` are expressions that nothing has evaluated."""

    name: str
    type: ast.expr
    default: ast.expr | None
    help: str
    section: str


def read_fields(source: str, class_name: str) -> list[FieldSource]:
    """The fields of a dataclass in `source`, the text of a file or of the class, in its order."""
    lines = source.splitlines()
    in_order = []
    section = ""
    done = 0  # lines
    for node in find_class(source, class_name).body:
        if not isinstance(node, ast.AnnAssign):
            continue
        above = []  # comments in the lines before the field
        for line in lines[done : node.lineno - 1]:
            line = line.strip()
            if line.startswith("# --- "):
                section = line.removeprefix("# --- ")
            elif line.startswith("# "):
                above.append(line.removeprefix("# "))
        done = node.end_lineno
        beside = lines[done - 1].encode()[node.end_col_offset :].decode()
        help = beside.strip().removeprefix("# ") or " ".join(above)
        in_order.append(FieldSource(node.target.id, node.annotation, node.value, help, section))
    return in_order


def find_class(source: str, class_name: str) -> ast.ClassDef:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return node
    raise ValueError(f"there is no class {class_name} at the top of the source")


@dataclass(frozen=True)
class Comment:
    """What stands beside a field: its help, and the title of the section that it lies in."""

    help: str
    section: str


def read_comments(cls: type) -> dict[str, Comment]:
    """The comment of each field of a dataclass, of those too that it has from another.

    A field that make_dataclass made has it as "help" and "section" in its metadata.
    """
    comments = {}
    for field in fields(cls):
        about = field.metadata
        comments[field.name] = Comment(about.get("help", ""), about.get("section", ""))
    section = ""
    for base in reversed(cls.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # made by make_dataclass, or Python's own
            continue
        for field in read_fields(source, base.__name__):
            section = field.section or section  # a class goes on in the section of its base
            comments[field.name] = Comment(field.help, section)
    return comments
