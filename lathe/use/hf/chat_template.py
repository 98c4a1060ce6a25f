"""The chat template of a Hugging Face folder: one of ours, by its name, or none."""

from pathlib import Path

from lathe.terminal import print_note
from lathe.text import chat_trial
from lathe.text.beside import read_if_there, text_of
from lathe.text.chat import TEMPLATES, chat_prompt
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.tokenizers import their_template

# A template that makes of these what one of ours does is taken for that.
PROBES = [
    [{"role": "user", "content": "A b?"}],
    [{"role": "system", "content": "Be c."}, {"role": "user", "content": "D"}],
    [
        {"role": "user", "content": "E"},
        {"role": "assistant", "content": "F g."},
        {"role": "user", "content": " H\n"},
    ],
]


def template_of(folder: Path, tokenizer: Tokenizer, begin: list[int]) -> str:
    """The name of our chat template that the folder's is, "" if it has none; "" and a note if it is
    another. begin: the ids before a text.

    One that has the words of ours, in another text, is run to see whether it writes what ours do
    (chat_trial.py). No other is run at all.
    """
    source = chat_template(folder)
    if not source:
        return ""
    about = read_if_there(folder / "tokenizer_config.json")
    tokens = {role: text_of(about.get(role)) or "" for role in ("bos_token", "eos_token")}
    bos = tokens["bos_token"] if begin else ""
    for name in TEMPLATES:
        if bos and source.strip() == their_template(name, tokenizer).strip():
            return name
    names = [name for name in TEMPLATES if has_words_of(name, source)]
    texts = chat_trial.render(source, PROBES, tokens) if names else None
    for name in names:
        # Whether the space before an answer is its own, depends on the tokenizer.
        ours = [bos + chat_prompt(messages, name)[0] for messages in PROBES]
        if texts and [text.rstrip(" ") for text in texts] == [text.rstrip(" ") for text in ours]:
            return name
    print_note(
        f"{folder}: its chat template is none of lathe's ({', '.join(TEMPLATES)}): prompts are "
        "given to the model as they are"
    )
    return ""


def chat_template(folder: Path) -> str:
    """In Jinja, from the place where any version of transformers has it; "" for none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    template = read_if_there(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in template}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def has_words_of(name: str, source: str) -> bool:
    """Whether all that our template of that name writes around messages stands in `source`."""
    words = [part.strip() for form in TEMPLATES[name].values() for part in form.split("{}")]
    return all(word in source for word in words)
