"""Every setting of a training run, and which values it may have.

A setting stands in one place. Those of the network are fields of GPTConfig in model.py, and read
from its source here; all others are fields of the two classes below, in the order of --help. What
is added in either place is in --help, in presets, in settings.toml and in checkpoints: its type and
default hold everywhere, and the comment beside it, or above it, is its help.
"""

import ast
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from lathe import ROOT
from lathe.fields import PathName, read_fields

# -----------------------------------------------------------------------------
# Settings of the network: GPTConfig without what the data decides

TYPES = {"str": str, "int": int, "float": float, "bool": bool}


def model_fields() -> list[tuple]:
    """(name, type, field) of each setting of GPTConfig, as make_dataclass takes them.

    They stand below `# --- model`. They are read, not imported: model.py imports torch, which takes
    seconds, and --help is to be there at once.
    """
    source = (ROOT / "model.py").read_text(encoding="utf-8")
    settings = []
    for setting in read_fields(source, "GPTConfig"):
        if setting.section != "model":
            continue
        if isinstance(setting.type, ast.Name):
            kind = TYPES[setting.type.id]
        else:  # Literal["rope", "learned"]
            kind = Literal[ast.literal_eval(setting.type.slice)]
        default = ast.literal_eval(setting.default)
        metadata = {"help": setting.help, "section": setting.section}
        settings.append((setting.name, kind, field(default=default, metadata=metadata)))
    return settings


# -----------------------------------------------------------------------------
# All settings


@dataclass(frozen=True)
class RunSettings:
    """The section of Settings that stands before the network's."""

    # --- run
    out_dir: PathName = "out/default"  # folder that the run writes to
    # folder of token shards, as a prepare/ command writes it
    dataset: PathName = "data/python_stdlib"
    # scratch, resume, auto (resume if possible), hf:NAME_OR_FOLDER, or another run's folder
    init_from: PathName = "scratch"
    overwrite: bool = False  # start over in an out_dir that already holds a run
    new_data: bool = False  # resume although dataset or seed changed: samples come in a new order
    shift_windows: bool = True  # cut running text at other places in each epoch after the first
    seed: int = 1337  # of the weights, the order of samples, dropout and sampled text
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    # of the forward pass; weights stay float32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile the training step
    # a GPU: a pass as one CUDA graph, for small networks; Python in model.py then runs once
    cuda_graphs: bool = False
    # GPUs: the same bits each time, where GPUs and versions are the same; slower
    deterministic: bool = False
    # torchrun: each rank holds all weights (ddp), or holds and saves a shard (fsdp: FSDP2)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    # forget a block's activations, redo them
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    # torchrun: seconds without progress after which a rank ends the job with every stack
    rank_timeout: int = 600


ModelSettings = make_dataclass("ModelSettings", model_fields(), bases=(RunSettings,), frozen=True)


# Settings of earlier versions, which their files may have with the value that means off.
RETIRED = {"bigram_rows": 0}

RESUMING = ("resume", "auto")  # init_from: go on in out_dir, auto only if there is something

# As in model.py's MOST, which is not imported here since torch takes seconds
LARGEST = {"block_size": 2**24, "n_layer": 10_000, "n_head": 2**16, "n_embd": 2**20}
# More than anybody wants, and not so much that arrays of it fill the memory
LARGEST |= {"batch_size": 2**24, "micro_batch_size": 2**20, "n_hidden": 2**22, "head_dim": 2**16}
LARGEST |= {
    "ngram_rows": 2**31,
    "ngram_order": 16,
    "lora_rank": 2**16,
    "num_samples": 10_000,
    "sample_tokens": 10**6,
}


@dataclass(frozen=True)
class Settings(ModelSettings):
    """Every setting of a training run: those of RunSettings, of the network, and these.

    They stay what the user said; what is decided from them is in other objects.
    """

    # --- model
    # tokens see their own document alone, though several share a window; for fine-tuning
    document_mask: bool = False

    # --- optimization
    batch_size: int = 512  # sequences per optimizer step over all devices; 0 = by rule, see plan.py
    micro_batch_size: int = 0  # sequences per device per forward pass; 0 = auto
    # time for all of the run, start-up to last save; decides what nobody set; 0 = by max_steps
    minutes: float = 0.0
    max_steps: int = 5000  # optimizer updates; 0 = as many as 20 tokens per weight make
    tokens: int = 0  # train on this many, which decides max_steps; 0 = max_steps decides
    epochs: float = 0.0  # read the training text so often, which decides max_steps; 0 = tokens do
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for hidden matrices, AdamW for others
    learning_rate: float = 0.004  # peak rate of AdamW; 0 = by rule
    muon_learning_rate: float = 0.02  # peak rate of Muon; 0 = by rule
    ngram_learning_rate: float = 0.05  # peak rate of the table by n-grams, see ngram_rows
    weight_decay: float = 0.1  # on matrices only; -1 = by rule
    beta1: float = 0.9  # AdamW: decay of the mean of gradients
    beta2: float = 0.95  # AdamW: decay of the mean of squared gradients
    muon_momentum: float = 0.95  # Muon: decay of the momentum
    grad_clip: float = 1.0  # largest norm of the gradient; 0 = off
    # stop after this many skipped steps in a row (gradient not finite, or a spike)
    max_skipped_steps: int = 10
    skip_spikes: float = 0.0  # skip steps whose gradient norm is this many times the usual; 0 = off
    lr_schedule: Literal["wsd", "cosine", "constant"] = "wsd"  # wsd: warmup, stable, linear decay
    warmup_steps: int = 40  # steps over which the rates rise linearly
    decay_fraction: float = 0.65  # wsd: share of the run, at its end, over which the rates fall
    min_lr_fraction: float = 0.05  # wsd and cosine: last rate as a share of the peak
    # the weights of this last share of the run are averaged, too; the better ones are used
    average_fraction: float = 0.0
    # how steps went with the time in a run by minutes, so that it can be repeated; see schedule.py
    pace: list[str] = field(default_factory=list)

    # --- adaptation
    lora_rank: int = 0  # rank of the corrections that alone are trained (LoRA); 0 = all weights
    lora_alpha: float = 16.0  # corrections are multiplied by this over lora_rank

    # --- evaluation
    eval_interval: int = 250  # steps between evaluations
    eval_tokens: int = 0  # validation tokens per evaluation, always the same ones; 0 = all
    # training tokens per evaluation, to compare with: no more than validation's; 0 = none
    eval_train_tokens: int = 65536
    # scored at evaluations; see evaluate.py
    eval_tasks: list[PathName] = field(default_factory=list)
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

    # {name: "--name", or "FILE: name"} of what the user wrote; the preset that is there without
    # being asked for is not in it. No field: what was decided from it goes by the fields alone.
    given = MappingProxyType({})
    # The preset that the rest comes from where none was named.
    preset = ""

    def but(self, **values: object) -> "Settings":
        """The settings with other values, which know what the user wrote all the same."""
        other = replace(self, **values)
        object.__setattr__(other, "given", self.given)
        object.__setattr__(other, "preset", self.preset)
        return other

    def __post_init__(self):
        sizes = ("block_size", "n_layer", "n_head", "n_embd")
        counts = ("rank_timeout", "max_skipped_steps", "keep_checkpoints", "num_samples")
        for name in (*sizes, *counts, "eval_interval", "log_interval"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self._check_sizes()
        for name, value in vars(self).items():
            if not isinstance(value, int | float):
                continue
            if name == "weight_decay" and value == -1:  # by rule
                continue
            if not 0 <= value < 2**63:  # nan is refused, too
                raise ValueError(f"{name} is {value}; it must be a number from 0 to 2^63")
        for name in ("dropout", "ngram_dropout", "beta1", "beta2", "muon_momentum"):
            value = getattr(self, name)
            if value >= 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        for name in ("decay_fraction", "min_lr_fraction", "average_fraction"):
            value = getattr(self, name)
            if value > 1:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1")
        for name in ("gpus", "mfu", "dollars_per_hour"):
            value = getattr(self, name)
            if value != getattr(Settings, name) and not self.dry_run:
                raise ValueError(f"{name} is {value}, for plans alone: add --dry_run")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}; it must be above 0 and at most 1")
        if not self.out_dir.strip():
            raise ValueError("out_dir is empty; name the folder that the run writes to")
        self._check_overwrite()
        self._check_length()

    def _check_sizes(self):
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if value > most:
                raise ValueError(f"{name} is {value}; it must be {most:,} at most")
        if self.ngram_order < 2:
            raise ValueError(f"ngram_order is {self.ngram_order}; it must be 2 (pairs) or more")

    def _check_length(self):
        if self.tokens and self.epochs:
            raise ValueError(
                f"tokens is {self.tokens} and epochs is {self.epochs:g}: "
                "both say how long to train; give one"
            )

    def _check_overwrite(self):
        if self.overwrite and self.init_from == "auto":  # on with what is there, which is to go
            object.__setattr__(self, "init_from", "scratch")
        if self.overwrite and self.init_from == "resume":
            raise ValueError(
                "overwrite is true, but init_from=resume goes on with what is there: "
                "add --init_from=scratch to start over"
            )


def default_preset(given: dict[str, Any]) -> str:
    """The preset of a command line that names none: what a run that goes on was begun with, or else
    config/quickstart.toml.

    given: what was given by the settings' names, each with .values.
    """
    out_dir, init_from = "out/quickstart", ""
    if "out_dir" in given:
        out_dir = given["out_dir"].values[-1]
    if "init_from" in given:
        init_from = given["init_from"].values[-1]
    of_run = Path(out_dir).expanduser() / "settings.toml"
    if init_from in RESUMING and of_run.is_file():
        return str(of_run)
    return "quickstart"
