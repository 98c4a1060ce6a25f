"""Between this process and those who read it: UTF-8 in and out, whatever the locale says, and on a
terminal, and only there, control characters are shown, not obeyed.

Results go to stdout and notes to stderr, by the two functions below: nothing else here prints.
"""

import codecs
import io
import locale
import os
import re
import sys
import unicodedata
from contextlib import suppress
from typing import TextIO

# -----------------------------------------------------------------------------
# UTF-8


def speak_utf8():
    """Have the command line, names of files and the standard streams be UTF-8. Called as a command
    begins, more than once does no harm.

    Bytes that are not UTF-8, in names of files for one, come in and go out as they are.
    """
    _restart_in_utf8_mode()
    _open_closed_streams()
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "surrogateescape"),
        (sys.stderr, "backslashreplace"),
    ):
        is_text = isinstance(stream, io.TextIOWrapper)
        if is_text and (not _is_utf8(stream.encoding) or stream.errors != errors):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _open_closed_streams():
    """Standard streams that were closed (`2>&-`) lead nowhere. Otherwise the next file that is
    opened would take their place, and get what libraries print."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        flags = os.O_RDONLY if name == "stdin" else os.O_WRONLY
        opened = os.open(os.devnull, flags)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))


def _restart_in_utf8_mode():
    """Names of files, unlike streams, have the encoding that Python chose as it began: where that
    is another (a locale of Latin-1, or C with Python's own remedies off), begin again."""
    if _is_utf8(sys.getfilesystemencoding()) or not sys.executable:
        return
    if os.environ.get("PYTHONUTF8") == "1":  # has been tried, and -E forbids it
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def edit_lines():
    """Have input() edit lines and keep a history, where the system can do so. In a locale that has
    no UTF-8 readline takes the bytes of letters for keys: lines are then typed as they are."""
    with suppress(ImportError, AttributeError):  # neither is on Windows
        if _is_utf8(locale.nl_langinfo(locale.CODESET)):
            import readline  # noqa: F401 - is all that input() needs


# -----------------------------------------------------------------------------
# Printing


def print_result(text: object, end: str = "\n"):
    """To stdout."""
    print(visible(str(text), sys.stdout), end=end, flush=True)


def print_note(text: object = "", end: str = "\n"):
    """To stderr, which people read: a byte of a name that is not UTF-8 is shown in a pipe, too."""
    line = visible(str(text), sys.stderr).translate(_SURROGATES)
    print(line, end=end, file=sys.stderr, flush=True)


def visible(text: str, stream: TextIO) -> str:
    """`text` as it goes to `stream`: on a terminal, with control characters that can be seen."""
    return text.translate(_ESCAPES) if stream.isatty() else text


def fit(text: str, stream: TextIO) -> str:
    """`text` with lines of no more columns than a terminal has, as far as that is possible by
    breaking them between words; as it is where `stream` is no terminal.

    A command is broken by a backslash, so that it can be copied. A word that alone is too long
    stays whole for the same reason.
    """
    columns = columns_of(stream)
    if not columns:
        return text
    return "\n".join(_broken(line, columns) for line in text.split("\n"))


def columns_of(stream: TextIO) -> int:
    """Of the terminal that `stream` is; 0 where it is none, or does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 0


def _broken(line: str, columns: int) -> str:
    if n_columns(line) <= columns:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    is_command = _COMMAND.match(line) is not None
    ending = " \\" if is_command else ""
    lines = []
    begun = ""  # a line that may get more words
    for word in (_ARGUMENT if is_command else _WORD).findall(line):
        if begun.strip() and n_columns(begun + word + ending) > columns:
            lines.append(begun + ending)
            begun = indent + "  "
            word = word.lstrip()
        begun += word
    return "\n".join([*lines, begun])


# Each with the space before it, the last one with that after it, too
_WORD = re.compile(r"\s*\S+\s*$|\s*\S+")
_ARGUMENT = re.compile(r"""\s*(?:'[^']*'|"[^"]*"|[^\s'"])+""")
# A line of what to type, as it is printed below "next:"
_COMMAND = re.compile(r"  \S*(python[\d.]*|torchrun|make|pip|uv)(\.exe)? ")


def n_columns(text: str) -> int:
    """How wide a terminal shows it: letters of Chinese, Japanese and Korean take two columns."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "FW" else 1 for char in text)


def printable(text: str) -> str:
    """`text` on one line that shows each of its characters, for names in messages."""
    return "".join(char if char.isprintable() else escape(char) for char in text)


def escape(char: str) -> str:
    """What stands for a character that cannot be printed: its code, or the byte that it was."""
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return repr(char)[1:-1]


# C0 without tab and newline, DEL, and C1, which some terminals obey as they do ESC and a letter.
_CONTROL = [code for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"]
# They have a terminal show text in another order than it has ("Trojan Source", CVE-2021-42574).
# Right-to-left text needs none of them.
_REORDER = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SURROGATES = {code: escape(chr(code)) for code in range(0xD800, 0xE000)}
_ESCAPES = {code: escape(chr(code)) for code in (*_CONTROL, *_REORDER)} | _SURROGATES
