"""Settings, and how a preset and a command line become one object.

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
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, fields, make_dataclass
from dataclasses import field as dataclass_field
from decimal import Decimal
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
    new_data: bool = False  # resume although the dataset or the seed changed: a new order of samples begins
    seed: int = 1337  # of the weights, the order of samples, dropout and sampled text
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the forward pass; weights stay float32
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile the training step
    parallel: Literal["ddp", "fsdp"] = "ddp"  # torchrun: each rank holds all weights (ddp), or a shard (fsdp: FSDP2)
    activation_checkpointing: Literal["none", "full", "selective"] = "none"  # forget a block's activations, redo them
    rank_timeout: int = 600  # torchrun: seconds without progress after which a rank ends the job with every stack

    # --- model
    block_size: int = 1024  # context length, in tokens
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads per block
    n_kv_head: int = 0  # key/value heads, fewer than n_head for grouped queries; 0 = n_head
    head_dim: int = 0  # width of one head; 0 = n_embd / n_head
    n_embd: int = 768  # width of the residual stream
    n_hidden: int = 0  # width of the MLP; 0 = 4 n_embd, or for swiglu 8/3 n_embd rounded up to a multiple of 32
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"  # how a token knows its place
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"  # normalisation before attention, MLP and head
    norm_weight: bool = False  # learned gains in the norms
    norm_eps: float = 1e-5  # added to the variance in the norms
    activation: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = "swiglu"  # of the MLP; gelu_tanh is GPT-2's
    qk_norm: bool = True  # normalise queries and keys per head
    bias: bool = False  # biases in linear layers and layernorms
    tie_weights: bool = False  # one matrix for token embedding and output head
    zero_init: bool = True  # output projections start at zero; false = GPT-2's initialisation
    logit_softcap: float = 0.0  # squash logits to +-this with tanh; 0 = off
    bigram_rows: int = 0  # a table by pairs of tokens beside the embedding; no Hugging Face model has one; 0 = off
    dropout: float = 0.0  # probability of dropping an activation in training
    document_mask: bool = False  # tokens see their own document alone, though several share a window; for fine-tuning

    # --- optimization
    batch_size: int = 512  # sequences per optimizer step, over all devices; 0 = by rule, see plan.py
    micro_batch_size: int = 0  # sequences per device per forward pass; 0 = auto
    max_steps: int = 5000  # optimizer updates; 0 = as many as 20 tokens per weight make
    tokens: int = 0  # train on this many, which decides max_steps; 0 = max_steps decides
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for hidden matrices, AdamW for the rest
    learning_rate: float = 0.004  # peak rate of AdamW; 0 = by rule
    muon_learning_rate: float = 0.02  # peak rate of Muon; 0 = by rule
    weight_decay: float = 0.1  # on matrices only; -1 = by rule
    beta1: float = 0.9  # AdamW: decay of the mean of gradients
    beta2: float = 0.95  # AdamW: decay of the mean of squared gradients
    muon_momentum: float = 0.95  # Muon: decay of the momentum
    grad_clip: float = 1.0  # largest norm of the gradient; 0 = off
    max_skipped_steps: int = 10  # stop after this many skipped steps in a row (gradient not finite, or a spike)
    skip_spikes: float = 0.0  # skip a step whose gradient norm is this many times the usual; 0 = off
    lr_schedule: Literal["wsd", "cosine", "constant"] = "wsd"  # wsd: warmup, stable, linear decay
    warmup_steps: int = 40  # steps over which the rates rise linearly
    decay_fraction: float = 0.65  # wsd: share of the run, at its end, over which the rates fall
    min_lr_fraction: float = 0.05  # wsd and cosine: last rate as a share of the peak

    # --- adaptation
    lora_rank: int = 0  # rank of the corrections that alone are trained (LoRA), for init_from; 0 = train all weights
    lora_alpha: float = 16.0  # corrections are multiplied by this over lora_rank

    # --- evaluation
    eval_interval: int = 250  # steps between evaluations
    eval_tokens: int = 0  # validation tokens per evaluation, always the same ones; 0 = all
    eval_tasks: list[str] = dataclass_field(default_factory=list)  # scored at evaluations; see evaluate.py --tasks
    log_interval: int = 10  # steps between rows of training metrics
    checkpoint_interval: int = 0  # steps between saves; 0 = at every evaluation
    keep_checkpoints: int = 2  # newest checkpoints that stay, beside the best
    sample_prompt: str = ""  # text that evaluations continue; empty = from the start of a document
    sample_tokens: int = 200  # tokens per sample at an evaluation; 0 = no samples
    num_samples: int = 3  # samples per evaluation

    # --- reporting
    wandb_log: bool = False  # mirror the metrics to Weights & Biases
    wandb_project: str = "lathe"  # wandb project
    wandb_run_name: str = ""  # wandb run name; empty = the name of out_dir
    tensorboard_log: bool = False  # mirror the metrics to out_dir/tensorboard

    # --- planning
    dry_run: bool = False  # print parameters, FLOPs, memory, hours and cost; train nothing
    gpus: str = ""  # dry run: plan for these in place of this machine's devices, as in 8xH100
    mfu: float = 0.4  # dry run: share of the GPUs' peak that is reached
    dollars_per_hour: float = 0.0  # dry run: price of a GPU

    def __post_init__(self):
        positive = "block_size n_layer n_head n_embd eval_interval log_interval keep_checkpoints "
        positive += "rank_timeout max_skipped_steps"
        for name, value in vars(self).items():
            if name in positive.split() and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
            least = -1 if name == "weight_decay" else 0
            if isinstance(value, int | float) and not (0 <= value < 2**63 or value == least):  # nan fails too
                raise ValueError(f"{name} is {value}; it must be a number from 0 to 2^63")
        for name in ("dropout", "beta1", "beta2", "muon_momentum"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        for name in ("decay_fraction", "min_lr_fraction"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        for name in ("gpus", "mfu", "dollars_per_hour"):
            if not self.dry_run and getattr(self, name) != getattr(Settings, name):
                raise ValueError(f"{name} is {getattr(self, name)}, for plans alone: add --dry_run")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}; it must be above 0 and at most 1")
        if not self.out_dir.strip():
            raise ValueError("out_dir is empty; name the folder that the run writes to")


# The settings above and of other commands -> what users of nanoGPT, llm.c, Hugging Face and others call them.
_ALSO_CALLED = {
    "max_steps": "max_iters num_iterations num_steps total_steps train_steps steps iters epochs num_train_epochs",
    "gpus": "num_gpus n_gpus world_size",
    "dollars_per_hour": "price cost",
    "dry_run": "dryrun plan estimate",
    "tokens": "total_tokens train_tokens target_tokens token_budget",
    "batch_size": "bs global_batch_size train_batch_size total_batch_size",
    "batch_size micro_batch_size": "gradient_accumulation_steps grad_accum_steps accumulation_steps",
    "micro_batch_size": "device_batch_size per_device_train_batch_size mbs",
    "learning_rate": "lr max_lr",
    "muon_learning_rate": "muon_lr matrix_lr",
    "min_lr_fraction": "min_lr final_lr_frac learning_rate_decay_frac",
    "lr_schedule": "decay_lr schedule scheduler lr_scheduler_type",
    "decay_fraction": "lr_decay_iters cooldown_frac warmdown_ratio",
    "warmup_steps": "warmup warmup_iters warmup_ratio",
    "activation_checkpointing": "gradient_checkpointing grad_checkpointing recompute",
    "rank_timeout": "timeout ddp_timeout nccl_timeout",
    "optimizer": "optim",
    "weight_decay": "wd",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "beta1 beta2": "betas",
    "muon_momentum": "momentum",
    "grad_clip": "clip max_grad_norm clip_grad_norm",
    "lora_rank": "lora lora_r",
    "n_layer": "num_layers num_hidden_layers layers depth",
    "n_head": "num_heads num_attention_heads heads",
    "n_kv_head": "num_key_value_heads num_kv_heads n_query_groups",
    "head_dim": "head_size",
    "n_embd": "hidden_size embed_dim d_model dim model_dim",
    "n_hidden": "intermediate_size n_inner ffn_dim d_ff",
    "block_size": "context_length n_ctx n_positions max_position_embeddings max_seq_len sequence_length seq_len",
    "activation": "activation_function hidden_act",
    "position": "position_embedding position_embedding_type",
    "rope_theta": "rope_base",
    "norm_eps": "layer_norm_eps layer_norm_epsilon rms_norm_eps",
    "bias": "use_bias",
    "tie_weights": "tie_word_embeddings tied_embeddings",
    "logit_softcap": "softcap final_logit_softcapping",
    "eval_interval": "eval_steps eval_every val_interval val_loss_every sample_every",
    "eval_tokens": "eval_iters val_max_steps",
    "log_interval": "log_every logging_steps",
    "checkpoint_interval": "save_interval save_steps save_every checkpoint_every",
    "checkpoint_interval keep_checkpoints": "always_save_checkpoint",
    "keep_checkpoints": "save_total_limit",
    "out_dir": "output_dir save_dir log_dir",
    "overwrite": "overwrite_output_dir force",
    "dataset": "data data_dir dataset_dir dataset_name input_bin",
    "init_from": "resume resume_from_checkpoint finetune",
    "init_from model": "model_name_or_path pretrained",
    "out_dir model": "init_from",
    "out_dir init_from": "checkpoint ckpt",
    "seed": "random_seed",
    "dtype": "precision bf16 fp16 amp",
    "device": "gpu cuda cpu",
    "device parallel": "backend",
    "parallel": "ddp fsdp strategy",
    "compile": "torch_compile use_compile",
    "wandb_log": "wandb use_wandb",
    "wandb_run_name": "wandb_name run_name",
    "wandb_log tensorboard_log": "report_to",
    "tensorboard_log": "tensorboard",
    "evaluate.py": "eval_only",
    "prompt": "start",
    "max_new_tokens": "max_length max_tokens num_tokens n_predict",
    "repetition_penalty": "repeat_penalty rep_pen",
    "temperature": "temp",
    "num_samples": "num_return_sequences n_samples",
    "stop": "stop_token stop_sequence",
    "out": "out_path",
    "tokenizer": "encoding",
    "val_fraction": "val_split val_ratio",
    "workers": "num_proc num_workers",
}
ALIASES = {alias: ours for ours, aliases in _ALSO_CALLED.items() for alias in aliases.split()}

# Where a right name belongs that was given to the wrong command; the fields of Settings belong to train.py.
ELSEWHERE = {
    "prepare/text.py": "input tokenizer val_fraction workers field",
    "sample.py": "prompt prompt_file prompts interactive max_new_tokens temperature top_k top_p min_p stream format "
    "repetition_penalty frequency_penalty presence_penalty stop stop_ids ignore_eot logprobs",
    "evaluate.py": "tasks limit stride by_position",
}


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
    places = (Path(preset), PRESET_DIR.parent / preset, PRESET_DIR / preset, PRESET_DIR / f"{preset}.toml")
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
    values = _converted(arguments, hints, _helps(cls))
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

    helps, hints, sections = _helps(cls), get_type_hints(cls), {}
    for field in fields(cls):
        help, section = helps[field.name]
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


def _helps(cls):
    """{field: (help, section)} from the comments in the source of `cls`."""
    helps, section, current = {field.name: ("", "") for field in fields(cls)}, "", ""
    sources = [textwrap.dedent(inspect.getsource(c)) for c in cls.__mro__[-2::-1]]  # first those that cls extends
    for line in "".join(sources).splitlines():
        if heading := re.match(r" +# --- (.+)", line):
            section = heading[1]
        if (field := re.match(r"    (\w+):", line)) and field[1] in helps:
            current = field[1]
            helps[current] = ("", section)
        if current and "  # " in line and not helps[current][0]:  # on the last line of a field that takes several
            helps[current] = (line.rpartition("  # ")[2], section)
    return helps


def to_toml(settings) -> str:
    """All settings as a preset that repeats them, with their sections and help as comments."""
    helps, lines, section = _helps(type(settings)), [], ""
    for field in fields(settings):
        help, its_section = helps[field.name]
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
    path, root = Path(sys.argv[0]).resolve(), PRESET_DIR.parent
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


@contextmanager
def lock_folder(setting, folder):
    """Hold the folder that a setting names, inside the context or until the process ends, however it ends.

    OSError, naming the holder, if another process has it, or if it cannot be written. The file `lock` stays: if each
    holder removed its own, a second and a third could hold two different ones.
    """
    import socket

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+", encoding="utf-8")
    except OSError as error:
        text = f"{setting} {folder} cannot be written ({error.strerror}): choose another --{setting}"
        raise OSError(text) from None
    with file:
        try:
            if os.name == "nt":
                import msvcrt

                file.seek(1 << 30)  # a byte far behind the text, so that others can still read who holds it
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            text = f"{setting} {folder} is in use by {holder}: wait, stop it, or choose another --{setting}"
            raise OSError(text) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield folder


def check(cls, **parser):
    """parse() for its errors and --help alone, before slow imports, in which Ctrl-C then just ends the process."""
    parse(cls, **parser)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(main):
    """Call main() as this process's command and exit with what it returns (None = 0).

    ValueError and OSError are the user's to mend: one line on stderr and exit code 1; LATHE_TRACEBACK=1 shows where
    they came from. Ctrl-C exits with 130 and a closed pipe (`| head`) with 141, both silently.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main()
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
