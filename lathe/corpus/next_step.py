"""The command that trains on a dataset as it was just prepared."""

import tomllib
from pathlib import Path

from lathe import ROOT, hints
from lathe.commands import command_line, from_here

USUAL_BLOCK = 128  # config/quickstart.toml's block_size


def training_command(out: Path, meta: dict, tokenizer: str) -> str | None:
    """What to type, as folders are now; None where a split has no token to predict.

    tokenizer: what --tokenizer said. Pairs with the tokenizer of a run go on from its weights; a
    dataset that a preset is made for gets this; any other goes with bare train.py's settings.
    """
    n_train = meta["totals"]["train"]["tokens"]
    n_val = meta["totals"]["val"]["tokens"]
    if min(n_train, n_val) < 2:
        return None
    is_pairs = "template" in meta
    preset = preset_for(out)
    own_folder = free_folder(f"out/{out.resolve().name}")
    has_weights = hints.is_run(Path(tokenizer)) or hints.is_checkpoint(Path(tokenizer))
    if is_pairs and has_weights:
        chat = from_here(ROOT / "config" / "finetune_chat.toml")
        words = [chat, f"--dataset={out}", f"--init_from={tokenizer}", f"--out_dir={own_folder}"]
    elif preset is not None:
        path, out_dir = preset
        words = [from_here(path)]
        if free_folder(out_dir) != out_dir:
            words.append(f"--out_dir={free_folder(out_dir)}")
    else:
        words = [f"--dataset={out}", f"--out_dir={own_folder}"]
        if not is_pairs and n_train <= USUAL_BLOCK:
            words.append(f"--block_size={n_train - 1}")
    return command_line("train.py", *words)


def preset_for(dataset: Path) -> tuple[Path, str] | None:
    """The one preset that trains on this dataset from new weights, and its out_dir; None where
    there is none, or more than one."""
    presets = []
    for path in sorted((ROOT / "config").glob("*.toml")):
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        is_from_scratch = settings.get("init_from", "scratch") == "scratch"
        if settings.get("dataset") == str(dataset) and is_from_scratch:
            presets.append((path, settings["out_dir"]))
    return presets[0] if len(presets) == 1 else None


def free_folder(out_dir: str) -> str:
    """`out_dir`, or out_dir-2 and so on: the first in which no run is."""
    folder = out_dir
    number = 1
    while Path(folder, "checkpoints").exists() or Path(folder, "metrics.jsonl").exists():
        number += 1
        folder = f"{out_dir}-{number}"
    return folder
