"""rope_theta, rope_scaling and rope_parameters of a config.json, both ways.

Version 5 of transformers has all in rope_parameters; before, rope_scaling held what is scaled and
rope_theta stood alone. What contradicts itself is read differently by the two, and refused.
"""

from pathlib import Path
from typing import Any

from lathe.reading import is_of
from lathe.use.hf.families import Family
from model import GPTConfig

# {their rope_type: its numbers, in the order of our rope_scaling}
NUMBERS = {
    "default": [],
    "linear": ["factor"],
    "llama3": [
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ],
}


def their_rope(c: GPTConfig) -> dict[str, Any]:
    """rope_parameters of a network with rope."""
    kind, *numbers = c.rope_scaling.split(":")
    kind = kind or "default"
    values = [float(number) for number in numbers]
    scaling = dict(zip(NUMBERS[kind], values, strict=True))
    length = scaling.get("original_max_position_embeddings")
    if length:
        scaling["original_max_position_embeddings"] = int(length)
    return {"rope_type": kind, "rope_theta": c.rope_theta, **scaling}


def their_scaling(c: GPTConfig) -> dict[str, Any] | None:
    """rope_scaling, where transformers before 5 looks; without it a family's usual one counts."""
    if not c.rope_scaling:
        return None
    return {name: value for name, value in their_rope(c).items() if name != "rope_theta"}


def our_rope(theirs: dict, family: Family, path: Path) -> tuple[float, str]:
    """(rope_theta, rope_scaling) of the config.json at `path`. ValueError names what our network
    does not compute, or what is said twice and differently."""
    rope = merged(theirs, family, path)
    kind = rope.pop("rope_type", "default")
    if kind not in NUMBERS:
        whole = theirs.get("rope_scaling") or theirs.get("rope_parameters")
        raise ValueError(
            f"{path}: rope_scaling is {whole}, which lathe's network does not compute: it knows "
            f"{', '.join(NUMBERS)}"
        )
    partial = rope.pop("partial_rotary_factor", None)
    if partial not in (None, 1):
        raise ValueError(
            f"{path}: partial_rotary_factor is {partial}, which lathe's network does not compute"
        )
    theta = rope.pop("rope_theta", family.defaults["rope_theta"])
    if kind == "llama3":  # as in transformers
        rope.setdefault("original_max_position_embeddings", theirs.get("max_position_embeddings"))
    else:  # which needs none
        rope.pop("original_max_position_embeddings", None)
    values = [theta, *(rope.pop(name, None) for name in NUMBERS[kind])]
    for name, value in zip(["rope_theta", *NUMBERS[kind]], values, strict=True):
        if not is_of(value, float):
            raise ValueError(f"{path}: rope_scaling {kind}: {name} is {value}, not a number")
    others = {name: value for name, value in rope.items() if value is not None}
    if others:
        name = min(others)
        raise ValueError(
            f"{path}: rope_scaling has {name}={others[name]!r:.60}, which {kind} does not know: "
            "remove it if it changes nothing"
        )
    if kind == "default":
        return theta, ""
    words = [repr(float(value)).removesuffix(".0") for value in values[1:]]
    return theta, ":".join([kind, *words])


def merged(theirs: dict, family: Family, path: Path) -> dict[str, Any]:
    """All that is said of rope, by its names in rope_parameters."""
    alone = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    sources = {
        "rope_scaling": theirs.get("rope_scaling"),
        "rope_parameters": theirs.get("rope_parameters"),
        path.name: {name: theirs[name] for name in alone if theirs.get(name) is not None},
    }
    if not (sources["rope_scaling"] or sources["rope_parameters"]):
        default = family.defaults.get("rope_parameters")
        sources[f"the default of {family.model_type}"] = default
    rope = {}
    said_by = {}
    for source, values in sources.items():
        for name, value in (values or {}).items():
            if name == "type":  # its older name
                if "rope_type" in values:
                    continue
                name = "rope_type"
            if rope.setdefault(name, value) != value:
                raise ValueError(
                    f"{path}: {name} is {rope[name]} in {said_by[name]} and {value} in {source}: "
                    "which one holds depends on the version of transformers; make them equal"
                )
            said_by.setdefault(name, source)
    return rope
