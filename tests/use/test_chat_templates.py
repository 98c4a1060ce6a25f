"""The chat template that an export carries, as the clients that apply it see it."""

import pytest
from exports import bpe_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from lathe.text.chat import TEMPLATES, chat_prompt
from lathe.text.tokenizer import Tokenizer, load_tokenizer
from lathe.use.hf.tokenizers import write_tokenizer

TOKENIZERS = {"byte": load_tokenizer("byte"), "bpe": bpe_tokenizer()}
CASES = [(kind, template) for kind in TOKENIZERS for template in TEMPLATES]
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text("aB é\n日.")}
    ),
    min_size=1,
    max_size=6,
)
ASK = {"role": "user", "content": "Who?"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """{(tokenizer, template): what transformers makes of the folder}"""
    transformers = pytest.importorskip("transformers")
    opened = {}
    for kind, template in CASES:
        folder = tmp_path_factory.mktemp("template")
        write_tokenizer(folder, TOKENIZERS[kind], 512, template)
        opened[kind, template] = transformers.AutoTokenizer.from_pretrained(folder)
    return opened


def prompt_of(tokenizer: Tokenizer, messages: list[dict], template: str) -> list[int]:
    """The ids that sample.py begins an answer with, and the space where it is a token."""
    text, space = chat_prompt(messages, template)
    if tokenizer.kind == "byte":
        text += space
    return [tokenizer.eot_id, *tokenizer.encode(text)]


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25)
@given(messages=MESSAGES)
def test_a_prompt_is_sample_pys_and_a_longer_dialogue_begins_with_the_shorter(
    theirs, case, messages
):
    apply = theirs[case].apply_chat_template
    kind, template = case
    ids = apply(messages, add_generation_prompt=True, return_dict=False)
    assert ids == prompt_of(TOKENIZERS[kind], messages, template)
    before = ""
    for n in range(1, len(messages) + 1):
        text = apply(messages[:n], tokenize=False)
        assert text.startswith(before)
        assert apply(messages[:n], tokenize=False, add_generation_prompt=True).startswith(text)
        before = text


@pytest.mark.parametrize("case", CASES)
def test_answers_stand_between_generation_marks_with_the_end_that_is_asked_for(theirs, case):
    tokenizer = theirs[case]
    dialogue = [
        ASK,
        {"role": "assistant", "content": "Me."},
        ASK,
        {"role": "assistant", "content": "You"},
    ]
    made = tokenizer.apply_chat_template(
        dialogue, return_dict=True, return_assistant_tokens_mask=True, end_of_text=True
    )
    marked = zip(made["input_ids"], made["assistant_masks"], strict=True)
    said = tokenizer.decode([i for i, mark in marked if mark])
    assert said.replace(" ", "") == "Me.You<|endoftext|>"
    assert made["input_ids"][-1] == tokenizer.eos_token_id


def test_content_in_parts_is_joined(theirs):
    apply = theirs["bpe", "chat"].apply_chat_template
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]
    assert apply([ASK | {"content": parts}], tokenize=False) == apply([ASK], tokenize=False)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("messages", "more", "message"),
    [
        (
            [{"role": "tool", "content": "4"}],
            {},
            "tool is none of the roles .* system, user, assistant",
        ),
        ([ASK, {"role": "judge", "content": "4"}], {}, "judge is none of the roles"),
        ([ASK | {"content": [{"type": "image", "url": "x"}]}], {}, "content of type image"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], {}, "tool_calls"),
        ([ASK | {"content": 7}], {}, "no text as content"),
        ([ASK], {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools are given"),
    ],
)
def test_what_the_model_never_saw_is_refused_and_not_dropped(theirs, case, messages, more, message):
    with pytest.raises(TemplateError, match=message):
        theirs[case].apply_chat_template(messages, tokenize=False, **more)
