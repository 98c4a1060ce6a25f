"""What the source of a dataclass says of its fields: type, default, help and section.

One line says all there is to know of a setting,  name: type = default  # help
and a line `# --- title` opens a section.
"""

import ast
import re
from dataclasses import dataclass


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
    fields = []
    for node in find_class(source, class_name).body:
        if not isinstance(node, ast.AnnAssign):
            continue
        after_value = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        _, _, help = after_value.partition("# ")
        section = ""
        for line in lines[: node.lineno - 1]:
            if heading := re.match(r" +# --- (.+)", line):
                section = heading[1]
        fields.append(FieldSource(node.target.id, node.annotation, node.value, help, section))
    return fields


def find_class(source: str, class_name: str) -> ast.ClassDef:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return node
    raise ValueError(f"there is no class {class_name} at the top of the source")
