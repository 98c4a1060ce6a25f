"""How a preset and a command line become one object.

A preset is a TOML file of flat settings. It is read as a list of default arguments that stand before the user's own,
so one validator serves both:  python train.py config/quickstart.toml --n_layer=6 --learning_rate 1e-3
A wrong name, type or choice is one line on stderr that names what was meant, and exit code 2.
"""

import difflib
import inspect
import io
import json
import os
import re
import signal
import sys
import textwrap
import time
import tomllib
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import field as dataclass_field
from dataclasses import fields, is_dataclass, make_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

from lathe import ROOT
from lathe.aliases import ALIASES, ELSEWHERE
from lathe.fields import read_fields
from lathe.settings import ModelSettings, Settings

PRESET_DIR = ROOT / "config"


def parse(cls, argv=None, *, prog=None, description="", presets=False, default_preset="", positional=""):
    """The command line `argv` (this process's where None) as an instance of the dataclass `cls`.

    Options are --name=value or --name value, with dashes or underscores; a list field takes several values.
    With `presets`, bare words are TOML presets, applied in order before the options, or `default_preset` where none
    is given; with `positional`, they are the values of that list[str] field. --help prints and exits with 0, a user's
    mistake prints one line and exits with 2; under torchrun only rank 0 prints.
    """
    prog, hints = prog or _command_name(), get_type_hints(cls)
    try:
        bare, given, wants_help = _split(sys.argv[1:] if argv is None else argv, hints)
        if wants_help:
            if _is_rank_0():
                bare_words = "[PRESET.toml ...] " if presets else f"{positional} ... " if positional else ""
                print(f"usage: {prog} {bare_words}[--name=value ...]\n\n{description}".rstrip() + "\n")
                print(_options(cls), flush=True)
            sys.exit(0)
        arguments = {}
        if presets:
            for preset in bare or [default_preset] * bool(default_preset):
                arguments |= _read_preset(preset, hints)
        elif positional and bare:
            given[positional] = (bare, positional)
        elif bare:
            raise ValueError(f"unexpected argument {bare[0]!r}; settings are written --name=value")
        return _build(cls, arguments | given, hints)
    except BrokenPipeError:
        _end_for_closed_pipe()
    except (ValueError, OSError) as error:
        if _is_rank_0():
            print(f"{prog}: error: {_one_line(error)}", file=sys.stderr)
        else:
            _let_rank_0_speak()
        sys.exit(2)


def _split(argv, hints):
    """(bare words, {setting: (values, where they were given)}, whether help was asked for)."""
    bare, given, wants_help, rest = [], {}, False, list(argv)
    while rest:
        word = rest.pop(0)
        shown, equals, value = word.partition("=")
        name = shown[2:].replace("-", "_")
        if word in ("-h", "--help"):
            wants_help = True
        elif re.match(r"--\w", word):
            if name not in hints:
                raise ValueError(f"unknown setting {shown}{_hint(name, hints, '--')}")
            is_list, is_bool = get_origin(hints[name]) is list, hints[name] is bool
            values = [value] if equals else []
            while not equals and rest and not re.match(r"--\w|-h$", rest[0]) and (is_list or not values):
                if is_bool and rest[0].lower() not in _BOOLS:  # a bare --flag leaves a preset after it alone
                    break
                values.append(rest.pop(0))
            if not values and not is_bool:
                raise ValueError(f"{shown} needs a value: --{name}=VALUE")
            before = given[name][0] if is_list and name in given else []
            given[name] = (before + (values or ["true"]), f"--{name}")
        elif word.startswith("-") and word != "-" or equals and shown.replace("-", "_") in hints:
            raise ValueError(f"unexpected argument {word!r}; settings are written --name=value")
        else:
            bare.append(word)
    return bare, given, wants_help


def _read_preset(preset, hints):
    """{setting: (values, where)} of a preset, given as a path or as the name of a file in config/."""
    places = (Path(preset), ROOT / preset, PRESET_DIR / preset, PRESET_DIR / f"{preset}.toml")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        names = sorted(place.stem for place in PRESET_DIR.glob("*.toml"))
        raise ValueError(f"no preset {preset!r}; those in config/ are {', '.join(names)}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from None
    arguments = {}
    for name, value in table.items():
        if name not in hints:
            raise ValueError(f"{path}: unknown setting {name}{_hint(name, hints, '')}")
        values = value if get_origin(hints[name]) is list and isinstance(value, list) else [value]
        if any(isinstance(v, dict | list) for v in values):
            raise ValueError(f"{path}: {name} is a table or a list; settings are flat: {name} = value")
        arguments[name] = ([str(v) for v in values], f"{path}: {name}")
    return arguments


def _build(cls, arguments, hints):
    """The instance that the arguments make; ValueError names the setting that does not fit."""
    values = _converted(arguments, hints, helps(cls))
    try:
        return cls(**values)
    except ValueError as error:  # from __post_init__: "batch_size is 0; ..."
        where = arguments.get(str(error).split()[0], ("", ""))[1]
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _converted(arguments, hints, helps):
    """{setting: the value of its type that tyro makes of its texts}; ValueError says what one should have been."""
    import tyro

    form = make_dataclass("Arguments", [(name, hints[name]) for name in arguments])
    words = [f"--{name}={_spelled(text, hints[name])}" for name, (texts, _) in arguments.items() for text in texts]
    config = (tyro.conf.FlagConversionOff, tyro.conf.UseAppendAction)
    try:
        with redirect_stderr(io.StringIO()):  # its own message takes several lines, and does not say which one
            return vars(tyro.cli(form, args=words, config=config, use_underscores=True))
    except SystemExit:
        for name, argument in arguments.items() if len(arguments) > 1 else ():
            _converted({name: argument}, hints, helps)
        ((name, (texts, where)),) = arguments.items()
        kind, text = hints[name], " ".join(texts)
        expected = {bool: "true or false", int: "a whole number"}.get(kind, "a number")
        if choices := get_args(kind):
            near = difflib.get_close_matches(text.lower(), choices, n=1, cutoff=0.5)
            expected = f"one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")
        raise ValueError(f"{where}: {text!r} is not {expected} (help: {helps[name][0]})") from None


_BOOLS = {"true": "True", "yes": "True", "1": "True", "false": "False", "no": "False", "0": "False"}


def _spelled(text, kind):
    """`text` as tyro spells values of this type: yes -> True, 1e3 -> 1000 where a whole number is wanted."""
    if kind is bool:
        return _BOOLS.get(text.lower(), text)
    if {"true", "false"} <= set(get_args(kind)):
        return _BOOLS.get(text.lower(), text).lower()
    if kind is int and re.fullmatch(r"[+-]?\d+(\.\d*)?(e\+?\d{1,2})?", text, re.IGNORECASE):
        number = Decimal(text)
        return str(int(number)) if number == int(number) else text
    return text


def _options(cls):
    """What --help says of the options, by tyro: a box for each section."""
    import tyro

    texts, hints, sections = helps(cls), get_type_hints(cls), {}
    for field in fields(cls):
        help, section = texts[field.name]
        kind = list if hints[field.name] == list[str] else hints[field.name]  # the same, without importing typeguard
        default = dataclass_field(default=field.default, default_factory=field.default_factory)
        option = (field.name, Annotated[kind, tyro.conf.arg(help=help)], default)
        sections.setdefault(section.replace(" ", "_"), []).append(option)
    forms = {title: make_dataclass(title or "All", options) for title, options in sections.items()}
    form = forms[""] if list(forms) == [""] else make_dataclass("Sections", forms.items())
    config = (tyro.conf.FlagConversionOff, tyro.conf.OmitArgPrefixes)
    with suppress(SystemExit), redirect_stdout(io.StringIO()) as text:
        tyro.cli(form, args=["--help"], config=config, use_underscores=True)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()[2:])  # the usage line is ours


def _hint(name, hints, dashes):
    """How to go on after an unknown setting: '; did you mean --max_steps?', or which command has it."""
    name = name.lower()
    commands = {setting: command for command, settings in ELSEWHERE.items() for setting in settings.split()}
    commands |= {field.name: "train.py" for field in fields(Settings)}
    if name.startswith("no_") and hints.get(name[3:]) is bool:
        return f"; did you mean {dashes}{name[3:]}=false?"

    def meant(word):
        """The settings of this command that `word` stands for, or else a command that knows it."""
        targets = [word] if word in hints else ALIASES.get(word, word).split()
        here = [dashes + target for target in targets if target in hints]
        if here:
            return " and ".join(here)
        return next((f"{commands[t]} --{t}" for t in targets if t in commands), targets[0] * targets[0].endswith(".py"))

    # Nearest first, all that are equally near; a setting of this command before an alias, that before other commands'.
    words = [*hints, *ALIASES, *commands]
    nearness = {word: difflib.SequenceMatcher(None, name, word, autojunk=False).ratio() for word in words}
    best = max(nearness.values())
    near = [word for word in nearness if nearness[word] == best]
    near = [word for word in near if word in hints] or near
    answers = list(dict.fromkeys(answer for answer in map(meant, near) if answer))
    return f"; did you mean {' or '.join(answers[:3])}?" if best >= 0.6 and answers else "; --help lists all settings"


def helps(cls):
    """{field: (help, section)} of a dataclass, by the comments in its source and in those that it extends."""
    said = {f.name: (f.metadata.get("help", ""), f.metadata.get("section", "")) for f in fields(cls)}
    for base in reversed(cls.__mro__):
        if is_dataclass(base) and base is not ModelSettings:  # whose fields say it in their metadata
            source = textwrap.dedent(inspect.getsource(base))
            said |= {f.name: (f.help, f.section) for f in read_fields(source, base.__name__)}
    return said


def to_toml(settings) -> str:
    """All settings as a preset that repeats them, with their sections and help as comments."""
    texts, lines, section = helps(type(settings)), [], ""
    for field in fields(settings):
        help, its_section = texts[field.name]
        if its_section != section:
            lines += [""] * bool(lines) + [f"# --- {its_section}"]
            section = its_section
        lines.append(f"{field.name} = {_toml(getattr(settings, field.name))}  # {help}")
    return "\n".join(lines) + "\n"


def _toml(value):
    if isinstance(value, str):  # JSON's escapes are TOML's, but JSON leaves DEL as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _is_rank_0():
    return os.environ.get("RANK", "0") == "0"


def _let_rank_0_speak():
    """Wait: rank 0 tells a mistake that all ranks share, and the launcher ends all when the first one exits."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3)


def _command_name():
    """How this command is called from the repository's root: train.py, prepare/text.py."""
    path, root = Path(sys.argv[0]).resolve(), ROOT
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _one_line(error):
    """What an error says, on one printable line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    text = " ".join(text.split()) or type(error).__name__
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _end_for_closed_pipe():
    """Exit as a program that SIGPIPE ended, without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
    sys.exit(141)


def parse_before_imports(cls, **parser):
    """parse() of this process's command line, at the head of a file whose imports take seconds: --help and mistakes are
    answered at once, and Ctrl-C just ends the process until run() begins."""
    options = parse(cls, **parser)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return options


def run(main, *arguments):
    """Call main(*arguments) as this process's command and exit with what it returns (None = 0).

    A command answers --help and mistakes before it imports torch, which takes seconds. Its main() parses, then imports
    what is heavy:

        def main(argv=None):
            options = cli.parse(Options, argv)
            from lathe.use.validation import validation
            ...

        if __name__ == "__main__":
            cli.run(main)

    Where functions beside main() need torch, too, the file's head parses, between light and heavy imports:

        if __name__ == "__main__":
            options = cli.parse_before_imports(Options)

        import torch
        ...

        if __name__ == "__main__":
            cli.run(train, options)

    ValueError and OSError are the user's to mend: one line on stderr and exit code 1; LATHE_TRACEBACK=1 shows where
    they came from. Ctrl-C exits with 130 and a closed pipe (`| head`) with 141, both silently.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(*arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        _end_for_closed_pipe()
    except (ValueError, OSError) as error:
        if os.environ.get("LATHE_TRACEBACK") == "1":
            raise
        where = _command_name()
        if not _is_rank_0():
            _let_rank_0_speak()
            where += f": rank {os.environ['RANK']}"
        print(f"{where}: error: {_one_line(error)}", file=sys.stderr)
        code = 1
    if code and "RANK" in os.environ:  # Python's own end can abort on gloo's threads, which still serve other ranks
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
