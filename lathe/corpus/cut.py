"""Sources to units of work: small files share a unit, large ones are cut."""

from collections.abc import Iterable, Iterator

from lathe.corpus import units
from lathe.corpus.formats import FORMATS
from lathe.corpus.rules import Rules
from lathe.corpus.source import Source, open_source
from lathe.corpus.units import Block, Unit


def cut_units(sources: Iterable[Source], rules: Rules) -> Iterator[Unit]:
    """The units of all sources, in order."""
    blocks = []
    size = 0
    bytes_before = 0  # on disk, of earlier sources
    for source in sources:
        if rules.template and source.format == "text":
            raise ValueError(
                f"{source.label} has no rows: say with --format which kind of file it is, "
                f"such as jsonl"
            )
        for block, bytes_read in _cut_blocks(source, rules):
            blocks.append(block)
            size += block.size
            if size >= 0.9 * units.UNIT_BYTES:
                yield Unit(blocks, bytes_before + bytes_read)
                blocks = []
                size = 0
        bytes_before += source.size
    if blocks:
        yield Unit(blocks, bytes_before)


def _cut_blocks(source: Source, rules: Rules) -> Iterator[tuple[Block, int]]:
    """(block, bytes of the file on disk that were read so far) for each block of a source."""
    with open_source(source) as file:
        for block in FORMATS[source.format].cut(source, file.content, rules):
            block.split = source.split
            yield block, min(file.stored.tell(), source.size)
