"""Our weights to a Hugging Face folder and back, without the transformers library.

    python huggingface.py export --out_dir=RUN --to=FOLDER [--verify=true]

The folder opens in transformers, and so in vLLM and lm-eval, with equal logits. What has no exact
counterpart there is refused by the name of the setting. llama.cpp's converter takes it only with
the gpt2 tokenizer: it knows tokenizers by a hash of their ids, and so none that was learned here
(bpe:N, byte), and no tokenizer of characters. The other way,
`init_from=hf:NAME_OR_FOLDER` in train.py and `--model=hf:NAME_OR_FOLDER` in sample.py, evaluate.py
and visualize.py read such folders, from disk or from the Hub. One table, FAMILIES in
lathe/use/hf/families.py, serves both directions.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lathe import cli
from lathe.fields import PathName
from lathe.terminal import print_note, print_result


@dataclass
class Options:
    """Write a trained model as a Hugging Face folder."""

    command: list[str] = field(default_factory=list)  # export
    out_dir: PathName = "out/quickstart"  # a run's folder (its best checkpoint) or a checkpoint's
    to: PathName = ""  # folder to write
    overwrite: bool = False  # replace the folder if it exists
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights written
    verify: bool = False  # compare logits and token ids with what transformers makes of the folder

    def __post_init__(self):
        if self.command != ["export"]:
            fault = "no command is given"
            if self.command:
                fault = f"`{' '.join(self.command)}` is no command"
            raise ValueError(f"{fault}: the one there is is `export`")
        if not self.to:
            raise ValueError("to is empty: give the folder to write with --to=FOLDER")


def main(argv: list[str] | None = None) -> int:
    about = "Write a model as a Hugging Face folder."
    prog = "huggingface.py"
    options = cli.parse(Options, argv, prog=prog, description=about, positional="command")

    from lathe.use.find_model import find_model
    from lathe.use.hf.check import check_in_transformers, check_logits, round_weights
    from lathe.use.hf.export import export
    from lathe.use.hf.families import architecture_of

    source = find_model(options.out_dir)
    folder = Path(options.to)
    refuse_to_replace(folder, options.overwrite)
    if options.verify:
        refuse_without_transformers()
    model = source.load()
    # Their networks know no documents, and do not need to: a prompt is one.
    model.config.document_token = -1

    def check(written: Path):
        architecture = architecture_of(model.config)
        print_note(f"{folder}: {architecture}, {model.n_params():,} parameters")
        round_weights(model, options.dtype)
        check_logits(model, written, source.folder)
        if options.verify:
            check_in_transformers(model, source.tokenizer, written)

    export(model, source.tokenizer, folder, options.dtype, source.state, check)
    print_result(folder)
    return 0


def refuse_to_replace(folder: Path, overwrite: bool):
    """ValueError if the folder holds anything but an old export that may be replaced."""
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    is_export = (folder / "config.json").is_file()
    if not is_empty and not (overwrite and is_export):
        raise ValueError(
            f"to is {folder}, which exists: choose another, or --overwrite=true for an old export"
        )


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
