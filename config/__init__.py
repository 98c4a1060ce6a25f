"""Settings, and how a preset and a command line become one object.

A preset is a TOML file of flat settings. It is read as a list of default arguments that stand before the user's own,
so one validator serves both:  python train.py config/quickstart.toml --n_layer=6 --learning_rate 1e-3
A wrong name, type or choice is one line on stderr that names what was meant, and exit code 2.
"""

import dataclasses
import difflib
import inspect
import io
import json
import os
import re
import sys
import time
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

PRESET_DIR = Path(__file__).resolve().parent


@dataclass
class Settings:
    """Every setting of a training run. The comment beside a field is its help; a `# ---` line opens a section."""

    # --- run
    out_dir: str = "out/default"  # folder that the run writes to
    dataset: str = "data/python_stdlib"  # folder of token shards, as a prepare/ command writes it
    init_from: str = "scratch"  # scratch, resume, auto (resume if possible), hf:NAME_OR_FOLDER, or another run's folder
    overwrite: bool = False  # start over in an out_dir that already holds a run
    seed: int = 1337  # of the weights, the order of samples, dropout and sampled text
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the forward pass; weights stay float32
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile the training step
    parallel: Literal["ddp", "fsdp"] = "ddp"  # how several processes under torchrun share the work

    # --- model
    block_size: int = 1024  # context length, in tokens
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads per block
    n_kv_head: int = 0  # key/value heads, fewer than n_head for grouped queries; 0 = n_head
    head_dim: int = 0  # width of one head; 0 = n_embd / n_head
    n_embd: int = 768  # width of the residual stream
    n_hidden: int = 0  # width of the MLP; 0 = 4 n_embd, or for swiglu 8/3 n_embd rounded up to a multiple of 64
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"  # how a token knows its place
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"  # normalisation before attention, MLP and head
    norm_weight: bool = False  # learned gains in the norms
    norm_eps: float = 1e-5  # added to the variance in the norms
    activation: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = "swiglu"  # of the MLP; gelu_tanh is GPT-2's
    qk_norm: bool = True  # normalise queries and keys per head
    bias: bool = False  # biases in linear layers and layernorms
    tie_weights: bool = False  # one matrix for token embedding and output head
    logit_softcap: float = 0.0  # squash logits to +-this with tanh; 0 = off
    dropout: float = 0.0  # probability of dropping an activation in training

    # --- optimization
    batch_size: int = 512  # sequences per optimizer step, over all devices
    micro_batch_size: int = 0  # sequences per device per forward pass; 0 = auto
    max_steps: int = 5000  # optimizer updates
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for hidden matrices, AdamW for the rest
    learning_rate: float = 0.004  # peak rate of AdamW
    muon_learning_rate: float = 0.02  # peak rate of Muon
    weight_decay: float = 0.1  # on matrices only
    beta1: float = 0.9  # AdamW: decay of the mean of gradients
    beta2: float = 0.95  # AdamW: decay of the mean of squared gradients
    muon_momentum: float = 0.95  # Muon: decay of the momentum
    grad_clip: float = 1.0  # largest norm of the gradient; 0 = off
    lr_schedule: Literal["wsd", "cosine", "constant"] = "wsd"  # wsd: warmup, stable, linear decay
    warmup_steps: int = 40  # steps over which the rates rise linearly
    decay_fraction: float = 0.65  # wsd: share of the run, at its end, over which the rates fall
    min_lr_fraction: float = 0.05  # wsd and cosine: last rate as a share of the peak

    # --- evaluation, saving, reporting
    eval_interval: int = 250  # steps between evaluations
    eval_tokens: int = 0  # validation tokens per evaluation, always the same ones; 0 = all
    log_interval: int = 10  # steps between rows of training metrics
    checkpoint_interval: int = 0  # steps between saves; 0 = at every evaluation
    keep_checkpoints: int = 2  # newest checkpoints that stay, beside the best
    sample_prompt: str = ""  # text that evaluations continue; empty = from the start of a document
    sample_tokens: int = 200  # tokens per sample at an evaluation; 0 = no samples
    num_samples: int = 3  # samples per evaluation
    wandb_log: bool = False  # mirror the metrics to Weights & Biases
    wandb_project: str = "lathe"  # wandb project
    wandb_run_name: str = ""  # wandb run name; empty = the name of out_dir
    tensorboard_log: bool = False  # mirror the metrics to out_dir/tensorboard

    def __post_init__(self):
        positive = "block_size n_layer n_head n_embd batch_size max_steps eval_interval log_interval keep_checkpoints"
        for name, value in vars(self).items():
            if name in positive.split() and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
            if isinstance(value, int | float) and name != "seed" and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be a finite number, not below 0")
        for name in ("dropout", "decay_fraction", "min_lr_fraction", "beta1", "beta2", "muon_momentum"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")


# What users of nanoGPT, Hugging Face, llm.c and others type -> our settings, or a sentence that says where it went.
ALIASES = {
    "max_iters": "max_steps",
    "lr": "learning_rate",
    "gradient_accumulation_steps": "batch_size micro_batch_size",
    "start": "prompt",
}

# Settings of other commands, so that a right name in the wrong place is answered with the place.
ELSEWHERE = {"prompt": "sample.py"}


def parse(cls, argv=None, *, prog=None, description="", aliases=ALIASES, presets=False, default_preset=""):
    """The command line `argv` (default: this process's) as an instance of the dataclass `cls`.

    Options are --name=value or --name value, with dashes or underscores; a list[str] field takes several values.
    With `presets`, bare arguments are TOML presets, applied in order before the options; `default_preset` is used
    where none is given. A user's mistake prints one line and exits with 2; under torchrun only rank 0 prints.
    """
    prog = prog or _command_name()
    try:
        hints, helps = get_type_hints(cls), _helps(cls)
        paths, given, wants_help = _split(sys.argv[1:] if argv is None else argv, hints, presets, aliases)
        if wants_help:
            _print_help(cls, hints, helps, prog, description)
            sys.exit(0)
        if presets and not paths and default_preset:
            paths = [default_preset]
        arguments = {}
        for path in paths:
            arguments |= _read_preset(path, hints, aliases)
        arguments |= given
        return _build(cls, hints, helps, arguments)
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{prog}: error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _split(argv, hints, presets, aliases):
    """(preset names, {setting: (values, where it was written)}, whether help was asked for)."""
    paths, given, wants_help, rest = [], {}, False, list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            wants_help = True
        elif re.match(r"--\w", word):
            shown, equals, value = word.partition("=")
            name = shown[2:].replace("-", "_")
            if name not in hints:
                raise ValueError(f"unknown setting {shown}{_hint(name, hints, aliases, '--')}")
            values = [value] if equals else []
            while not equals and rest and not re.match(r"--\w|-h$", rest[0]):
                # A bare flag of a bool leaves what follows alone unless that says true or false.
                if values and hints[name] is not list[str] or hints[name] is bool and rest[0].lower() not in _BOOLS:
                    break
                values.append(rest.pop(0))
            if not values and hints[name] is bool:
                values = ["true"]
            if not values and hints[name] is not list[str]:
                raise ValueError(f"--{name} needs a value: --{name}=VALUE")
            before = given[name][0] if name in given and hints[name] is list[str] else []
            given[name] = (before + values, f"--{name}")
        elif presets and not word.startswith("-"):
            paths.append(word)
        else:
            raise ValueError(f"unexpected argument {word!r}; settings are written --name=value")
    return paths, given, wants_help


def _read_preset(preset, hints, aliases):
    """The settings of a preset, given as a path or as the name of a file in config/, as arguments."""
    path = next((p for p in (Path(preset), PRESET_DIR / preset, PRESET_DIR / f"{preset}.toml") if p.is_file()), None)
    if path is None:
        names = ", ".join(sorted(p.stem for p in PRESET_DIR.glob("*.toml")))
        raise ValueError(f"no preset {preset!r}; give a .toml file or one of those in config/: {names}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from None
    arguments = {}
    for name, value in table.items():
        if name not in hints:
            raise ValueError(f"{path}: unknown setting {name!r}{_hint(name, hints, aliases, '')}")
        if isinstance(value, dict):
            raise ValueError(f"{path}: {name} is a table; settings are flat: name = value")
        values = value if isinstance(value, list) else [value]
        arguments[name] = ([str(v) for v in values], f"{path}: {name}")
    return arguments


_BOOLS = {"true": "True", "yes": "True", "1": "True", "false": "False", "no": "False", "0": "False"}


def _canonical(text, kind):
    """`text` in the one spelling that tyro knows for its type: yes -> True, 1e3 -> 1000 for a whole number."""
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if kind is bool:
        return _BOOLS.get(text.lower(), text)
    if "true" in choices and "false" in choices:
        return _BOOLS.get(text.lower(), text).lower()
    if kind is int and re.fullmatch(r"[+-]?[\d_.]+(e[+-]?\d+)?", text, re.IGNORECASE):
        try:
            return str(int(text) if "e" not in text.lower() and "." not in text else _whole(text))
        except (ValueError, OverflowError):
            return text
    return text


def _whole(text):
    number = float(text)
    if number != int(number):
        raise ValueError
    return int(number)


def _build(cls, hints, helps, arguments):
    arguments = {n: ([_canonical(v, hints[n]) for v in values], where) for n, (values, where) in arguments.items()}
    for field in dataclasses.fields(cls):
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"--{field.name} is needed ({helps[field.name][0]})")
    form = _form(cls, hints, helps)
    try:
        values = _tyro(form, arguments)
    except SystemExit:
        # tyro explains in a box of several lines; ask it about one argument at a time to say which one it was.
        for name, (texts, where) in arguments.items():
            lone = dataclasses.make_dataclass("Lone", [(name, hints[name])])
            try:
                _tyro(lone, {name: (texts, where)})
            except SystemExit:
                raise ValueError(_mismatch(name, hints[name], " ".join(texts), where, helps[name][0])) from None
        raise
    return cls(**vars(values))


def _mismatch(name, kind, text, where, help):
    expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "another value")
    near = []
    if get_origin(kind) is Literal:
        expected = "one of " + ", ".join(map(str, get_args(kind)))
        near = difflib.get_close_matches(text.lower(), get_args(kind), n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{where}: {text!r} is not {expected}{meant} ({name}: {help})"


def _form(cls, hints, helps):
    """`cls` again, as tyro wants to see it: with each field's help attached."""
    import tyro

    fields = []
    for field in dataclasses.fields(cls):
        kind = Annotated[hints[field.name], tyro.conf.arg(help=helps[field.name][0])]
        default = dataclasses.field(default=field.default, default_factory=field.default_factory)
        fields.append((field.name, kind, default))
    return dataclasses.make_dataclass(cls.__name__, fields, kw_only=True)


def _tyro(form, arguments):
    import tyro

    words = []
    for name, (values, _) in arguments.items():
        one_value = len(values) == 1
        words += [f"--{name}={values[0]}"] if one_value else [f"--{name}", *values]
    with redirect_stderr(io.StringIO()):
        return tyro.cli(form, args=words, config=(tyro.conf.FlagConversionOff,), use_underscores=True)


def _print_help(cls, hints, helps, prog, description):
    import tyro

    text = io.StringIO()
    try:
        with redirect_stdout(text):
            tyro.cli(_form(cls, hints, helps), prog=prog, description=description, args=["--help"],
                     config=(tyro.conf.FlagConversionOff,), use_underscores=True)  # fmt: skip
    except SystemExit:
        print(text.getvalue(), end="")


def _hint(name, hints, aliases, dashes):
    """How to go on after an unknown setting: '; did you mean ...?' or where the setting is found."""
    targets = aliases.get(name, "").split() if name in aliases else []
    here = [t for t in targets if t in hints]
    if here:
        return "; did you mean " + " and ".join(dashes + t for t in here) + "?"
    for target in targets or [name]:
        if target in ELSEWHERE:
            return f"; {ELSEWHERE[target]} has --{target}"
    near = difflib.get_close_matches(name, list(hints), n=1)
    return f"; did you mean {dashes}{near[0]}?" if near else "; --help lists them all"


def _helps(cls):
    """{field: (help, section)} from the comments beside the fields of `cls`."""
    helps, section = {f.name: ("", "") for f in dataclasses.fields(cls)}, ""
    for line in inspect.getsource(cls).splitlines():
        if heading := re.match(r"\s+# --- (.*)", line):
            section = heading[1]
        elif (field := re.match(r"    (\w+):", line)) and field[1] in helps:
            helps[field[1]] = (line.rpartition("  # ")[2].strip() if "  # " in line else "", section)
    return helps


def to_toml(settings) -> str:
    """All settings as a preset that repeats them, each with its help."""
    helps, lines, last = _helps(type(settings)), [], ""
    for name, value in dataclasses.asdict(settings).items():
        help, section = helps[name]
        if section != last:
            lines += [""] * bool(lines) + [f"# --- {section}"]
            last = section
        lines.append(f"{name} = {_toml(value)}" + f"  # {help}" * bool(help))
    return "\n".join(lines) + "\n"


def _toml(value):
    if isinstance(value, str):  # JSON's escapes are TOML's, except that JSON leaves DEL as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _command_name():
    """How this command is called from the repository's root: train.py, prepare/text.py."""
    path = Path(sys.argv[0]).resolve()
    root = PRESET_DIR.parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _one_line(error):
    if isinstance(error, OSError) and error.strerror:
        error = f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def run(main):
    """Call main() as this process's command and exit with its code (None = 0).

    ValueError and OSError are the user's to mend: one line on stderr and exit code 1, no traceback
    (LATHE_TRACEBACK=1 shows it). Ctrl-C exits with 130, a closed pipe (`| head`) with 141, both silently.
    """
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
        code = 141
    except (ValueError, OSError) as error:
        if os.environ.get("LATHE_TRACEBACK") == "1":
            raise
        if os.environ.get("RANK", "0") != "0":
            time.sleep(3)  # a mistake that all ranks share is told by rank 0, whose exit ends the others meanwhile
        print(f"{_command_name()}: error: {_one_line(error)}", file=sys.stderr)
        code = 1
    sys.exit(code)
