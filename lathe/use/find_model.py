"""One door to any model: a run, a checkpoint, a Hugging Face model, or nanoGPT's ckpt.pt.

Whoever samples from a model, evaluates it, draws it or trains it further begins with
`find_model(spec)`. That reads its settings and its tokenizer; weights are read when asked for.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lathe.reading import reading
from lathe.run import checkpoint
from lathe.terminal import print_note
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use import nanogpt, network
from lathe.use.hf import find as hf_find
from lathe.use.hf import tokenizers as hf_tokenizers
from lathe.use.hf import weights as hf_weights
from lathe.use.hf.chat_template import template_of
from model import GPT, GPTConfig


@dataclass(frozen=True)
class FoundModel:
    """What is known of a model before its weights are read."""

    name: str  # as it was asked for: hf:NAME_OR_FOLDER, or the checkpoint's folder
    folder: Path  # that holds its files; of nanoGPT's, the file
    config: GPTConfig
    tokenizer: Tokenizer
    begin: tuple[int, ...]  # ids before a text
    ends: tuple[int, ...]  # ids that end one
    template: str  # form of the chats that it was trained on, see text/chat.py; "" = none
    state: dict  # state.json of a checkpoint; {} for Hugging Face's and nanoGPT's

    @property
    def tokenizer_spec(self) -> str:
        """What to write after --tokenizer= for a dataset that this model can read."""
        has_files = any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        if self.is_nanogpt and self.tokenizer.kind == "char":
            return "char"  # of the same text
        return shlex.quote(str(self.folder)) if has_files else self.tokenizer.name

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt and of what comes before it. End-of-text stands for an empty one."""
        return [*self.begin, *self.tokenizer.encode(text)] or [self.tokenizer.eot_id]

    def with_context(self, block_size: int) -> "FoundModel":
        """The same model, its context cut to block_size tokens if it is longer."""
        block_size = min(self.config.block_size, block_size)
        return replace(self, config=replace(self.config, block_size=block_size))

    @property
    def is_nanogpt(self) -> bool:
        return self.folder.is_file()

    def with_all_ids(self) -> "FoundModel":
        """The same model, with a row for each id of the tokenizer: nanoGPT's of characters have
        none for end-of-text, with which documents begin here. Its row is the mean of all others."""
        n_ids = self.tokenizer.vocab_size
        if not self.is_nanogpt or self.config.vocab_size >= n_ids:
            return self
        print_note(f"{self.name} has no end-of-text: it begins as the mean of all other ids")
        eot = self.tokenizer.eot_id
        config = replace(self.config, vocab_size=n_ids)
        return replace(self, config=config, begin=(eot,), ends=(eot,))

    def weights(self, merged: bool = True) -> dict[str, Tensor]:
        """The network's tensors by name, on the CPU, in the file's types.

        merged=False keeps the tensors of LoRA apart, as a run that goes on needs them. Raises
        ValueError or OSError if the file cannot be read.
        """
        with reading(self.folder):
            if self.is_nanogpt:
                weights = nanogpt.read_weights(nanogpt.read(self.folder), self.config)
            elif self.state:
                weights = network.load_weights(self.folder, merged)
            else:
                weights = hf_weights.read_weights(self.folder, self.config)
            positions = "transformer.wpe.weight"
            if positions in weights:  # learned ones; with_context may have left out the last
                weights[positions] = weights[positions][: self.config.block_size]
            for name, tensor in weights.items():
                if not tensor.is_floating_point():
                    raise ValueError(f"{name} is of {tensor.dtype}, no type of weights")
        return weights

    def load(self) -> GPT:
        """The network in evaluation mode on the CPU. Raises ValueError or OSError as weights()."""
        weights = self.weights()
        network.refuse_fewer_layers(self.config, len(weights), self.folder)
        model = network.without_weights(replace(self.config))
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            fault = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the weights in {self.folder} do not fit its settings: {fault}"
            ) from None
        return model.eval()


def find_model(spec: str | Path, verified: bool = False) -> FoundModel:
    """The model of a run's folder (its best checkpoint), a checkpoint's, hf:NAME_OR_FOLDER, or
    nanoGPT's ckpt.pt or the folder that it lies in.

    verified=True: the spec is a checkpoint's folder whose bytes were just compared with their
    checksums, which is not done again. Raises ValueError or OSError, saying what was found, if
    there is no such model.
    """
    if str(spec).startswith("hf:"):
        return _of_hugging_face(str(spec))
    file = nanogpt.find(spec)
    if file is not None:
        return _of_nanogpt(file)
    return _of_checkpoint(Path(spec) if verified else checkpoint.find_checkpoint(spec))


def _of_checkpoint(folder: Path) -> FoundModel:
    state = checkpoint.read_state(folder)
    tokenizer = load_tokenizer(folder)
    eot = tokenizer.eot_id  # training documents begin with end-of-text, and so do prompts
    return FoundModel(
        name=str(folder),
        folder=folder,
        config=network.model_config(state, folder),
        tokenizer=tokenizer,
        begin=(eot,),
        ends=(eot,),
        template=state.get("template", ""),
        state=state,
    )


def _of_nanogpt(file: Path) -> FoundModel:
    checkpoint = nanogpt.read(file)
    tokenizer = nanogpt.find_tokenizer(checkpoint)
    config = nanogpt.read_config(checkpoint, tokenizer)
    has_end = tokenizer.eot_id < config.vocab_size
    return FoundModel(
        name=str(file),
        folder=file,
        config=config,
        tokenizer=tokenizer,
        begin=(tokenizer.eot_id,) if has_end else (),
        ends=(tokenizer.eot_id,) if has_end else (),
        template="",
        state={},
    )


def _of_hugging_face(name: str) -> FoundModel:
    folder = hf_find.find(name)
    with reading(folder):
        tokenizer, begin, ends = hf_tokenizers.load_hf_tokenizer(folder)
        config = hf_weights.read_config(folder, tokenizer)
        template = template_of(folder, tokenizer, begin)
    return FoundModel(
        name=name,
        folder=folder,
        config=config,
        tokenizer=tokenizer,
        begin=tuple(begin),
        ends=ends,
        template=template,
        state={},
    )
