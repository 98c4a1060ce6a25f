"""tokenizer.json and chat templates, both ways."""

import json
from pathlib import Path

from lathe.text.chat import TEMPLATES
from lathe.text.gpt2 import EOT
from lathe.text.hugging_face import their_file
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.hf.find import read_file
from lathe.use.hf.framing import PROMPTS_BEGIN, ids_before_text

# -----------------------------------------------------------------------------
# Writing


def write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int, template: str = ""):
    """tokenizer.json and tokenizer_config.json, with the chat template of that name, if any."""
    text = json.dumps(their_file(tokenizer.rules), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    end = end_of_text(tokenizer)
    config = {
        # Without the class, transformers would guess one from the model and change the ids.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,  # never made, but ctranslate2 wants one
        # Without, transformers 4.57 adds token_type_ids, which most networks refuse.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        PROMPTS_BEGIN: end,
    }
    if template in TEMPLATES:
        config["chat_template"] = their_template(template, tokenizer)
    text = json.dumps(config, indent=1) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def end_of_text(tokenizer: Tokenizer) -> str:
    """The token that ends a text, as the folder calls it."""
    added = tokenizer.file["added_tokens"] if tokenizer.file else []
    return next((token["content"] for token in added if token["id"] == tokenizer.eot_id), EOT)


# What a message's text is, and what no message of ours can be. The variables are Hugging Face's.
READ_MESSAGE = """\
{%- if tools %}
{{- raise_exception('tools are given, of which this model knows nothing') }}
{%- endif %}
{%- set last = namespace(role='') %}
{{- bos_token }}
{%- for message in messages %}
{%- if message.get('tool_calls') %}
{{- raise_exception('a message has tool_calls, of which this model knows nothing') }}
{%- endif %}
{%- set words = namespace(text='') %}
{%- if message['content'] is string %}
{%- set words.text = message['content'] %}
{%- elif message['content'] is iterable and message['content'] is not mapping %}
{%- for part in message['content'] %}
{%- if part['type'] != 'text' %}
{{- raise_exception('content of type ' ~ part['type'] ~ ': this model reads text alone') }}
{%- endif %}
{%- set words.text = words.text ~ part['text'] %}
{%- endfor %}
{%- else %}
{{- raise_exception('a message of the role ' ~ message['role'] ~ ' has no text as content') }}
{%- endif %}
"""


def their_template(name: str, tokenizer: Tokenizer) -> str:
    """One of our chat templates in Jinja: applied, it gives the text of a document that
    prepare/pairs.py makes, up to the end-of-text.

    What precedes a message's words depends on no later message, and so a dialogue that goes on
    begins with the same text. That leaves no room for the end-of-text, which pairs have after their
    last answer alone: end_of_text=true adds it, for training elsewhere. What the model says stands
    between generation marks. Other roles, tools, and content that is no text are refused.
    """
    roles = TEMPLATES[name]
    begin, _, end_of_answer = roles["assistant"].partition("{}")
    space = " " if answers_begin_with_a_space(name, tokenizer) else ""
    prompt = begin.removesuffix(space)
    after_answer = "{%- if last.role == 'assistant' %}{{- " + repr(end_of_answer) + " }}{% endif %}"
    jinja = READ_MESSAGE + after_answer + "\n"
    test = "if"
    for role, form in roles.items():
        before, _, after = form.partition("{}")
        jinja += "{%- " + test + " message['role'] == " + repr(role) + " %}\n"
        if role == "assistant":
            words = repr(space) + " ~ words.text | trim"
            end = "{%- if loop.last and end_of_text %}{{- eos_token }}{% endif %}"
            jinja += "{{- " + repr(prompt) + " }}\n"
            jinja += "{%- generation %}{{- " + words + " }}" + end + "{%- endgeneration %}\n"
        else:
            words = repr(before) + " ~ words.text | trim ~ " + repr(after)
            jinja += "{{- " + words + " }}\n"
        test = "elif"
    known = ", ".join(roles)
    refusal = f"' is none of the roles that this model knows: {known}'"
    jinja += "{%- else %}{{- raise_exception(message['role'] ~ " + refusal + ") }}{% endif %}\n"
    jinja += "{%- set last.role = message['role'] %}{% endfor %}\n"
    jinja += "{%- if add_generation_prompt %}" + after_answer
    return jinja + "{{- " + repr(prompt) + " }}{% endif %}"


def answers_begin_with_a_space(template: str, tokenizer: Tokenizer) -> bool:
    """Whether the space before an answer is part of the answer: byte-level BPE has one token for a
    space and the word after it."""
    begin, _, _ = TEMPLATES[template]["assistant"].partition("{}")
    return begin.endswith(" ") and tokenizer.kind in ("bpe", "hf")


# -----------------------------------------------------------------------------
# Reading

UNREAD = ("tokenizer.model", "spiece.model", "tekken.json", "tiktoken.model", "vocab.txt")
UNREAD += ("merges.txt", "added_tokens.json")


def load_hf_tokenizer(folder: Path) -> tuple[Tokenizer, list[int], tuple[int, ...]]:
    """(tokenizer, ids that begin a text, ids that end one) of a folder: what its tokenizer puts
    before texts, not what config.json calls its bos. FileNotFoundError where there is no
    tokenizer."""
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{folder / 'tokenizer.json'} is missing: without it there is no text"
        )
    config = read_file(folder / "config.json")
    generation = {}
    if (folder / "generation_config.json").is_file():
        generation = read_file(folder / "generation_config.json")

    begin = ids_before_text(folder, tokenizer)

    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        ends = []
    elif isinstance(eos, list):
        ends = eos
    else:
        ends = [eos]
    if not all(isinstance(end, int) for end in ends):
        raise ValueError(f"{folder}: eos_token_id is {eos}, not a token's number or several")
    if any(not 0 <= end < 2**31 for end in ends):
        raise ValueError(f"{folder}: eos_token_id is {eos!r:.60}, no token's number")
    ends = tuple(dict.fromkeys([*ends, tokenizer.eot_id]))  # each once
    return tokenizer, begin, ends


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; for a GPT-2 without any file of one the gpt2 encoding; None if there
    is none. ValueError for one in files that lathe does not read."""
    names = ("tokenizer.json", "vocab.json")
    if any((folder / name).is_file() for name in names):
        return load_tokenizer(folder)
    others = [name for name in UNREAD if (folder / name).is_file()]
    if others:
        raise ValueError(
            f"{folder} has its tokenizer in {', '.join(others)}, which lathe does not read: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers writes "
            "tokenizer.json"
        )
    config = read_file(folder / "config.json")
    is_gpt2 = config.get("model_type") == "gpt2" and config.get("vocab_size", 50257) >= 50257
    return load_tokenizer("gpt2") if is_gpt2 else None
