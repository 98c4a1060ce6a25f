"""Our weights to a Hugging Face folder and back, without the transformers library.

    python huggingface.py export --out_dir=RUN --to=FOLDER [--verify=true]

The folder opens in transformers, and so in vLLM, lm-eval and llama.cpp's converter, with equal logits. What has no
exact counterpart there is refused by the name of the setting. The other way, `init_from=hf:NAME_OR_FOLDER` in train.py
and `--model=hf:NAME_OR_FOLDER` in sample.py, evaluate.py and visualize.py read such folders, from disk or from the Hub.
One table, FAMILIES, serves both directions.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lathe import cli


@dataclass
class Options:
    """Write a trained model as a Hugging Face folder."""

    command: list[str] = field(default_factory=list)  # export
    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    to: str = ""  # folder to write
    overwrite: bool = False  # replace the folder if it exists
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights written
    verify: bool = False  # compare logits and token ids with what transformers makes of the folder

    def __post_init__(self):
        if self.command != ["export"]:
            found = f"`{' '.join(self.command)}` is no command" if self.command else "no command is given"
            raise ValueError(f"{found}: the one there is is `export`")
        if not self.to:
            raise ValueError("to is empty: give the folder to write with --to=FOLDER")


def main(argv: list[str] | None = None) -> int:
    about = "Write a model as a Hugging Face folder."
    options = cli.parse(Options, argv, prog="huggingface.py", description=about, positional="command")

    import torch

    from lathe.use.find_model import find_model
    from lathe.use.hf.check import check_in_transformers, check_logits
    from lathe.use.hf.export import export
    from lathe.use.hf.families import family

    source, folder = find_model(options.out_dir), Path(options.to)
    taken = folder.is_file() or folder.is_dir() and any(folder.iterdir())
    if taken and not (options.overwrite and (folder / "config.json").is_file()):
        raise ValueError(f"to is {folder}, which exists: choose another, or --overwrite=true for an old export")
    if options.verify:
        try:
            import transformers  # noqa: F401 - whether it is there is asked before the work begins
        except ImportError:
            raise ValueError("verify needs the transformers library: pip install transformers") from None
    model, tokenizer = source.load(), source.tokenizer
    model.config.document_token = -1  # their networks know no documents, and do not need to: a prompt is one

    def check(written):
        print(f"{folder}: {family(model.config)}, {model.n_params():,} parameters", file=sys.stderr)
        if options.dtype != "float32":
            for parameter in model.parameters():  # what rounding leaves
                parameter.data = parameter.data.to(getattr(torch, options.dtype)).float()
        check_logits(model, written, source.folder)
        if options.verify:
            check_in_transformers(model, tokenizer, written)

    export(model, tokenizer, folder, options.dtype, source.state, check)
    print(folder)
    return 0


if __name__ == "__main__":
    cli.run(main)
