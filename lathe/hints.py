"""What somebody meant who named a file or folder of another kind than the one asked for.

Whoever cannot use a path says what lies there, and where that is used. A hint that is not sure says
what there is instead. Nothing here opens a file: names tell, and this is for mistakes alone.
"""

import shlex
from pathlib import Path

from lathe import ROOT
from lathe.commands import command_line

MOST_NAMES = 6  # that one line lists
KEYWORDS = ("scratch", "resume", "auto")  # of init_from
TEXT_SUFFIXES = {".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".py", ".gz", ".zst"}
# On the Hub without an owner's name before them
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-community/gpt2")


# -----------------------------------------------------------------------------
# What lies there


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def is_checkpoint(path: Path) -> bool:
    return (path / "state.json").is_file()


def is_dataset(path: Path) -> bool:
    return (path / "meta.json").is_file()


def is_hugging_face(path: Path) -> bool:
    return (path / "config.json").is_file()


def kind_of(path: Path) -> str:
    """What a path is, in words, for "PATH is ...": what it holds, or that it is not there."""
    if not path.exists():
        return "not there"
    if path.is_file():
        return "a file"
    if is_run(path):
        return "a run's folder"
    if is_checkpoint(path):
        return "a checkpoint"
    if is_dataset(path):
        return "a dataset"
    if is_hugging_face(path):
        return "a folder of Hugging Face's"
    return "a folder"


def runs_in(*folders: str | Path) -> list[str]:
    """Folders of runs in these folders, the newest first."""
    runs = [path.parent for folder in folders for path in Path(folder).glob("*/checkpoints")]
    return [str(path) for path in sorted(runs, key=age)]


def datasets_in(*folders: str | Path) -> list[str]:
    """Datasets in these folders, the newest first."""
    metas = [path.parent for folder in folders for path in Path(folder).glob("*/meta.json")]
    return [str(path) for path in sorted(metas, key=age)]


def age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def listed(names: list[str]) -> str:
    """The first of them, and how many there are beside."""
    shown = ", ".join(names[:MOST_NAMES])
    n_others = len(names) - MOST_NAMES
    return f"{shown} and {n_others} more" if n_others > 0 else shown


def near(name: str, names: list[str], cutoff: float = 0.7) -> str:
    """The one of `names` that this is a misspelling of, by its last part; "" if none is near."""
    import difflib  # for mistakes alone

    last_parts = {Path(other).name: other for other in reversed(names)}
    matches = difflib.get_close_matches(Path(name).name, last_parts, n=1, cutoff=cutoff)
    return last_parts[matches[0]] if matches else ""


# -----------------------------------------------------------------------------
# Instead of a run


WHERE_HF_STANDS = (
    "after --model in sample.py, evaluate.py and visualize.py, --init_from in train.py, and "
    "--out_dir in huggingface.py"
)


def instead_of_run(name: str | Path) -> str:
    """Why there is no model under this name, and what to write for what is meant."""
    path = Path(name)
    quoted = shlex.quote(str(name))
    if path.is_file():
        for folder in path.parents[:3]:
            if is_checkpoint(folder) or is_run(folder):
                return f"{name} is a file of a run: name its folder, {folder}"
        return f"{name} is a file: name a run's folder{runs_here()}"
    if is_dataset(path):
        return f"{name} is a dataset, and no model: --dataset={quoted}{runs_here()}"
    if is_hugging_face(path):
        return f"{name} is a folder of Hugging Face's: write hf:{name}, {WHERE_HF_STANDS}"
    if path.is_dir():
        if path.name == "checkpoints":
            return f"{name} lies in a run's folder: name that, {path.parent}"
        runs = runs_in(path)
        if runs:
            return f"{name} holds no checkpoints, but runs: {listed(runs)}"
        return f"{name} holds no checkpoints (expected {name}/checkpoints/step-N){runs_here()}"
    if is_hub_name(str(name)):
        return (
            f"{name} does not exist here; a model of Hugging Face's is written hf:{name}, "
            f"{WHERE_HF_STANDS}"
        )
    return f"{name} does not exist{runs_here(str(name))}"


def instead_of_hf(name: str) -> str:
    """What to write for a --model that does not begin with hf:."""
    if is_run(Path(name)) or is_checkpoint(Path(name)):
        return f"a run is named with --out_dir={shlex.quote(name)}"
    if is_hugging_face(Path(name)) or is_hub_name(name):
        return f"did you mean --model=hf:{name}?"
    return "write --model=hf:NAME_OR_FOLDER, or --out_dir=RUN for a run"


def is_hub_name(name: str) -> bool:
    """Whether a name that is no path looks like a model's on the Hub."""
    if name in HUB_NAMES:
        return True
    owner, slash, model = name.partition("/")
    is_one = bool(slash and model) and "/" not in model
    return is_one and owner not in (".", "..", "~", "out") and not Path(owner).exists()


def runs_here(name: str = "") -> str:
    """How a sentence goes on about the runs that there are."""
    runs = runs_in("out", ".")
    if not runs:
        return f": there is no run here yet, {command_line('train.py')} trains one"
    meant = near(name, runs, cutoff=0.5) if name else ""
    if meant:
        return f"; did you mean {meant}?"
    return f"; runs here: {listed(runs)}"


# -----------------------------------------------------------------------------
# Instead of a dataset


def instead_of_dataset(folder: Path, of_pairs: bool = False) -> str:
    """What is wrong with a folder without meta.json, and the command that mends it.

    of_pairs: the dataset is to hold prompts and completions.
    """
    script = "pairs" if of_pairs else "text"
    if folder.is_file():
        return f"dataset {folder} is a file: prepare it first, with `{prepare(script, folder)}`"
    if (folder / "progress.jsonl").is_file():
        return (
            f"dataset {folder} is unfinished (no meta.json): run the same prepare command again to "
            f"continue it"
        )
    if (folder / "train.bin").is_file():
        tokenizer = folder if (folder / "meta.pkl").is_file() else "TOKENIZER"
        return (
            f"dataset {folder} has no meta.json; for nanoGPT's headerless files write "
            f"dataset=raw:{tokenizer}:{folder}"
        )
    if is_run(folder) or is_checkpoint(folder):
        return f"dataset {folder} is {kind_of(folder)}, with a model{datasets_here()}"
    datasets = datasets_in(folder)
    if datasets:
        return f"dataset {folder} holds datasets, and is none: choose one, {listed(datasets)}"
    own = own_script(folder)
    if folder.is_dir() and not own and any(folder.iterdir()):
        return (
            f"dataset {folder} holds no prepared dataset (no meta.json); if these are texts: "
            f"`{prepare(script, folder)}`"
        )
    is_missing = f"dataset {folder} does not exist"
    if folder.is_dir():
        is_missing = f"dataset {folder} is not prepared"
    meant = near(str(folder), datasets_in("data", "."), cutoff=0.8)
    if meant:
        return f"{is_missing}; did you mean --dataset={shlex.quote(meant)}?"
    if own:
        script, *words = own.split()
        return f"{is_missing}: make it with `{command_line(f'prepare/{script}', *words)}`"
    if folder.suffix in TEXT_SUFFIXES:
        return (
            f"{is_missing}, and there is no file of that name to prepare: with one, "
            f"`{prepare(script, folder)}`"
        )
    words = ["--input", "YOUR_TEXT"]
    if of_pairs:
        words.append("--tokenizer=THE_MODEL")
    command = command_line(f"prepare/{script}.py", *words, "--out", str(folder))
    return f"{is_missing}: make it with `{command}`"


def own_script(folder: Path) -> str:
    """The command in prepare/ that makes a dataset of this name; "" if none does."""
    if folder.name in ("text", "pairs", "sources", "verify", "examples"):
        return ""
    if folder.name.startswith("example_"):
        return f"examples.py {folder.name.removeprefix('example_')}"
    is_there = (ROOT / "prepare" / f"{folder.name}.py").is_file()
    return f"{folder.name}.py" if is_there else ""


def prepare(script: str, text: Path) -> str:
    """A command that prepares a file or a folder of texts."""
    name = text.resolve().name
    for suffix in reversed(text.suffixes):
        name = name.removesuffix(suffix)
    return command_line(f"prepare/{script}.py", "--input", str(text), "--out", f"data/{name}")


def datasets_here() -> str:
    """How a sentence goes on about the datasets that there are."""
    datasets = datasets_in("data", ".")
    return f"; datasets here: {listed(datasets)}" if datasets else "; there is no dataset here yet"


# -----------------------------------------------------------------------------
# Instead of a preset, and bare words

# nanoGPT's configuration files, and what does the same here
NANOGPT = {
    "train_shakespeare_char": "train.py config/shakespeare_char.toml",
    "train_gpt2": "train.py config/gpt2_124m.toml",
    "finetune_shakespeare": "train.py config/finetune_gpt2.toml",
    "eval_gpt2": "evaluate.py --model=hf:gpt2 --dataset=FOLDER",
    "eval_gpt2_medium": "evaluate.py --model=hf:gpt2-medium --dataset=FOLDER",
    "eval_gpt2_large": "evaluate.py --model=hf:gpt2-large --dataset=FOLDER",
    "eval_gpt2_xl": "evaluate.py --model=hf:gpt2-xl --dataset=FOLDER",
}


def instead_of_preset(word: str, presets: list[str]) -> str:
    """Why a bare word is no preset, and what to type for what is meant.

    presets: the names of those in config/.
    """
    path = Path(word)
    quoted = shlex.quote(word)
    nothing = f"no preset {word!r}"
    theirs = NANOGPT.get(path.stem)
    if theirs:
        return f"{nothing}: nanoGPT's file of that name is here `{command_line(*theirs.split())}`"
    if is_run(path):
        resume = command_line("train.py", str(path / "settings.toml"), "--init_from=resume")
        return f"{nothing}: {word} is a run, which `{resume}` goes on with"
    if is_dataset(path):
        return f"{nothing}: {word} is a dataset; did you mean --dataset={quoted}?"
    if path.suffix == ".py":
        return f"{nothing}: presets are TOML files, NAME = VALUE a line; {listed_presets(presets)}"
    meant = near(path.stem, presets, cutoff=0.7)
    if meant:
        return f"{nothing}; did you mean {meant}? In config/ are {', '.join(presets)}"
    return f"{nothing}; {listed_presets(presets)}"


def listed_presets(presets: list[str]) -> str:
    return f"those in config/ are {', '.join(presets)}"


def meant_by_bare_word(word: str, types: dict[str, type]) -> str:
    """How a line goes on about a word that stands for itself where settings are expected.

    types: the settings of the command, by name.
    """
    spelled, equals, value = word.partition("=")
    name = spelled.lstrip("-").replace("-", "_")
    is_dashed = word.startswith("-")
    if name in types and (equals or is_dashed):
        return f"; did you mean --{name}={shlex.quote(value) if value else 'VALUE'}?"
    if is_dashed:
        initial = [name for name in types if len(spelled) == 2 and name[0] == spelled[1:]]
        return f"; did you mean --{min(initial, key=len)}?" if initial else ""
    path = Path(word)
    for is_kind, setting in (
        (is_dataset, "dataset"),
        (is_run, "out_dir"),
        (is_checkpoint, "out_dir"),
    ):
        if is_kind(path) and setting in types:
            return f"; did you mean --{setting}={shlex.quote(word)}?"
    if (is_hugging_face(path) or is_hub_name(word)) and "model" in types:
        return f"; did you mean --model=hf:{word}?"
    if "/" in word and "out_dir" in types:
        return f"; a run is named with --out_dir{runs_here(word)}"
    if "prompt" in types and not path.exists():
        return "; did you mean --prompt='...'?"
    return ""
