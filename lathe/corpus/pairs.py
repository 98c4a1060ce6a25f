"""Rows to prompts and completions, of which the completions are scored."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from lathe.corpus.rules import Rules, list_names
from lathe.json_text import refuse_repeated
from lathe.text.chat import TEMPLATES, chat_prompt

ROLES = TEMPLATES["chat"]  # system, user, assistant; the same in every template

# Beside a prompt these often hold a part of it, as in Alpaca's rows.
PROMPT_FIELDS = {"system", "context", "input", "history"}

# What of a row does not come into its pairs, or changed
UNANSWERED = "messages after the last answer left out"
OTHER_FIELDS = "fields of messages beside role and content left out"
PAIR_BESIDE = "prompts and completions left out, whose rows have messages, too"
REST_OF_PROMPT = "rows whose field {!r} is left out: join it to the prompt if it belongs there"
STRIPPED = "texts without the white space around them, as the template has them"


@dataclass(slots=True)
class Pair:
    prompt: str
    completion: str


def pairs_of(where: str, row: Any, rules: Rules, counts: Counter) -> list[Pair]:
    """A pair for each answer in a row, in the template; the prompt is all that was said before.
    `counts` gets what was left out or changed.

    ValueError, saying `where`, if there is none.
    """
    messages = _messages_of(where, row, rules)
    _count_what_is_lost(row, messages, rules, counts)
    pairs = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, space = chat_prompt(messages[:i], rules.template)
        answer = message["content"]
        if rules.template != "plain":
            answer = answer.strip()
        if not answer.strip():
            raise ValueError(
                f"{where}: the completion is empty; leave the row out, or give it text"
            )
        pairs.append(Pair(prompt, space + answer))
    if not pairs:
        raise ValueError(f"{where} has no message of the role assistant: nothing to learn from")
    return pairs


def _count_what_is_lost(row: dict, messages: list[dict], rules: Rules, counts: Counter):
    if rules.field in row:
        if row.get(rules.prompt_field) and row.get(rules.completion_field):
            counts[PAIR_BESIDE] += 1
        for message in messages:
            others = [key for key in message if message[key] and key not in ("role", "content")]
            counts[OTHER_FIELDS] += len(others)
    else:
        for name in sorted(PROMPT_FIELDS - {rules.prompt_field, rules.completion_field}):
            if row.get(name):
                counts[REST_OF_PROMPT.format(name)] += 1
    for message in reversed(messages):
        if message["role"] == "assistant":
            break
        counts[UNANSWERED] += 1
    if rules.template != "plain":
        texts = [message["content"] for message in messages]
        counts[STRIPPED] += sum(text != text.strip() for text in texts)


def _messages_of(where: str, row: Any, rules: Rules) -> list[dict]:
    """The messages of a row, [{"role", "content"}], checked; of a prompt and completion, two."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object with fields but {type(row).__name__}")
    refuse_repeated(where, row, (rules.field, rules.prompt_field, rules.completion_field))
    if rules.field in row:
        messages = row[rules.field]
        _check_messages(where, messages, rules)
        return messages
    for name in (rules.prompt_field, rules.completion_field):
        if name not in row:
            present = list_names(row)
            raise ValueError(
                f"{where} has no field {name!r}, nor messages in {rules.field!r}; "
                f"found: {present}. "
                f"Choose with --prompt_field and --completion_field, or --field for messages"
            )
        if not isinstance(row[name], str):
            raise ValueError(f"{where}: {name!r} is no text but {type(row[name]).__name__}")
    return [
        {"role": "user", "content": row[rules.prompt_field]},
        {"role": "assistant", "content": row[rules.completion_field]},
    ]


def _check_messages(where: str, messages: Any, rules: Rules):
    if rules.template == "plain":
        choices = ", ".join(TEMPLATES)
        raise ValueError(f"{where} has messages: they need a --template: {choices}")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f'{where}: {rules.field!r} is no list of {{"role": ..., "content": ...}}')
    for message in messages:
        refuse_repeated(f"{where}: a message", message, ("role", "content"))
        if not isinstance(message.get("content"), str) or message.get("role") not in ROLES:
            present = ", ".join(f"{key}={value!r:.40}" for key, value in message.items()) or "none"
            raise ValueError(
                f"{where}: a message needs a text as 'content' and a 'role' of {', '.join(ROLES)}; "
                f"found: {present}"
            )
