"""The page of a model: how the numbers from inside become HTML."""

import numpy as np

from lathe.text.tokenizer import Tokenizer
from model import GPT
from pages.inside import look_inside, parts
from pages.options import ModelOptions
from pages.render import render


def model_page(
    model: GPT,
    tokenizer: Tokenizer,
    name: str,
    about: dict,
    options: ModelOptions,
    begin: tuple[int, ...] | None = None,
    ends: tuple[int, ...] | None = None,
) -> str:
    """The page of a model (on the CPU, float32) that reads options.prompt after the ids `begin`.

    The ids `ends` stop what it writes; both are end-of-text by default. about: facts for the head
    of the page. Raises ValueError for a prompt too long or a page too large.
    """
    ids = [*([tokenizer.eot_id] if begin is None else begin), *tokenizer.encode(options.prompt)]
    data = look_inside(
        model, tokenizer, ids, options, (tokenizer.eot_id,) if ends is None else ends
    )
    bits = [None, *(data["surprisal"] / np.log(2)).tolist()]
    texts = [data["tokens"][token] for token in data["ids"]]
    drawing, n_params = parts(model)
    return render(
        "model",
        scripts=("common.js", "model.js"),
        styles=("style.css",),
        data=data,
        max_mb=options.max_mb,
        shrink="shorten --prompt, name fewer --heads, or raise --max_mb",
        name=name,
        about=about,
        rows=list(zip(texts, bits, strict=True)),
        drawing=drawing,
        n_params=n_params,
        config=vars(model.config),
        nats=data["nats"],
        bits_per_byte=data["bits_per_byte"],
        stopped=data["stopped"],
    )
