"""A Hugging Face folder on disk or from the Hub."""

from pathlib import Path

from lathe import hints
from lathe.hub import why_unreachable
from lathe.json_text import read_json
from lathe.terminal import print_note

WANTED_FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
]


def find(name: str) -> Path:
    """The folder meant by hf: and a path or a model's name on the Hub, whose files are fetched
    unless they are in the cache. Raises OSError, with what to do, if they cannot be."""
    name = name.removeprefix("hf:")
    if not name:
        raise ValueError("hf: names no model: write hf:NAME, such as hf:gpt2, or hf:FOLDER")
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"hf:{name}: there is no such folder")

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    unreachable = ""
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=WANTED_FILES, local_files_only=True))
        except LocalEntryNotFoundError:
            unreachable = why_unreachable()
            if unreachable:
                raise
            print_note(f"fetching {name} from the Hugging Face Hub")
            return Path(snapshot_download(name, allow_patterns=WANTED_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        lines = str(error).strip().splitlines()
        reason = unreachable or (lines[0][:120] if lines else type(error).__name__)
        raise OSError(
            f"hf:{name} is neither a folder nor in the Hub's cache, and cannot be fetched "
            f"({reason}): download its config.json, tokenizer.json and model.safetensors elsewhere "
            "and give their folder as hf:FOLDER"
        ) from None


def read_file(path: Path) -> dict:
    """A JSON file of a model's folder. FileNotFoundError or ValueError names it."""
    try:
        return read_json(path)
    except FileNotFoundError:
        folder = path.parent
        advice = ""
        if hints.is_run(folder) or hints.is_checkpoint(folder):
            advice = f", but {hints.kind_of(folder)}: write it without hf:"
        raise FileNotFoundError(
            f"{path} is missing: {folder} is not a Hugging Face model folder{advice}"
        ) from None
