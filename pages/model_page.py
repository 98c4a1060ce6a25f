"""What the page of a model shows."""

from dataclasses import dataclass, field

import numpy as np

from pages.render import render


@dataclass
class ModelOptions:
    """Which model to look into, with which text."""

    out_dir: str = "out/quickstart"  # a run's folder (its best checkpoint) or one checkpoint's folder
    model: str = ""  # instead of out_dir: hf:NAME_OR_FOLDER, a Hugging Face model
    prompt: str = "Jane visits Africa in September."  # text to look at
    out: str = ""  # page to write; empty = model.html in the run's folder, or here for a Hugging Face model
    heads: list[str] = field(default_factory=list)  # LAYER.HEAD ... to show step by step; empty = the most telling ones
    max_new_tokens: int = 30  # length of the text that the model writes behind the prompt
    temperature: float = 0.8  # of that text
    seed: int = 1337  # of that text
    leave_out: int = 0  # how many tokens, from the last, are left out one by one; 0 = as many as take seconds
    max_mb: float = 2.5  # largest page, in MB

    def __post_init__(self):
        for name in ("max_new_tokens", "temperature", "leave_out"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")


# A model


def model_page(model, tokenizer, name: str, about: dict, options: ModelOptions, begin=None, ends=None) -> str:
    """The page of a model (on the CPU, float32) reading options.prompt behind the ids `begin`; the ids `ends` stop what
    it writes; both are end-of-text by default. Raises ValueError for a prompt too long or a page too large."""
    from pages.inside import look_inside, parts

    ids = [*(begin or [tokenizer.eot_id]), *tokenizer.encode(options.prompt)]
    data = look_inside(model, tokenizer, ids, options, ends or (tokenizer.eot_id,))
    bits = [None, *(data["surprisal"] / np.log(2)).tolist()]
    texts = [data["tokens"][token] for token in data["ids"]]
    drawing, n_params = parts(model)
    return render(
        "model", ("common.js", "model.js"), ("style.css",), data, options.max_mb,
        "shorten --prompt, name fewer --heads, or raise --max_mb", name=name, about=about,
        rows=list(zip(texts, bits, strict=True)), drawing=drawing, n_params=n_params, config=vars(model.config),
        nats=data["nats"], bits_per_byte=data["bits_per_byte"], stopped=data["stopped"],
    )  # fmt: skip
