"""The kinds of files, one module each, where the two sides that must agree stand together:

cut(source, file, rules)    the file as blocks; `file` is its content, decompressed
read(block, rules, counts)  a block's rows as (where it stands, row): a row is a text or what JSON
                            makes of it; `counts` gets what was changed in the text
"""

from lathe.corpus.formats import json_lines, json_values, parquet, tables, text

FORMATS = {
    "text": text,
    "jsonl": json_lines,
    "json": json_values,
    "csv": tables,
    "tsv": tables,
    "parquet": parquet,
}

FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# What is taken from a folder as text beside those; files named one by one may have any name.
TEXT_SUFFIXES = frozenset(
    """
    .txt .text .md .markdown .rst .tex .org .log .html .htm .xml .srt
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cs .java .kt .scala .js .jsx .mjs .ts .tsx .go
    .rs .rb .php .swift .m .mm .sh .bash .pl .pm .lua .r .jl .hs .ml .clj .ex .exs .erl .elm .dart
    .f90 .f .sql .css .scss .yaml .yml .toml .ini .cfg .cmake .zig .nim .v .vhd .s .asm .lisp .el
    .scm .vim .proto .tcl .ps1 .bat
    """.split()
)
