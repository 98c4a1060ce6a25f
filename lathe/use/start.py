"""What training begins with: new weights, another model's, or its own from where it stopped."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lathe import hints
from lathe.data.batches import epoch_sizes
from lathe.data.dataset import Dataset
from lathe.optim.optimizer import from_own_rows, like_parameter
from lathe.optim.schedule import Leg, read_pace
from lathe.reading import reading
from lathe.run import checkpoint, devices, ranks
from lathe.run.dial import LENGTHS, SIZES, Text, settle_length, sized, turn_dial
from lathe.run.metrics import read_lines
from lathe.run.plan import NETWORK, SHAPE, Plan, refuse_what_no_memory_holds, resolve
from lathe.run.process import seed_everything
from lathe.settings import RESUMING, Settings
from lathe.use import lora, nanogpt, network
from lathe.use.find_model import FoundModel, find_model
from lathe.use.hf import find as hf_find
from model import GPT, GPTConfig

# -----------------------------------------------------------------------------
# Which run is meant


def which_run(s: Settings, say: Callable[[str], None]) -> Settings:
    """The settings, with the folder, the start and the length that they mean in this place and this
    attempt."""
    return settle_length(go_on_after_restart(in_its_folder(s, say)), say)


def in_its_folder(s: Settings, say: Callable[[str], None]) -> Settings:
    """A run's settings.toml means the run's folder, wherever that was copied or moved to, and from
    wherever it is named; --out_dir says otherwise."""
    file_name, _, setting = s.given.get("out_dir", "").rpartition(": ")
    path = Path(file_name)
    folder = path.parent
    if setting != "out_dir" or path.name != "settings.toml":
        return s
    if not hints.is_run(folder) or folder.resolve() == Path(s.out_dir).resolve():
        return s
    say(f"out_dir is {folder}, where {path} lies, not {s.out_dir}, as is written in it")
    return s.but(out_dir=str(folder))


def go_on_after_restart(s: Settings) -> Settings:
    """torchrun's --max-restarts starts the same command again: whatever it began with, it then goes
    on with what it has saved."""
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if is_first or s.init_from in RESUMING:
        return s
    job = ranks.job_id()
    starts = read_lines(Path(s.out_dir) / "starts.jsonl")
    if not starts or starts[-1].get("job") != job or not checkpoint.list_checkpoints(s.out_dir):
        return s
    return s.but(init_from="resume", overwrite=False)


# -----------------------------------------------------------------------------
# What it begins with


def find_start(s: Settings, say: Callable[[str], None]) -> str | None:
    """What init_from means: a checkpoint's folder, verified, or hf:FOLDER; None for new weights.

    Every rank calls it. Damaged checkpoints are named to say(). Raises ValueError or OSError where
    there is no such.
    """
    if s.init_from in RESUMING:
        return find_own_checkpoint(s, say)
    if s.init_from == "scratch":
        return None
    if s.init_from.startswith("hf:"):
        return ranks.on_main(lambda: f"hf:{hf_find.find(s.init_from)}")
    file = nanogpt.find(s.init_from)
    if file is not None:
        return str(file)
    keyword = hints.near(s.init_from, list(hints.KEYWORDS))
    if keyword and not Path(s.init_from).exists():
        raise ValueError(f"init_from is {s.init_from!r}: did you mean {keyword}?")
    try:
        folder = checkpoint.find_checkpoint(s.init_from)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"init_from: {error}") from None
    if Path(s.out_dir).resolve() in folder.resolve().parents:
        raise ValueError(
            f"init_from {folder} lies in out_dir {s.out_dir}, which is written over: "
            "choose another --out_dir"
        )
    return str(folder)


def find_own_checkpoint(s: Settings, say: Callable[[str], None]) -> str | None:
    """The newest whole checkpoint in out_dir; None where there is none, and init_from is auto."""
    path, faults = checkpoint.newest_checkpoint(s.out_dir)
    for fault in faults:
        say(f"skipped: {fault}")
    if path is not None:
        checkpoint.check_resumable(path)
        return str(path)
    if s.init_from == "auto" and not faults:
        return None
    what = "no whole checkpoint" if faults else "no checkpoint"
    file = nanogpt.find(s.out_dir)
    if file is not None:
        raise ValueError(
            f"init_from={s.init_from}: {file} is nanoGPT's, whose optimizer is another: train its "
            f"weights further with --init_from={file} and another --out_dir"
        )
    raise FileNotFoundError(
        f"init_from={s.init_from}, but {s.out_dir} holds {what}: --init_from=scratch starts anew"
    )


def open_start(spec: str | None, block_size: int) -> FoundModel | None:
    """The model that find_start names; a context of Hugging Face's is cut to block_size."""
    if spec is None:
        return None
    start = find_model(spec, verified=True).with_all_ids()
    if spec.startswith("hf:") or start.is_nanogpt:
        start = start.with_context(block_size)
    return start


# -----------------------------------------------------------------------------
# What is trained


def plan_run(
    s: Settings,
    runtime: devices.Runtime,
    dataset: Dataset | None,
    start: FoundModel | None,
    device_memory: float = 0.0,
    spent: float = 0.0,
) -> Plan:
    """Decide all that the settings leave open. Both a run and its dry run begin with this.

    dataset: None if it is not prepared, for a dry run. device_memory: see resolve. spent: seconds
    since the process began. Raises ValueError for settings, data and weights that do not go
    together.
    """
    if dataset is None:
        vocab_size = assumed_vocab_size(s.dataset)
        eot_id = 0
    else:
        vocab_size = dataset.vocab_size
        eot_id = dataset.tokenizer().eot_id
        if start is not None:
            check_tokenizer(dataset, start, s)
    notes = said_without_effect(s)
    if start is not None and s.init_from in RESUMING:
        s = as_it_went(s, start)
        config = choose_network(s, vocab_size, eot_id, start)
    elif s.minutes:
        network_of = partial(choose_network, vocab_size=vocab_size, eot_id=eot_id, start=start)
        s, config, lines = dial(s, runtime, dataset, network_of, start is not None, spent)
        notes += lines
    else:
        config = choose_network(s, vocab_size, eot_id, start)
    if r"\n" in s.sample_prompt:
        notes.append(r"sample_prompt has a backslash and an n, not a line's end")
    if s.given and s.preset and not s.minutes:
        notes.append(f"no preset is named: what the command line leaves open is as in {s.preset}")
    if start is not None and s.init_from not in RESUMING:
        notes += shapes_without_effect(s, start)
    if dataset is not None and s.sample_tokens and s.sample_prompt:
        s, note = with_prompt_that_fits(s, dataset)
        notes += note
    if s.epochs:
        s, note = with_tokens_for_epochs(s, dataset)
        notes.append(note)
    shapes = network.without_weights(config)
    if s.lora_rank:
        lora.adapt(shapes, s.lora_rank, s.lora_alpha)
    resumed = None
    if start is not None and s.init_from in RESUMING:
        resumed = start.state
    plan = resolve(s, runtime, shapes, resumed, device_memory)
    if plan.resumed:
        refuse_another_optimizer(plan.settings, start)
    return replace(plan, notes=tuple(notes))


def dial(
    s: Settings,
    runtime: devices.Runtime,
    dataset: Dataset | None,
    network_of: Callable[[Settings], GPTConfig],
    has_weights: bool,
    spent: float,
) -> tuple[Settings, GPTConfig, list[str]]:
    """Settings, network and a line about each choice, for a run of so many minutes."""
    if dataset is None and "minutes" in s.given:
        raise FileNotFoundError(
            f"minutes is {s.minutes:g}, which needs the text: prepare {s.dataset} first"
        )
    if dataset is None:
        s = s.but(minutes=0.0)
        return s, network_of(s), ["a run by minutes is planned once the dataset is prepared"]
    dtype = str(runtime.dtype).removeprefix("torch.")
    resolved = s.but(device=runtime.device.type, dtype=dtype)
    text = Text(
        dataset.train.n_tokens,
        min(stream.n_tokens for stream, _ in dataset.parts),
        dataset.val.n_tokens,
    )
    smallest = s if has_weights else sized(s, SIZES[0], text)
    shapes = network.without_weights(network_of(smallest))
    refuse_what_no_memory_holds(resolved, shapes, runtime.world_size)
    dialled = turn_dial(s, runtime, network_of, text, spent, has_weights)
    return dialled.settings, dialled.config, dialled.lines


# Of a run by minutes these are decided anew by each process, or say where and how it goes on.
ANEW = ("out_dir", "dataset", "init_from", "overwrite", "new_data", "device", "dtype", "compile")
ANEW += ("micro_batch_size", "parallel", "rank_timeout", "dry_run", "minutes", *LENGTHS)


def as_it_went(s: Settings, start: FoundModel) -> Settings:
    """The settings with which a run is gone on with: by minutes, those that it was given or chose.

    Raises ValueError where a run by steps is to go on by minutes, or none are left.
    """
    was = start.state["settings"]
    with reading(start.folder, "is damaged: state.json does not say how the run went"):
        budget = float(was.get("minutes", 0.0))
        legs = read_pace(was.get("pace", [])) or [Leg(0, 0.0, int(was["max_steps"]))]
        spent = float(start.state["train"].get("spent", 0.0))
    if not budget:
        if s.minutes and "minutes" in s.given:
            raise ValueError(
                f"minutes is {s.minutes:g}, but the run in {s.out_dir} goes by steps: --max_steps=N"
            )
        return s.but(minutes=0.0)
    kept = {"pace": [str(leg) for leg in legs], "max_steps": legs[-1].last_step}
    for name, value in was.items():
        if name not in s.given and name not in ANEW and hasattr(s, name):
            kept[name] = value
    by_steps = [name for name in LENGTHS if s.given.get(name, "").startswith("--")]
    if by_steps:
        kept |= {name: getattr(s, name) for name in by_steps}
        return s.but(**kept | {"minutes": 0.0})
    asked = s.minutes if "minutes" in s.given and s.minutes else budget
    if asked != budget and 60 * asked <= spent:
        raise ValueError(
            f"minutes is {asked:g}, but the run in {s.out_dir} has spent {spent / 60:.1f}: ask for "
            "more than these"
        )
    if asked != budget:
        kept |= another_budget(start.state["step"], legs, asked / budget)
    return s.but(**kept, minutes=asked, tokens=0, epochs=0.0)


def another_budget(step: int, legs: list[Leg], ratio: float) -> dict:
    """max_steps and pace of a run that goes on from `step` with `ratio` times the minutes."""
    share = min(legs[-1].share_at(step) / ratio, 0.999)
    last_step = max(step + 1, round(legs[-1].last_step * ratio))  # the clock will correct it
    legs = [leg for leg in legs if leg.step < step]
    legs.append(Leg(step, share, last_step))
    return {"max_steps": last_step, "pace": [str(leg) for leg in legs]}


# Settings that act only where another has such a value: {setting: (the other, whether it does)}
ACTS_WHERE = {
    "max_steps": ("tokens", lambda tokens: not tokens),
    "optimizer": ("lora_rank", lambda rank: not rank),
    "lora_alpha": ("lora_rank", bool),
    "muon_learning_rate": ("optimizer", lambda optimizer: optimizer == "muon"),
    "muon_momentum": ("optimizer", lambda optimizer: optimizer == "muon"),
    "decay_fraction": ("lr_schedule", lambda schedule: schedule == "wsd"),
    "min_lr_fraction": ("lr_schedule", lambda schedule: schedule != "constant"),
    "sample_prompt": ("sample_tokens", bool),
    "num_samples": ("sample_tokens", bool),
    "wandb_project": ("wandb_log", bool),
    "wandb_run_name": ("wandb_log", bool),
    "new_data": ("init_from", lambda init_from: init_from in RESUMING),
}


def said_without_effect(s: Settings) -> list[str]:
    """A line about what the command line sets and another setting leaves without effect."""
    idle = []
    for name, (other, acts) in ACTS_WHERE.items():
        if s.given.get(name, "").startswith("--") and not acts(getattr(s, other)):
            idle.append(f"{name} (since {other} is {getattr(s, other) or 'off'})")
    return [f"without effect: {', '.join(idle)}"] if idle else []


def shapes_without_effect(s: Settings, start: FoundModel) -> list[str]:
    """A line about what the user wrote of the network and the weights have otherwise."""
    ignored = []
    for name in SHAPE:
        asked = getattr(s, name)
        has = getattr(start.config, name)
        if name in s.given and asked != has:
            ignored.append(f"{name}={has}, not {asked}")
    if not ignored:
        return []
    return [f"the network is that of {start.folder}, whatever was asked for: {', '.join(ignored)}"]


def with_prompt_that_fits(s: Settings, dataset: Dataset) -> tuple[Settings, list[str]]:
    """The settings without a preset's sample_prompt that the tokenizer has no ids for, and a line
    about that; without quickstart's, for its own dataset, on another. Raises ValueError if it was
    written on the command line."""
    of_quickstart = Path(s.preset).name == "quickstart.toml" and "sample_prompt" not in s.given
    if of_quickstart and s.dataset != Settings.dataset:
        return replace(s, sample_prompt=""), []
    try:
        dataset.prompt_ids(s.sample_prompt)
    except ValueError as error:
        reason = f"sample_prompt is {s.sample_prompt!r}, which {s.dataset} has no ids for: {error}"
        if s.given.get("sample_prompt", "").startswith("--"):
            raise ValueError(reason) from None
        return replace(s, sample_prompt=""), [f"{reason}; samples begin without a prompt"]
    return s, []


def with_tokens_for_epochs(s: Settings, dataset: Dataset | None) -> tuple[Settings, str]:
    """The settings with `tokens` in place of `epochs`, and a line about that. Raises ValueError if
    nobody knows yet how many there are."""
    if dataset is None:
        raise ValueError(
            f"epochs is {s.epochs:g}, but dataset {s.dataset} is not prepared, so that nobody "
            "knows how many tokens that are: prepare it, or give --tokens"
        )
    sizes = epoch_sizes(dataset, s.block_size, s.shift_windows)
    n_windows = math.ceil(sizes.samples(s.epochs))
    tokens = n_windows * s.block_size
    note = f"tokens {tokens:,}: {s.epochs:g} epochs of {dataset.train.n_tokens:,} training tokens"
    return s.but(tokens=tokens, epochs=0.0), note


def assumed_vocab_size(dataset: str) -> int:
    """Of a dataset that is not there yet: what its prepare/ command makes, or else GPT-2's."""
    return {"python_stdlib": 1024, "shakespeare_char": 66}.get(Path(dataset).name, 50257)


def check_tokenizer(dataset: Dataset, start: FoundModel, s: Settings):
    """Raises ValueError if the model has learned with other tokens than the dataset's."""
    if start.tokenizer.fingerprint != dataset.tokenizer_fingerprint:
        if s.init_from in RESUMING:  # most often out_dir is one that nobody named
            elsewhere = (
                f"train it in a run of its own, --out_dir=out/{Path(dataset.path).name}, or "
            )
        else:
            elsewhere = ""
        raise ValueError(
            f"dataset {dataset.path} has tokenizer {dataset.tokenizer_name}, "
            f"the checkpoint {start.folder} {start.tokenizer.name} (or another version of it): "
            f"{elsewhere}prepare the data with --tokenizer={start.tokenizer_spec}"
        )


def choose_network(
    s: Settings, vocab_size: int, eot_id: int, start: FoundModel | None
) -> GPTConfig:
    """The network that is trained: as the settings say, or as the weights need it.

    Raises ValueError for LoRA without weights, and for a run that would go on with another network.
    """
    if s.lora_rank and start is None:
        raise ValueError(
            f"lora_rank is {s.lora_rank} without a model to adapt: add --init_from=RUN or hf:NAME"
        )
    document_token = eot_id if s.document_mask else -1
    if start is None:
        settings = {name: getattr(s, name) for name in NETWORK}
        return GPTConfig(vocab_size=vocab_size, document_token=document_token, **settings)
    if s.init_from in RESUMING:
        refuse_another_network(s, start)
    dropouts = dict(dropout=s.dropout, ngram_dropout=s.ngram_dropout)
    return replace(start.config, **dropouts, document_token=document_token)


def refuse_another_network(s: Settings, start: FoundModel):
    """Raises ValueError, with what was and is, if the network is not the checkpoint's. What nobody
    has asked for is as it was."""
    values = {}
    for name in NETWORK:
        is_asked = not s.given or name in s.given
        values[name] = getattr(s if is_asked else start.config, name)
    asked = GPTConfig(**values)
    was = {name: getattr(start.config, name) for name in SHAPE}
    now = {name: getattr(asked, name) for name in SHAPE}
    for name in ("lora_rank", "lora_alpha"):
        was[name] = start.state["settings"].get(name, getattr(Settings, name))
        now[name] = getattr(s, name)
    differences = []
    for name in sorted(was):
        if was[name] != now[name]:
            differences.append(f"{name} {was[name]} -> {now[name]}")
    if differences:
        what = ", ".join(differences)
        raise ValueError(
            f"cannot resume {s.out_dir} with another network: {what}; leave that out, or train it "
            "in another --out_dir, or here from the beginning with --init_from=scratch --overwrite"
        )


def refuse_another_optimizer(s: Settings, start: FoundModel):
    """Raises ValueError if the optimizer is not the checkpoint's, whose state has other meanings,
    also where its tensors have the same names."""
    was = start.state["settings"].get("optimizer", s.optimizer)
    if was != s.optimizer:
        raise ValueError(
            f"cannot resume {s.out_dir} with another optimizer: optimizer {was} -> {s.optimizer}; "
            f"go on with --optimizer={was}, or take the weights alone into another --out_dir with "
            f"--init_from={start.folder}"
        )


def build_model(plan: Plan, start: FoundModel | None) -> GPT:
    """The network with the weights that training begins with; where is_filled_later says so, its
    shapes alone."""
    s = plan.settings
    if is_filled_later(plan, start):
        model = network.without_weights(plan.config)
        if s.lora_rank:
            with torch.device("meta"):
                lora.adapt(model, s.lora_rank, s.lora_alpha)
        return model
    model = GPT(plan.config)
    weights = {}
    if start is not None:
        weights = start.weights(merged=not plan.resumed)
    if s.lora_rank:
        weights = lora.adapt(model, s.lora_rank, s.lora_alpha) | weights
    if weights:
        model.load_state_dict(weights)
    return model


def is_filled_later(plan: Plan, start: FoundModel | None) -> bool:
    """Whether fill_rows gives the network its weights once it is sharded, so that no rank ever has
    them all.

    So it is with new weights, and with a checkpoint's as they are. Corrections of LoRA are added
    to, or begun beside, whole ones, and Hugging Face's are read whole.
    """
    if plan.settings.parallel != "fsdp":
        return False
    if start is None or plan.resumed:
        return True
    if not start.state:
        return False
    return not (plan.settings.lora_rank or start.state["settings"].get("lora_rank"))


def fill_rows(model: GPT, plan: Plan, start: FoundModel | None, runtime: devices.Runtime):
    """Give a sharded network that has only shapes this rank's rows of the weights that it begins
    with: a checkpoint's, or new ones as build_model would draw them.

    Raises ValueError if a checkpoint's do not fit.
    """
    if start is None:
        seed_everything(plan.settings.seed)
        drawn = network.initial_rows(plan.config, runtime.rank, runtime.world_size)
        rows = {}
        for name, p in model.state_dict().items():
            rows[name] = from_own_rows(drawn.pop(name).to(runtime.device), p)
    else:
        rows = saved_rows(model, start, runtime.device)
    model.load_state_dict(rows, assign=True)


def saved_rows(model: GPT, start: FoundModel, device: torch.device) -> dict[str, Tensor]:
    """A checkpoint's weights by name, of which this rank reads its rows.

    Raises ValueError if they do not fit the network, which is sharded.
    """
    saved = checkpoint.open_weights(start.folder)
    params = model.state_dict()
    here = {name: tuple(p.shape) for name, p in params.items()}
    there = {name: tensor.shape for name, tensor in saved.items()}
    differ = dict(here.items() ^ there.items())
    if differ:
        name = min(differ)
        raise ValueError(
            f"the weights in {start.folder} do not fit its settings: {name} is "
            f"{there.get(name)} there and {here.get(name)} here"
        )
    return {name: like_parameter(saved[name], p, device).to(p.dtype) for name, p in params.items()}
