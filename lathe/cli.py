"""How a preset and a command line become one object.

A preset is a TOML file of flat settings, and a command line says the same in words:

    python train.py config/quickstart.toml --n_layer=6 --learning_rate 1e-3

Both give texts by the names of a dataclass's fields, which are converted by the fields' types: str,
int, float, bool, Literal["a", "b"], list[str], list[int]. A wrong name, type or choice is one line
on stderr that names what was meant, and exit code 2.
"""

import atexit
import json
import keyword
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from lathe import ROOT, hints
from lathe.aliases import did_you_mean
from lathe.fields import PathName, read_comments
from lathe.output import finish_output
from lathe.settings import RETIRED
from lathe.terminal import escape, print_note, print_result, printable, speak_utf8

PRESET_DIR = ROOT / "config"
LARGEST_PRESET = 1_000_000  # bytes
BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
Options = TypeVar("Options")


def parse(
    cls: type[Options],
    argv: list[str] | None = None,
    *,
    prog: str = "",
    description: str = "",
    presets: bool = False,
    default_preset: Callable[[dict[str, "Given"]], str] | None = None,
    positional: str = "",
) -> Options:
    """The command line `argv` (this process's where None) as an instance of the dataclass `cls`.

    Options are --name=value or --name value, with dashes or underscores; a list field takes several
    values. With `presets`, bare words are TOML presets, applied in order before the options; where
    none is given, default_preset names one for the options that are. With `positional`, they are
    the values of that list[str] field. --help prints and exits with 0, a user's mistake prints one
    line and exits with 2; under torchrun only rank 0 prints.
    """
    prog = prog or command_name()
    types = get_type_hints(cls)
    if argv is None:
        speak_utf8()
        argv = sys.argv[1:]
    try:
        line = read_words(argv, types)
        given = {}
        by_default = {}
        if presets:
            if default_preset and not line.bare_words:
                by_default = read_preset(default_preset(line.given), types)
            for preset in line.bare_words:
                given |= read_preset(preset, types)
        elif positional and line.bare_words:
            line.given[positional] = Given(line.bare_words, positional)
        elif line.bare_words and not line.wants_help:
            raise ValueError(unexpected(line.bare_words[0], types))
        given |= line.given
        if line.wants_help:
            bare_words = f"{positional} ... " if positional else ""
            if presets:
                bare_words = "[PRESET.toml ...] "
            usage = f"usage: {prog} {bare_words}[--name=value ...]\n"
            text = describe(cls, by_default | given)
            if is_rank_0():
                print_result(f"{usage}\n{description}".rstrip() + f"\n\n{text}")
            sys.exit(0)
        options = build(cls, by_default | given)
        if hasattr(cls, "given"):  # see Settings
            sources = {name: setting.source for name, setting in given.items()}
            object.__setattr__(options, "given", sources)
            presets_by_default = [s.source.rpartition(": ")[0] for s in by_default.values()]
            object.__setattr__(options, "preset", "".join(presets_by_default[:1]))
        return options
    except BrokenPipeError:
        end_for_closed_pipe()
    except (ValueError, OSError) as error:
        if is_rank_0():
            print_note(f"{prog}: error: {one_line(error)}")
        else:
            let_rank_0_speak()
        sys.exit(2)


# -----------------------------------------------------------------------------
# The words of a command line


@dataclass
class Given:
    """What was given for a setting, not converted yet."""

    values: list[str]  # one, or any number for a list
    source: str  # "--n_layer", or "mine.toml: n_layer"


@dataclass
class CommandLine:
    given: dict[str, Given] = field(default_factory=dict)  # by the setting's name
    bare_words: list[str] = field(default_factory=list)
    wants_help: bool = False


def read_words(words: list[str], types: dict[str, type]) -> CommandLine:
    line = CommandLine()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        spelled, equals, value = word.partition("=")
        name = spelled.removeprefix("--").replace("-", "_")
        option = f"--{name}"
        if keyword.iskeyword(name):  # --for is the field for_
            name += "_"
        if word in ("-h", "--help"):
            line.wants_help = True
        elif is_option(word):
            if name not in types:
                raise ValueError(f"unknown setting {spelled}{did_you_mean(name, types, '--')}")
            values = [value] if equals else take_values(rest, types[name])
            if not values:
                raise ValueError(f"{spelled} needs a value: {option}=VALUE")
            if types[name] in (str, list[str]):
                refuse_what_is_no_text(option, values)
            if is_list(types[name]) and name in line.given:
                values = line.given[name].values + values
            line.given[name] = Given(values, option)
        elif word.startswith("-") and word != "-":
            raise ValueError(unexpected(word, types))
        elif equals and name in types:  # n_layer=3
            raise ValueError(unexpected(word, types))
        else:
            line.bare_words.append(word)
    return line


def refuse_what_is_no_text(option: str, values: list[str]):
    try:
        for value in values:
            must_be_text(value)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def take_values(rest: list[str], kind: type) -> list[str]:
    """The words that follow --name as its values, taken from the front of `rest`."""
    if kind is bool:
        if rest and rest[0].lower() in BOOLS:
            return [rest.pop(0)]
        return ["true"]  # a bare --flag leaves a preset after it alone
    values = []
    while rest and not is_option(rest[0]) and rest[0] != "-h":
        values.append(rest.pop(0))
        if not is_list(kind):
            break
    return values


def is_option(word: str) -> bool:
    return re.match(r"--\w", word) is not None


def is_list(kind: type) -> bool:
    return get_origin(kind) is list


def unexpected(word: str, types: dict[str, type]) -> str:
    meant = hints.meant_by_bare_word(word, types)
    return f"unexpected argument {word!r}; settings are written --name=value{meant}"


# -----------------------------------------------------------------------------
# Presets


def read_preset(preset: str, types: dict[str, type]) -> dict[str, Given]:
    """The settings in a preset, named by its path or by its name in config/."""
    path = find_preset(preset)
    n_bytes = path.stat().st_size
    if n_bytes > LARGEST_PRESET:
        raise ValueError(f"{path}: no preset has {n_bytes:,} bytes")
    try:
        table = from_toml(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        fault = f"{path}: not a TOML file: {error}"
        if path.suffix in hints.TEXT_SUFFIXES:
            fault += f"; if it is a text to train on: {hints.prepare('text', path)}"
        raise ValueError(fault) from None
    if path.parent == PRESET_DIR:
        path = path.relative_to(ROOT)
    given = {}
    for name, value in table.items():
        if name not in types and name in RETIRED and value == RETIRED[name]:
            continue
        if name in RETIRED and name not in types:
            raise ValueError(
                f"{path}: {name} is {value}, which this version no longer has: leave it out, or "
                f"use another{did_you_mean(name, types)}"
            )
        if name not in types:
            raise ValueError(f"{path}: unknown setting {name}{did_you_mean(name, types)}")
        values = value if is_list(types[name]) and isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in values):
            text = f"{name} is a table or a list; settings are flat: {name} = value"
            raise ValueError(f"{path}: {text}")
        given[name] = Given([str(item) for item in values], f"{path}: {name}")
    return given


def find_preset(preset: str) -> Path:
    preset = expand_home(preset)
    for path in (Path(preset), ROOT / preset, PRESET_DIR / preset, PRESET_DIR / f"{preset}.toml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in PRESET_DIR.glob("*.toml"))
    raise ValueError(hints.instead_of_preset(preset, names))


# -----------------------------------------------------------------------------
# Values


def build(cls: type[Options], given: dict[str, Given]) -> Options:
    """The instance with these settings; ValueError names one that does not fit, and its source."""
    types = get_type_hints(cls)
    values = {}
    for name, setting in given.items():
        try:
            if is_list(types[name]):
                (item_type,) = get_args(types[name])
                values[name] = [convert(text, item_type) for text in setting.values]
            else:
                (text,) = setting.values
                values[name] = convert(text, types[name])
        except ValueError as error:
            if is_list(types[name]) and "," in setting.values[-1]:
                error = f"{error}; several values stand side by side, without commas"
            help = read_comments(cls)[name].help
            raise ValueError(f"{setting.source}: {error} (help: {help})") from None
    try:
        return cls(**values)
    except ValueError as error:
        name = str(error).partition(" ")[0]  # __post_init__ says "batch_size is 0; ..."
        if name not in given:
            raise
        raise ValueError(f"{given[name].source}: {error}") from None


def convert(text: str, kind: type) -> str | int | float | bool:
    """`text` as a value of its type. Raises ValueError, saying what it should have been."""
    if kind is str:
        return text
    if kind is PathName:
        return expand_home(text)
    if kind is bool:
        if text.lower() not in BOOLS:
            raise ValueError(f"{text!r} is not true or false")
        return BOOLS[text.lower()]
    if get_origin(kind) is Literal:
        return choose(text, get_args(kind))
    if kind is int:
        return whole_number(text)
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
    raise TypeError(f"a setting cannot be of type {kind}")


def must_be_text(text: str) -> str:
    """`text` itself. Raises ValueError where the words of a command line were no UTF-8."""
    for byte, char in enumerate(text):
        if "\ud800" <= char <= "\udfff":
            offset = len(text[:byte].encode("utf-8"))
            code = escape(char).removeprefix("\\x")
            raise ValueError(
                f"not UTF-8 at byte {offset} ({code}): write it in a terminal of UTF-8"
            )
    return text


# At the beginning, after a prefix (hf:~/gpt2) and in a list (~/a:0.7,~/b:0.3).
HOME = re.compile(r"(?:^|(?<=[:,]))~[^/\\:,]*(?=[/\\:,]|$)")


def expand_home(path: str) -> str:
    """`path` with the home folder where it says ~, or another user's for ~name. What is there under
    the name as it stands is meant itself."""
    if os.path.lexists(path):
        return f"./{path}" if path.startswith("~") else path
    return HOME.sub(lambda match: os.path.expanduser(match[0]), path)


def choose(text: str, choices: tuple[str, ...]) -> str:
    choice = text
    if "true" in choices:  # auto, true or false: True, yes and 1 are true, too
        choice = text.lower()
        if choice in BOOLS:
            choice = "true" if BOOLS[choice] else "false"
    if choice in choices:
        return choice
    import difflib  # for mistakes alone

    expected = f"one of {', '.join(choices)}"
    for near in difflib.get_close_matches(text.lower(), choices, n=1, cutoff=0.5):
        expected += f"; did you mean {near}?"
    raise ValueError(f"{text!r} is not {expected}")


def whole_number(text: str) -> int:
    """12, or 1e3 and 2.0 as well; large ones stay exact."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        number = float(text)
        if number.is_integer():
            return int(number)
    raise ValueError(f"{text!r} is not a whole number")


# -----------------------------------------------------------------------------
# Settings as text: --help, and a run's settings.toml


def describe(cls: type, given: dict[str, Given] | None = None) -> str:
    """What --help says of the options, section by section: type, help, default and, of what is
    given by a preset or beside --help, the value in force and its source."""
    given = given or {}
    width = max(60, shutil.get_terminal_size().columns)
    indent = " " * 24
    types = get_type_hints(cls)
    comments = read_comments(cls)
    lines = []
    section = None
    for setting in fields(cls):
        comment = comments[setting.name]
        if comment.section != section:
            section = comment.section
            title = f"{section} options".strip()
            lines += ["", title, "-" * len(title)]
        default = setting.default
        if default is MISSING:
            default = setting.default_factory()
        option = f"  --{setting.name.removesuffix('_')} {type_name(types[setting.name])}"
        in_force = ""
        if setting.name in given:
            values = " ".join(given[setting.name].values)
            in_force = f"{given[setting.name].source}: {values}; ".replace(
                f": {setting.name}:", ":"
            )
        text = f"{comment.help} ({in_force}default: {default_name(default)})".strip()
        paragraph = textwrap.wrap(
            text,
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if len(option) + 2 <= len(indent):  # beside the first line of its help, or above it
            paragraph[0] = option.ljust(len(indent)) + paragraph[0].lstrip()
        else:
            lines.append(option)
        lines += paragraph
    return "\n".join(lines[1:])


def type_name(kind: type) -> str:
    if kind is bool:
        return "{true,false}"
    if kind is PathName:
        return "PATH"
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if is_list(kind):
        return type_name(get_args(kind)[0]) + " ..."
    return kind.__name__.upper()


def default_name(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or "none"
    return str(value) or "''"


def to_toml(settings: object) -> str:
    """All settings as a preset that repeats them, with their sections and help as comments."""
    comments = read_comments(type(settings))
    lines = []
    section = ""
    for setting in fields(settings):
        comment = comments[setting.name]
        if comment.section != section:
            section = comment.section
            if lines:
                lines.append("")
            lines.append(f"# --- {section}")
        value = toml_value(getattr(settings, setting.name))
        lines.append(f"{setting.name} = {value}  # {comment.help}")
    return "\n".join(lines) + "\n"


def from_toml(text: str) -> dict:
    """The settings in a preset's text. ValueError if it is not TOML."""
    try:
        return {name: read_toml_value(value) for name, value in tomllib.loads(text).items()}
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except TypeError as error:
        raise ValueError(str(error)) from None


def read_toml_value(value: object) -> object:
    if isinstance(value, list):
        return [read_toml_value(item) for item in value]
    if isinstance(value, dict) and list(value) == ["json"]:
        return json.loads(value["json"])
    return value


def toml_value(value: str | bool | int | float | list) -> str:
    """A value as TOML. It has no names that are not UTF-8: they are JSON's there, {json = ...}."""
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        return f"{{ json = {toml_value(json.dumps(value))} }}"
    if isinstance(value, str):  # JSON's escapes are TOML's, but JSON leaves DEL as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        items = [toml_value(item) for item in value]
        return f"[{', '.join(items)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


# -----------------------------------------------------------------------------
# How a command begins and ends


def parse_before_imports(cls: type[Options], **parser: object) -> Options:
    """parse() of this process's command line, at the head of a file whose imports take seconds.

    --help and mistakes are answered at once, and Ctrl-C just ends the process until run() begins.
    """
    options = parse(cls, **parser)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return options


def run(main: Callable[..., int | None], *arguments: object) -> NoReturn:
    """Call main(*arguments) as this process's command and exit with what it returns (None = 0).

    ValueError, OSError and MemoryError are the user's to mend: one line on stderr, exit code 1;
    LATHE_TRACEBACK=1 shows where they came from. Ctrl-C exits with 130 and a closed pipe (`| head`)
    with 141, both silently.

    A command answers --help and mistakes before it imports torch, which takes seconds. Its main()
    parses, then imports what is heavy:

        def main(argv=None):
            options = cli.parse(Options, argv)
            from lathe.use.validation import validation
            ...

        if __name__ == "__main__":
            cli.run(main)

    Where functions beside main() need torch, too, the file's head parses, between light and heavy
    imports:

        if __name__ == "__main__":
            options = cli.parse_before_imports(Options)

        import torch
        ...

        if __name__ == "__main__":
            cli.run(train, options)
    """
    speak_utf8()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(*arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        end_for_closed_pipe()
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("LATHE_TRACEBACK") == "1":
            raise
        speaker = command_name()
        if not is_rank_0():
            let_rank_0_speak()
            speaker += f": rank {os.environ['RANK']}"
        print_note(f"{speaker}: error: {one_line(error)}")
        code = 1
    if code and "RANK" in os.environ:
        # Python's own end can abort on gloo's threads, which still serve other ranks.
        with suppress(OSError):
            sys.stdout.flush()
        finish_output()
        os._exit(code)
    finish_output()
    is_command = sys._getframe(1).f_globals["__name__"] == "__main__"  # and no part of another
    if is_command and "torch" in sys.modules:
        end_at_once(code or 0)
    sys.exit(code)


def end_at_once(code: int) -> NoReturn:
    """End the process, and do not take apart what it has imported: with torch up to half a second.
    What was registered for the end is done, and threads are waited for, as ever."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, full, or never there
            stream.flush()
    os._exit(code)


def command_name() -> str:
    """How this command is called from the repository's root: train.py, prepare/text.py."""
    path = Path(sys.argv[0]).resolve()
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return path.name


LONGEST_ERROR = 1400  # characters


def one_line(error: Exception) -> str:
    """What an error says, on one printable line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.filename is not None:
            text = f"{printable(str(error.filename))}: {text}"
    text = re.sub(r"\s*[\n\r\t\v\f]\s*", " ", text.strip())
    if len(text) > LONGEST_ERROR:  # what is quoted in it came from a file
        half = LONGEST_ERROR // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if isinstance(error, MemoryError):
        return printable(f"out of memory: {text}".removesuffix(": "))
    return printable(text) or type(error).__name__


def is_rank_0() -> bool:
    return os.environ.get("RANK", "0") == "0"


def let_rank_0_speak():
    """Wait: rank 0 prints a mistake of all ranks, and the launcher ends all at the first exit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3)


def end_for_closed_pipe() -> NoReturn:
    """Exit as a program that SIGPIPE ended, without a word."""
    # The interpreter flushes once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
