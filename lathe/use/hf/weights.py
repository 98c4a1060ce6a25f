"""Tensors, both ways."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lathe.run.tensor_file import read_tensor, tensor_names
from lathe.terminal import print_note
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.config import Described, our_config
from lathe.use.hf.families import FAMILIES, GPT2, architecture_of
from lathe.use.hf.find import read_file
from lathe.use.hf.tokenizers import find_tokenizer
from lathe.use.network import refuse_fewer_layers, without_weights
from model import GPT, GPTConfig

VOCABULARY = ("transformer.wte.weight", "lm_head.weight")  # tensors with a row for each token
BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")  # of older files: no weights


@dataclass(frozen=True)
class TensorPair:
    """A tensor of ours, and theirs that it holds, one above the other."""

    ours: str
    theirs: list[str]
    rows: list[int]  # how many each of theirs has, if they are several
    transposed: bool  # theirs is stored as (in, out)

    @property
    def is_bias(self) -> bool:
        return self.ours.endswith("bias")

    @property
    def is_of_norm(self) -> bool:
        return is_norm(self.ours)

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Theirs, from ours."""
        parts = tensor.split(self.rows) if len(self.theirs) > 1 else [tensor]
        if self.transposed:
            parts = [part.T for part in parts]
        return dict(zip(self.theirs, parts, strict=True))

    def join(self, parts: list[Tensor]) -> Tensor:
        """Ours, from theirs."""
        if self.transposed:
            parts = [part.T for part in parts]
        return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()


def tensor_pairs(config: GPTConfig, architecture: str) -> Iterator[TensorPair]:
    """All tensors of a network of this configuration."""
    family = FAMILIES[architecture]
    modules = {f"transformer.{ours}": [theirs] for ours, theirs in family.outside.items()}
    for i in range(config.n_layer):
        for ours, theirs in family.block.items():
            modules[f"transformer.h.{i}.{ours}"] = [
                f"{family.blocks}.{i}.{name}" for name in theirs
            ]
    if not config.tie_weights:
        modules["lm_head"] = ["lm_head"]
    if config.ngram_rows:
        modules["transformer.ngrams"] = ["ngrams"]
    if family.settings.get("norm_weight") == [False]:
        modules = {ours: theirs for ours, theirs in modules.items() if not is_norm(ours)}

    query_rows = config.n_head * config.head_dim
    kv_rows = config.n_kv_head * config.head_dim
    rows = {
        "c_attn": [query_rows, kv_rows, kv_rows],
        "c_fc": [config.n_hidden, config.n_hidden],  # swiglu's gate and value
    }
    for module, theirs in modules.items():
        name = module.rpartition(".")[2]
        is_linear = name.startswith("c_")
        yield TensorPair(
            ours=module if name in ("q_norm", "k_norm") else f"{module}.weight",
            theirs=[f"{their_module}.weight" for their_module in theirs],
            rows=rows.get(name, []),
            transposed=family.conv1d and is_linear,
        )
        linear_bias = is_linear and (config.bias or family.conv1d)
        norm_bias = is_norm(module) and config.norm == "layernorm"
        if linear_bias or norm_bias:
            yield TensorPair(
                ours=f"{module}.bias",
                theirs=[f"{their_module}.bias" for their_module in theirs],
                rows=rows.get(name, []),
                transposed=False,
            )


def is_norm(name: str) -> bool:
    """Whether a module or tensor of ours is a norm's."""
    return ".ln_" in name or "_norm" in name


# -----------------------------------------------------------------------------
# Writing


def written_as(config: GPTConfig) -> GPTConfig:
    """The settings as a folder has them: Starcoder2 with biases, which some clients want to see."""
    is_starcoder2 = architecture_of(config) == "Starcoder2ForCausalLM"
    return replace(config, bias=config.bias or is_starcoder2)


def their_weights(
    model: GPT,
    architecture: str,
    dtype: torch.dtype,
    config: GPTConfig,
    as_linear: bool = False,
) -> dict[str, Tensor]:
    """The tensors of the folder. Rows that pad our vocabulary stay at home; norms without gains get
    ones, GPT-2's layers without biases zeros.

    config: the model's settings, but perhaps with biases, which are zeros, or a head of its own,
    which is the embedding once more. as_linear: every matrix as (out, in), GPT-2's too.
    """
    state = model.state_dict()
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    complete = without_weights(replace(config, norm_weight=True, bias=True)).state_dict()
    weights = {}
    for pair in tensor_pairs(config, architecture):
        if as_linear:
            pair = replace(pair, transposed=False)
        tensor = state.get(pair.ours)
        if tensor is None:
            neutral = 0.0 if pair.is_bias else 1.0
            tensor = torch.full(complete[pair.ours].shape, neutral)
        if pair.ours in VOCABULARY:
            tensor = tensor[: config.vocab_size]
        for name, part in pair.split(tensor).items():
            weights[name] = part.to(dtype).contiguous()
    # mlx-lm reads no others, and no table by n-grams
    if architecture == GPT2 and config.tie_weights and not as_linear and not config.ngram_rows:
        weights = {name.removeprefix("transformer."): part for name, part in weights.items()}
    return weights


# -----------------------------------------------------------------------------
# Reading


def read_config(folder: Path, tokenizer: Tokenizer | None) -> GPTConfig:
    """The configuration of the network in a Hugging Face folder.

    Gains that are all one and biases that are all zero are what `their_weights` makes for a network
    without them, and are not taken over. Rows of the vocabulary beyond the tokenizer's ids are
    padding. Raises ValueError or OSError.
    """
    described = our_config(read_file(folder / "config.json"), folder / "config.json")
    config = described.config
    if tokenizer is not None:
        refuse_ids_without_rows(config, tokenizer, folder)
        refuse_ngrams_of_other_ids(config, tokenizer, folder)
        config.vocab_size = min(config.vocab_size, tokenizer.vocab_size)
    files = tensor_files(folder)
    refuse_fewer_layers(config, len(files), folder)
    if config.tie_weights:
        config.tie_weights = is_tied(files, described.architecture, folder)
    has_bias = False
    has_gains = False
    for pair in stored_pairs(described, config):
        if not pair.is_bias and not pair.is_of_norm:
            continue
        neutral = 0.0 if pair.is_bias else 1.0
        for name in names_in_file(pair.theirs, files):
            if name is None:  # read_weights says so
                continue
            if (read_tensor(files[name], name) != neutral).any():
                has_bias = has_bias or pair.is_bias
                has_gains = has_gains or pair.is_of_norm
    config.bias = has_bias
    config.norm_weight = has_gains
    return config


def refuse_ids_without_rows(config: GPTConfig, tokenizer: Tokenizer, folder: Path):
    """ValueError if a text may get ids of which the network knows nothing."""
    of_text = [i for i, piece in enumerate(tokenizer.pieces) if piece]
    if of_text and of_text[-1] >= config.vocab_size:
        raise ValueError(
            f"{folder}: vocab_size is {config.vocab_size} in config.json, and the tokenizer has "
            f"ids up to {of_text[-1]}: it is another model's"
        )


def refuse_ngrams_of_other_ids(config: GPTConfig, tokenizer: Tokenizer, folder: Path):
    """ValueError if the table by n-grams counts ids that are to be left out."""
    if config.ngram_rows and tokenizer.vocab_size < config.vocab_size:
        raise ValueError(
            f"{folder}: the table by n-grams is of {config.vocab_size} ids, and the tokenizer has "
            f"{tokenizer.vocab_size}: it is another model's"
        )


def stored_pairs(described: Described, config: GPTConfig) -> Iterator[TensorPair]:
    """Those that a file has by its config.json; of biases no others. config: ours of the network,
    which tells whether embedding and head are one."""
    for pair in tensor_pairs(replace(config, bias=True), described.architecture):
        in_block = re.sub(r"^transformer\.h\.\d+\.|\.bias$", "", pair.ours)
        if not pair.is_bias or pair.is_of_norm or in_block in described.biased:
            yield pair


def is_tied(files: dict[str, Path], architecture: str, folder: Path) -> bool:
    """Whether the head of a file is its embedding, as config.json says. transformers uses another
    head that is there all the same, and so do we, and say so."""
    embedding = FAMILIES[architecture].outside["wte"] + ".weight"
    (name,) = names_in_file([embedding], files)
    head = "lm_head.weight"
    if head not in files or name is None:
        return True
    if torch.equal(read_tensor(files[head], head), read_tensor(files[name], name)):
        return True
    print_note(
        f"{folder}: tie_word_embeddings is true, and {head} is another matrix than {name}: it is "
        "used, as in transformers 5"
    )
    return False


def read_weights(
    folder: Path, config: GPTConfig, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The tensors of a network of read_config's configuration, by our names, on the CPU; dtype None
    keeps the file's.

    Positions are as many as in the file, even where the configuration has fewer. Raises ValueError
    or OSError.
    """
    described = our_config(read_file(folder / "config.json"), folder / "config.json")
    config = replace(config, block_size=described.config.block_size)
    files = tensor_files(folder)
    unread = {name for name in files if not name.endswith(BUFFERS)}
    if config.tie_weights:
        unread.discard("lm_head.weight")
    state = {}
    for pair in stored_pairs(described, config):
        names = names_in_file(pair.theirs, files)
        if pair.is_bias and not any(names):
            continue
        if None in names:
            raise ValueError(f"{folder}: the weights lack {pair.theirs[names.index(None)]}")
        unread -= set(names)
        tensor = pair.join([read_tensor(files[name], name) for name in names])
        if pair.ours in VOCABULARY:  # zeros are added, or rows left out
            missing_rows = config.padded_vocab_size - len(tensor)
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, missing_rows))
        state[pair.ours] = tensor if dtype is None else tensor.to(dtype)
    refuse_unread(unread, described, folder)

    weights = {}  # gains of one and biases of zero, of a network without them, are left out here
    for name, like in without_weights(config).state_dict().items():
        tensor = state.get(name)
        if tensor is None:  # a bias, where other layers have theirs
            tensor = torch.zeros(like.shape, dtype=dtype)
        if tensor.shape != like.shape:
            raise ValueError(
                f"{folder}: {name} is {tuple(tensor.shape)}, by config.json it should be "
                f"{tuple(like.shape)}"
            )
        weights[name] = tensor
    return weights


def refuse_unread(unread: set[str], described: Described, folder: Path):
    """ValueError for tensors of the file that the network which config.json describes lacks."""
    if not unread:
        return
    names = sorted(unread)
    settings = [setting for setting in FAMILIES[described.architecture].biases if setting]
    why = ""
    if names[0].endswith(".bias") and settings:
        why = f", by {' and '.join(settings)} in config.json"
    raise ValueError(
        f"{folder}: {described.architecture} has no place for {', '.join(names[:3])} "
        f"({len(unread)} tensors){why}"
    )


def files_of_index(index: Path) -> list[str]:
    """The files that hold the tensors of a model in several. ValueError for other than names."""
    file_of = read_file(index).get("weight_map")
    files = set(file_of.values()) if isinstance(file_of, dict) else {None}
    if not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise ValueError(f"{index} is damaged: its weight_map names no files beside it")
    return sorted(files)


def tensor_files(folder: Path) -> dict[str, Path]:
    """{tensor name: its file}. Raises OSError or ValueError for missing or damaged files."""
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        files = files_of_index(index)
    file_of = {}
    for path in [folder / file for file in files]:
        if not path.is_file():
            others = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no other weights"
            raise FileNotFoundError(f"{path} is missing ({others} there): lathe reads safetensors")
        for name in tensor_names(path):
            file_of[name] = path
    return file_of


def names_in_file(names: list[str], files: dict[str, Path]) -> list[str | None]:
    """Each name as the files have it, with or without the prefix of the whole model; None where
    they lack it."""
    names_there = []
    for name in names:
        short = name.removeprefix("transformer.").removeprefix("model.")
        spellings = [spelling for spelling in (name, short) if spelling in files]
        names_there.append(spellings[0] if spellings else None)
    return names_there


def load_model(folder: Path, dtype: torch.dtype | None = torch.float32) -> GPT:
    """The network of a Hugging Face folder, in evaluation mode on the CPU; dtype None keeps the
    file's. Raises ValueError or OSError."""
    config = read_config(folder, find_tokenizer(folder))
    model = without_weights(config)
    model.load_state_dict(read_weights(folder, config, dtype), assign=True)
    return model.eval()
