"""Our weights to a Hugging Face folder or a GGUF file, and folders back.

    python huggingface.py export --out_dir=RUN --to=FOLDER [--verify=true]
    python huggingface.py export --out_dir=RUN --gguf=FILE.gguf [--gguf_type=q8_0]

The folder opens in transformers (4.57 and 5), vLLM, lm-eval, ctranslate2 and mlx-lm, the file in
llama.cpp and what is built on it, all with equal text; docs/export.md says how each is called. What
has no exact counterpart is refused by the name of the setting, and what one client cannot hold if
that is named with --for. The other way, `init_from=hf:NAME_OR_FOLDER` in train.py and
`--model=hf:NAME_OR_FOLDER` in sample.py, evaluate.py and visualize.py read such folders, from disk
or from the Hub. One table, FAMILIES in lathe/use/hf/families.py, serves both directions.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lathe import cli
from lathe.fields import PathName
from lathe.terminal import print_note, print_result

if TYPE_CHECKING:  # torch takes seconds; --help and mistakes need not wait
    from lathe.use.find_model import FoundModel
    from model import GPT

ClientName = Literal["transformers", "vllm", "lm-eval", "ctranslate2", "mlx-lm", "llama.cpp"]


@dataclass
class Options:
    """Write a trained model as a Hugging Face folder, a GGUF file, or both."""

    command: list[str] = field(default_factory=list)  # export
    out_dir: PathName = "out/quickstart"  # a run's folder (its best checkpoint) or a checkpoint's
    to: PathName = ""  # folder to write
    gguf: PathName = ""  # file to write, for llama.cpp
    overwrite: bool = False  # replace the folder or file if it exists
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights in --to
    gguf_type: Literal["f32", "f16", "bf16", "q8_0"] = "f32"  # of the matrices in --gguf
    for_: list[ClientName] = field(default_factory=list)  # refuse what one of these cannot hold
    # compare token ids, logits and greedy text with what transformers makes of --to
    verify: bool = False

    def __post_init__(self):
        if self.command[:1] != ["export"]:
            fault = "no command is given"
            if self.command:
                fault = f"`{' '.join(self.command)}` is no command"
            raise ValueError(
                f"{fault}: the one there is is `export`; the other way, train.py "
                "--init_from=hf:NAME and --model=hf:NAME elsewhere read Hugging Face's models"
            )
        if len(self.command) > 1:
            word = self.command[1]
            raise ValueError(
                f"unexpected argument {word!r}: the run is named with --out_dir={word}, "
                "the folder to write with --to=FOLDER"
            )
        if not self.to and not self.gguf:
            raise ValueError(
                "to is empty: give the folder to write with --to=FOLDER, or a file for llama.cpp "
                "with --gguf=FILE"
            )
        if self.verify and not self.to:
            raise ValueError("verify compares a folder: give the one to write with --to=FOLDER")
        if self.to and self.gguf:
            folder, file = Path(self.to).resolve(), Path(self.gguf).resolve()
            if file == folder or folder in file.parents or file in folder.parents:
                raise ValueError(
                    f"gguf is {self.gguf}, in the way of to, {self.to}, a folder that is written "
                    f"as a whole: name a file beside it, such as --gguf={folder.name}.gguf"
                )


def main(argv: list[str] | None = None) -> int:
    about = "Write a model as a Hugging Face folder, or as a GGUF file for llama.cpp."
    prog = "huggingface.py"
    options = cli.parse(Options, argv, prog=prog, description=about, positional="command")

    from lathe.use.find_model import find_model
    from lathe.use.gguf_file import import_gguf, refuse_what_llama_cpp_cannot_hold
    from lathe.use.hf.clients import refuse_for

    source = find_model(options.out_dir).with_all_ids()
    if options.to:
        refuse_to_replace(Path(options.to), options.overwrite)
    if options.gguf:
        refuse_to_replace_file(options.gguf, options.overwrite)
        import_gguf()
        refuse_what_llama_cpp_cannot_hold(source.config, source.tokenizer)
    if options.verify:
        refuse_without_transformers()
    refuse_for(options.for_, source.config, source.tokenizer)
    if "llama.cpp" in options.for_ and not options.gguf:
        print_note("llama.cpp can hold this model, as a file and not as a folder: --gguf=FILE")
    model = source.load()
    # Their networks know no documents, and do not need to: a prompt is one.
    model.config.document_token = -1
    if options.gguf:
        with told_when_the_disk_is_full("gguf", options.gguf, model, options.gguf_type):
            write_file(options, source, model)
    if options.to:
        with told_when_the_disk_is_full("to", options.to, model, options.dtype):
            write_folder(options, source, model)
    say_how_to_go_on(options, source)
    return 0


def write_folder(options: Options, source: "FoundModel", model: "GPT"):
    """The Hugging Face folder, checked before it takes its place. Rounds `model` to its dtype."""
    from lathe.use.hf.check import check_in_transformers, check_logits, round_weights
    from lathe.use.hf.export import export
    from lathe.use.hf.families import architecture_of

    folder = Path(options.to)

    def check(written: Path):
        architecture = architecture_of(model.config)
        print_note(f"{folder}: {architecture}, {model.n_params():,} parameters")
        round_weights(model, options.dtype)
        check_logits(model, written, source.folder)
        if options.verify:
            check_in_transformers(model, source, written)

    export(model, source.tokenizer, folder, options.dtype, source.state, check)
    print_result(folder)


def write_file(options: Options, source: "FoundModel", model: "GPT"):
    """The GGUF file, which takes its name once it was read again."""
    from lathe.use.gguf_file import write_gguf

    path = Path(options.gguf)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_gguf(
            model, source.tokenizer, temporary, options.gguf_type, source.template, path.stem
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    print_note(f"{path}: {model.n_params():,} parameters in {options.gguf_type}, read back equal")
    print_result(path)


def say_how_to_go_on(options: Options, source: "FoundModel"):
    """The call that continues a text, for each client that can hold the model."""
    from lathe.text.chat import TEMPLATES
    from lathe.use.hf.clients import calls_of_export
    from lathe.use.hf.ngrams import MODEL_FILE
    from lathe.use.hf.tokenizers import answers_begin_with_a_space

    chat = source.template in TEMPLATES
    if options.to and source.config.ngram_rows:
        print_note(
            f"ngram_rows={source.config.ngram_rows}: {MODEL_FILE} in {options.to} computes the "
            "table, in transformers with trust_remote_code=True; other programs cannot hold it"
        )
    lines = calls_of_export(source.config, source.tokenizer, options.to, options.gguf, chat)
    print_note(
        "answer a message with:" if chat else "texts begin with end-of-text; continue one with:"
    )
    for client, call in lines.items():
        print_note(f"  {client}: {call}")
    if chat and answers_begin_with_a_space(source.template, source.tokenizer):
        print_note(
            "answers begin with a space there, which sample.py leaves out: it is in their first "
            "token; --template turns of prepare/pairs.py has none"
        )


def refuse_to_replace(folder: Path, overwrite: bool):
    """ValueError if the folder holds anything but an old export that may be replaced."""
    refuse_below_a_file("to", folder)
    if not is_utf8(str(folder.absolute())):
        raise ValueError(
            f"to is {folder}, whose name is not UTF-8, and safetensors, by which programs read "
            "such folders, opens no others: choose another --to"
        )
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise ValueError(f"to is {folder}, a file: name a folder for --to")
    if not is_export(folder):
        raise ValueError(f"to is {folder}, which is no export of lathe's: choose another --to")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    if others:
        raise ValueError(f"to is {folder}, which has {others[0]} beside an export: choose another")
    if not overwrite:
        raise ValueError(
            f"to is {folder}, which holds an export: choose another --to, or replace that with "
            "--overwrite=true"
        )


def refuse_to_replace_file(name: str, overwrite: bool):
    """ValueError if there is something else than a GGUF file that may be replaced."""
    path = Path(name)
    refuse_below_a_file("gguf", path)
    if path.is_dir() or name.endswith(os.sep):
        raise ValueError(f"gguf is {name}, a folder: name a file, such as {path / 'model.gguf'}")
    if not path.exists():
        return
    is_gguf = False
    if path.is_file():
        with open(path, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    if not is_gguf:
        raise ValueError(f"gguf is {path}, which exists and is no GGUF file: choose another --gguf")
    if not overwrite:
        raise ValueError(
            f"gguf is {path}, which exists: choose another --gguf, or replace that with "
            "--overwrite=true"
        )


def refuse_below_a_file(setting: str, path: Path):
    """ValueError if what is to be its folder is a file."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"{setting} is {path}, and {above} is a file, no folder: choose another")


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a byte that was none in a name of the system's
        return False
    return True


BYTES = {"float32": 4, "f32": 4, "q8_0": 34 / 32}  # of a weight; of other types 2


@contextmanager
def told_when_the_disk_is_full(setting: str, name: str, model: "GPT", kind: str) -> Iterator[None]:
    """OSError that says what is needed, and where; those of numpy and safetensors do not."""
    try:
        yield
    except OSError as error:
        if error.errno not in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        needed = model.n_params() * BYTES.get(kind, 2)
        raise OSError(
            f"{setting} is {name}, which could not be written: about {needed:,.0f} bytes are "
            f"needed ({error.strerror or error}); make room, or choose another place"
        ) from error


FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_ngrams.py",
    "tokenizer.json",
    "tokenizer_config.json",
)


def is_export(folder: Path) -> bool:
    """Whether its model card is one that an export writes."""
    card = folder / "README.md"
    return card.is_file() and "trained with lathe" in card.read_text("utf-8", errors="replace")


def refuse_without_transformers():
    """Whether it is there is asked before the work begins."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ValueError(
            "verify needs the transformers library: pip install transformers"
        ) from None


if __name__ == "__main__":
    cli.run(main)
