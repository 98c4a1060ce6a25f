"""Random Hugging Face folders: networks of twelve families and tokenizers of many rules, as transformers
saves them and as users change them. Shared by the tests that read such folders."""

import argparse
import json
import random
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors, trainers
from tokenizers import normalizers as n
from tokenizers import pre_tokenizers as p

from lathe.run.tensor_file import read_tensor, tensor_names, write_safetensors
from lathe.text.gpt2 import EOT
from lathe.text.patterns import CL100K_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN, in_oniguruma

CONTEXT = 24
# {config class: activations with which it computes what ours do}
FAMILIES = {
    "GPT2": ["gelu_new", "gelu", "gelu_pytorch_tanh"],
    "Llama": ["silu", "swish"],
    "Mistral": ["silu"],
    "Qwen2": ["silu"],
    "Qwen3": ["silu"],
    "Phi3": ["silu"],
    "Arcee": ["relu2", "gelu", "gelu_new"],
    "Apertus": ["relu2", "gelu", "gelu_fast"],
    "Starcoder2": ["gelu_pytorch_tanh", "gelu", "relu2"],
    "SmolLM3": ["silu"],
    "Granite": ["silu"],
    "Olmo": ["silu"],
}


class Draw(random.Random):
    """Half of the draws are tame: nothing in them is as rare as what is refused."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.is_wild = self.random() < 0.5

    def rarely(self, chance: float) -> bool:
        return self.random() < chance and self.is_wild


def drawn_folder(seed: int, folder: Path) -> str:
    """Save a random network of one of the families, and a random tokenizer, with transformers; then change
    the folder as others do: keys of older versions, keys left out, stray tensors, fields nobody knows, other
    files of a tokenizer. Returns the family."""
    import transformers

    draw = Draw(seed)
    torch.manual_seed(seed)
    tokenizer = drawn_tokenizer(draw)
    tokenizer.save_pretrained(folder)
    name = list(FAMILIES)[seed % len(FAMILIES)]
    settings = drawn_settings(name, draw)
    settings["vocab_size"] = len(tokenizer) + draw.choice([0, 0, 7])
    settings["bos_token_id"] = tokenizer.bos_token_id or 0
    settings["eos_token_id"] = tokenizer.eos_token_id
    settings["pad_token_id"] = None
    config = getattr(transformers, f"{name}Config")(**settings)
    network = transformers.AutoModelForCausalLM.from_config(config).float()
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    changes = [as_older_versions, without_defaults, with_stray_tensors, with_foreign_fields]
    if draw.rarely(0.6):
        draw.choice(changes)(folder, draw)
    if draw.rarely(0.3):
        draw.choice([as_vocabulary_and_merges, with_other_tokens])(folder, draw)
    return name


def drawn_settings(name: str, draw: Draw) -> dict:
    """Arguments of the config class. What a family does not have is not among them."""
    heads = draw.choice([1, 2, 4])
    if name == "GPT2":
        return dict(
            n_positions=CONTEXT,
            n_embd=8 * heads,
            n_layer=draw.choice([1, 2]),
            n_head=heads,
            n_inner=draw.choice([None, 20]),
            activation_function=drawn_activation(name, draw),
            layer_norm_epsilon=draw.choice([1e-5, 1e-3]),
            tie_word_embeddings=draw.random() < 0.7,
            scale_attn_weights=not draw.rarely(0.1),
            scale_attn_by_inverse_layer_idx=draw.rarely(0.1),
            reorder_and_upcast_attn=draw.random() < 0.3,
        )
    settings = dict(
        max_position_embeddings=CONTEXT,
        hidden_size=8 * heads,
        num_hidden_layers=draw.choice([1, 2, 5]),
        num_attention_heads=heads,
        num_key_value_heads=draw.choice([n for n in (1, 2, 4) if heads % n == 0]),
        intermediate_size=draw.choice([16, 20]),
        hidden_act=drawn_activation(name, draw),
        tie_word_embeddings=draw.random() < 0.4,
        rope_parameters=drawn_rope(name, draw),
    )
    eps = "norm_epsilon" if name == "Starcoder2" else "rms_norm_eps"
    if name != "Olmo":
        settings[eps] = draw.choice([1e-6, 1e-5, 1e-3])
    if draw.random() < 0.4 or name == "Qwen3":
        settings["head_dim"] = draw.choice([4, 8, 12])
    if name in ("Llama", "Qwen3", "Arcee", "Apertus", "SmolLM3", "Granite", "Olmo"):
        settings["attention_bias"] = draw.random() < 0.4
    if name in ("Llama", "Arcee", "SmolLM3", "Granite"):
        settings["mlp_bias"] = draw.random() < 0.4
    if name == "Starcoder2":
        settings["use_bias"] = draw.random() < 0.5
    if name in ("Mistral", "Phi3", "Starcoder2", "Qwen2", "Qwen3", "SmolLM3"):
        settings["sliding_window"] = 5 if draw.rarely(0.3) else draw.choice([None, CONTEXT, 4096])
    if name in ("Qwen2", "Qwen3", "SmolLM3"):
        settings["use_sliding_window"] = draw.random() < 0.2
    if name in ("Qwen2", "Qwen3"):
        settings["max_window_layers"] = draw.choice([0, 1, 28])
    if name == "SmolLM3":
        settings["no_rope_layer_interval"] = 4 if draw.rarely(0.4) else 9
    if name == "Olmo":
        settings["clip_qkv"] = 0.5 if draw.rarely(0.4) else None
    if name == "Granite":
        width = settings.get("head_dim", 8)
        settings["attention_multiplier"] = 1.0 if draw.rarely(0.2) else width**-0.5
        for multiplier in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            settings[multiplier] = 3.0 if draw.rarely(0.1) else 1.0
    return settings


def drawn_activation(name: str, draw: Draw) -> str:
    return draw.choice(["relu", "tanh"] if draw.rarely(0.1) else FAMILIES[name])


def drawn_rope(name: str, draw: Draw) -> dict | None:
    theta = draw.choice([10000.0, 500.0, 1e6])
    plain = {"rope_type": "default", "rope_theta": theta}
    if name == "Phi3":  # transformers refuses others
        return draw.choice([None, plain, plain, plain | {"partial_rotary_factor": 0.5}])
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = draw.choice([8, 16])
    read = [
        None,
        plain,
        {"rope_type": "linear", "rope_theta": theta, "factor": draw.choice([2.0, 3.5])},
        {"rope_type": "llama3", "rope_theta": theta, "factor": 8.0, **llama3},
    ]
    refused = [
        {"rope_type": "dynamic", "rope_theta": theta, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": theta, "factor": 4.0},
        plain | {"partial_rotary_factor": 0.5},
    ]
    return draw.choice(refused if draw.rarely(0.15) else read)


# -----------------------------------------------------------------------------
# What others do to a folder


def changed(folder: Path, change) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def as_older_versions(folder: Path, draw: Draw):
    """rope_theta and rope_scaling as transformers 4 wrote them, or beside what 5 writes."""

    def change(content: dict):
        rope = content.get("rope_parameters") or {}
        if draw.random() < 0.7:
            content.pop("rope_parameters", None)
        if draw.random() < 0.8:
            content["rope_theta"] = draw.choice([rope.get("rope_theta", 777.0), 777.0])
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        content["rope_scaling"] = (
            scaling if scaling.get("rope_type", "default") != "default" else None
        )
        if draw.random() < 0.3 and content["rope_scaling"]:
            content["rope_scaling"]["type"] = content["rope_scaling"].pop("rope_type")
        content["torch_dtype"] = content.pop("dtype", "float32")

    changed(folder, change)


def without_defaults(folder: Path, draw: Draw):
    """A config.json written by hand leaves much out."""
    left_out = """rms_norm_eps norm_epsilon layer_norm_epsilon hidden_act activation_function
    tie_word_embeddings attention_bias mlp_bias use_bias num_key_value_heads rope_parameters
    sliding_window layer_types n_inner architectures head_dim no_rope_layers""".split()

    def change(content: dict):
        for name in draw.sample(left_out, 5):
            content.pop(name, None)

    changed(folder, change)


def with_stray_tensors(folder: Path, draw: Draw):
    """A head beside a tied embedding, biases that config.json does not have, or fewer than it has."""
    path = folder / "model.safetensors"
    tensors = {name: read_tensor(path, name) for name in tensor_names(path)}
    biases = [name for name in tensors if name.endswith("bias")]
    embedding = next(tensor for name, tensor in tensors.items() if "embed" in name or "wte" in name)
    kind = draw.choice(["same head", "another head", "bias", "fewer"])
    if kind == "same head":
        tensors.setdefault("lm_head.weight", embedding.clone())
    elif kind == "another head":
        tensors["lm_head.weight"] = embedding + 1
    elif kind == "bias":
        name = draw.choice(
            [name for name in tensors if "proj.weight" in name or "c_fc.weight" in name]
        )
        tensors.setdefault(name.replace("weight", "bias"), torch.randn(len(tensors[name])))
    elif biases:
        del tensors[draw.choice(biases)]
    with open(path, "wb") as file:
        write_safetensors(file, tensors)


def with_foreign_fields(folder: Path, draw: Draw):
    """Fields of other families, some of which change what a fork of the network computes."""
    fields = {
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "embedding_multiplier": 12.0,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": None,
        "sliding_window": 5,
        "layer_types": ["sliding_attention"],
        "quantization_config": {"quant_method": "gptq", "bits": 4},
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000,
        "transformers.js_config": {"dtype": "q4"},
        "unsloth_fixed": True,
        "is_llama_config": True,
        "rope_interleaved": False,
        "pretraining_tp": 1,
        "qk_layernorm": False,
        "num_experts": 8,
        "mup_scale": 0.125,
    }
    added = {name: fields[name] for name in draw.sample(sorted(fields), 2)}
    changed(folder, lambda content: content.update(added))


# -----------------------------------------------------------------------------
# Tokenizers

WORDS = [
    "the",
    " quick",
    "Don't",
    "we'LL",
    "naïve",
    "e\u0301",
    "ſß",
    "1",
    "23",
    "12345",
    "½",
    "  ",
    "\n\n",
]
WORDS += [
    "\t",
    "\r\n",
    "日本語",
    "русский",
    "हिन्दी",
    "🎉",
    "👩‍💻",
    "ﬁ",
    "(){};",
    "==",
    "_a",
    "<0x0A>",
    "Ġ",
]
CORPUS = [Path(argparse.__file__).read_text(encoding="utf-8")[:30_000], "".join(WORDS) * 3]
PATTERNS = [QWEN2_PATTERN, LLAMA3_PATTERN, in_oniguruma(CL100K_PATTERN), r"\d{3}|\s+"]


def drawn_tokenizer(draw: Draw):
    """A tokenizer of transformers: the library's with drawn rules, or one of the classes with their own."""
    import transformers

    kind = draw.choice(["rules", "rules", "gpt2", "qwen2"])
    if draw.rarely(0.2):
        kind = draw.choice(["llama", "letters"])
    if kind == "gpt2":
        vocab, merges = byte_level_vocabulary(draw)
        return transformers.GPT2Tokenizer(vocab, merges, **drawn_bos(draw, EOT))
    if kind == "qwen2":
        vocab, merges = byte_level_vocabulary(draw)
        return transformers.Qwen2Tokenizer(vocab, merges)
    if kind == "llama":
        content = json.loads(byte_fallback())["model"]
        merges = [tuple(merge) for merge in content["merges"]]
        return transformers.LlamaTokenizer(
            content["vocab"],
            merges,
            add_prefix_space=draw.choice([None, True, False]),
            **drawn_bos(draw, "<s>"),
        )
    library = letters(draw) if kind == "letters" else with_drawn_rules(draw)
    about = {"eos_token": EOT, "bos_token": "<|im_start|>"} | drawn_bos(draw, "<|im_start|>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=library, **about)


def drawn_bos(draw: Draw, token: str) -> dict:
    return draw.choice([{}, {"add_bos_token": True, "bos_token": token}, {"add_bos_token": False}])


@cache
def byte_level() -> str:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = p.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = p.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    return library.to_str()


@cache
def byte_fallback() -> str:
    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = n.Replace(" ", "▁")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, limit_alphabet=80, show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    return library.to_str()


def byte_level_vocabulary(draw: Draw) -> tuple[dict, list]:
    """Vocabulary and merges; now and then without some bytes, without merges, or in another order."""
    model = json.loads(byte_level())["model"]
    vocab = dict(model["vocab"])
    merges = [tuple(merge) for merge in model["merges"]]
    changes = ["no merges", "other order", "words", "fewer bytes"]
    change = draw.choice(changes) if draw.rarely(0.4) else "none"
    if change == "no merges":
        merges = []
        vocab = {text: i for text, i in vocab.items() if len(text) == 1}
    if change == "other order":
        ids = draw.sample(sorted(vocab.values()), len(vocab))
        vocab = dict(zip(vocab, ids, strict=True))
    if change == "words":
        vocab["ĠTheĠquick"] = len(vocab)
    if change == "fewer bytes":
        gone = draw.choice("aĠĊ")
        merges = [merge for merge in merges if gone not in "".join(merge)]
        kept = [text for text in vocab if gone not in text]
        vocab = {text: i for i, text in enumerate(kept)}
    vocab[EOT] = len(vocab)
    return vocab, merges


def with_drawn_rules(draw: Draw) -> Tokenizer:
    """A byte-level BPE with a drawn normalizer, drawn steps, added tokens and ids around a text."""
    vocab, merges = byte_level_vocabulary(draw)
    del vocab[EOT]
    library = Tokenizer(models.BPE(vocab, merges, ignore_merges=draw.random() < 0.3))
    library.decoder = decoders.ByteLevel()
    last = p.ByteLevel(add_prefix_space=draw.rarely(0.15), use_regex=draw.random() < 0.6)
    behaviors = ["removed", "merged_with_previous", "merged_with_next", "contiguous"]
    behavior = draw.choice(behaviors) if draw.rarely(0.5) else "isolated"
    split = p.Split(Regex(draw.choice(PATTERNS)), behavior, draw.rarely(0.1))
    first = [
        p.Digits(individual_digits=draw.random() < 0.7),
        split,
        split,
        p.Punctuation(),
    ]
    steps = [draw.choice(first), last] if draw.random() < 0.6 else [last]
    library.pre_tokenizer = p.Sequence(steps) if len(steps) > 1 or draw.random() < 0.3 else last
    normalizers = [
        n.NFC(),
        n.NFKC(),
        n.NFD(),
        n.Lowercase(),
        n.Strip(),
        n.Replace("a", "b"),
        n.NFC(),
    ]
    if draw.rarely(0.3):
        library.normalizer = draw.choice(normalizers)
    library.add_special_tokens([EOT, "<|im_start|>"])
    for text in draw.sample(["<think>", " quick", "==", "日本"], draw.choice([0, 0, 1, 2])):
        strips = {"lstrip": draw.rarely(0.1), "rstrip": draw.rarely(0.1)}
        word = {"single_word": draw.random() < 0.2, "normalized": draw.random() < 0.5}
        library.add_tokens([AddedToken(text, **strips, **word)])
    begins = [None, None, "<|im_start|>", EOT]
    begin = draw.choice(begins)
    if begin:
        template = [(begin, library.token_to_id(begin))]
        library.post_processor = processors.TemplateProcessing(
            f"{begin} $0", special_tokens=template
        )
    return library


def letters(draw: Draw) -> Tokenizer:
    """Tokenizers of letters and words, which lose what they do not know."""
    known = sorted(set("".join(CORPUS)))
    vocab = {letter: i for i, letter in enumerate(["[UNK]", *known])}
    model = draw.choice(
        [
            models.WordLevel(vocab, unk_token="[UNK]"),
            models.WordPiece(vocab, unk_token="[UNK]"),
            models.Unigram([("[UNK]", 0.0), *((letter, -3.0) for letter in known)], 0),
            models.BPE(vocab, [], unk_token="[UNK]"),
        ]
    )
    library = Tokenizer(model)
    library.pre_tokenizer = draw.choice(
        [p.Split(Regex(r"[\s\S]"), "isolated"), p.Metaspace(), p.Whitespace()]
    )
    library.decoder = decoders.Fuse()
    library.add_special_tokens([EOT, "<|im_start|>"])
    return library


def as_vocabulary_and_merges(folder: Path, draw: Draw):
    """As older folders have it: no tokenizer.json, or one beside vocab.json and merges.txt."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content["model"]
    if model["type"] != "BPE":
        return
    vocab = model["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    if draw.random() < 0.8:
        path.unlink()


def with_other_tokens(folder: Path, draw: Draw):
    """tokenizer_config.json and its like name tokens, or a space before texts, that tokenizer.json does not."""
    path = folder / "tokenizer_config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    kind = draw.choice(["eos", "decoder", "prefix", "added", "bos"])
    if kind == "eos":
        about["eos_token"] = "</s>"
    if kind == "decoder":
        i = draw.choice([5, 3000])
        token = {"content": draw.choice(["==", "<new>"]), "special": False, "normalized": False}
        about["added_tokens_decoder"] = {
            str(i): token | {"lstrip": False, "rstrip": False, "single_word": False}
        }
    if kind == "prefix":
        about["add_prefix_space"] = True
    if kind == "added":
        (folder / "added_tokens.json").write_text(json.dumps({"<new>": 3000}))
    if kind == "bos":
        about["add_bos_token"] = True
    path.write_text(json.dumps(about), encoding="utf-8")
