"""What stands around a text: the ids before it are those of the folder's tokenizer, its chats ours or none."""

import json
from pathlib import Path

import pytest
from exports import bpe_tokenizer, exported, tiny_model
from tokenizers import processors

from lathe.reading import reading
from lathe.text.chat import TEMPLATES
from lathe.text.gpt2 import EOT
from lathe.text.hugging_face import special_token, their_file
from lathe.use.find_model import find_model
from lathe.use.hf.export import export
from lathe.use.hf.framing import ids_before_text
from lathe.use.hf.tokenizers import load_hf_tokenizer, write_tokenizer

BPE = bpe_tokenizer()
BEGIN = BPE.vocab_size  # the id of <s> in the folders here
TEMPLATE = processors.TemplateProcessing("<s> $0", special_tokens=[("<s>", BEGIN)])
WITH_END = processors.TemplateProcessing(
    "<s> $0 </s>", special_tokens=[("<s>", BEGIN), ("</s>", 0)]
)
BYTE_LEVEL = processors.ByteLevel()


def folder_of(path: Path, processor=None, **about) -> Path:
    """A folder whose config.json has a bos_token_id, as most do, and whose tokenizer does what is asked."""
    content = their_file(BPE.rules)
    content["added_tokens"].append(special_token("<s>", BEGIN))
    if processor is not None:
        content["post_processor"] = json.loads(processor.__getstate__())
    (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", **about}))
    (path / "config.json").write_text(
        json.dumps({"bos_token_id": BEGIN, "eos_token_id": BPE.eot_id})
    )
    return path


@pytest.mark.parametrize(
    "processor, about, begin",
    [
        (None, {}, []),
        (BYTE_LEVEL, {}, []),
        (TEMPLATE, {}, [BEGIN]),
        (processors.Sequence([BYTE_LEVEL, TEMPLATE]), {}, [BEGIN]),
        (processors.RobertaProcessing(("</s>", 0), ("<s>", BEGIN)), {}, [BEGIN]),
        (None, {"add_bos_token": True}, [BEGIN]),
        (None, {"add_bos_token": True, "bos_token": {"content": EOT}}, [BPE.eot_id]),
        (TEMPLATE, {"add_bos_token": False}, []),
        (TEMPLATE, {"add_eos_token": False}, []),
        (None, {"add_bos_token": True, "bos_token": None}, []),
    ],
)
def test_a_text_begins_as_the_tokenizer_has_it_not_the_config(processor, about, begin, tmp_path):
    folder = folder_of(tmp_path, processor, **about)
    assert load_hf_tokenizer(folder)[1] == begin


def test_a_beginning_that_is_no_token_is_refused(tmp_path):
    folder = folder_of(tmp_path, add_bos_token=True, bos_token="<new>")
    with pytest.raises(ValueError, match="'<new>' put beside texts, which is no token"):
        load_hf_tokenizer(folder)


def template(single: list[str], special_tokens: dict) -> dict:
    pieces = [
        {"Sequence": {"id": "A"}} if name == "A" else {"SpecialToken": {"id": name}}
        for name in single
    ]
    return {"type": "TemplateProcessing", "single": pieces, "special_tokens": special_tokens}


@pytest.mark.parametrize(
    "processor",
    [
        template(["<s>", "A"], {}),  # at which the library gives up
        template(["<s>"], {"<s>": {"ids": [1]}}),
        template(["A", "A"], {}),
        template(["<s>", "A"], {"<s>": {"ids": [2**40]}}),
        template(["<s>", "A"], {"<s>": {"ids": ["x"]}}),
        {"type": "Astrology"},
        {"type": "RobertaProcessing", "cls": [], "sep": []},
        [1],
    ],
)
def test_a_post_processor_that_cannot_be_is_refused_in_one_line(processor, tmp_path):
    folder = folder_of(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"post_processor": processor})
    )
    with pytest.raises(ValueError, match=str(tmp_path)) as error, reading(folder):
        ids_before_text(folder, BPE)
    assert "\n" not in str(error.value)


def test_what_ends_every_text_is_left_out_and_said(tmp_path, capsys):
    assert load_hf_tokenizer(folder_of(tmp_path, WITH_END))[1] == [BEGIN]
    assert "ends every text with token 0, which is left out" in capsys.readouterr().err


def test_our_exports_begin_as_their_runs_do_and_an_empty_prompt_is_an_end_of_text(tmp_path):
    model = tiny_model(BPE)
    export(model, BPE, tmp_path)
    found = find_model(f"hf:{tmp_path}")
    assert found.begin == (BPE.eot_id,)
    config = tmp_path / "tokenizer_config.json"
    about = json.loads(config.read_text())
    del about["prompts_begin_with"]  # as exports were before
    config.write_text(json.dumps(about))
    assert find_model(f"hf:{tmp_path}").begin == (BPE.eot_id,)
    (tmp_path / "README.md").unlink()
    found = find_model(f"hf:{tmp_path}")
    assert (
        found.begin == ()
        and found.encode("") == [BPE.eot_id]
        and found.encode("a") == BPE.encode("a")
    )


# -----------------------------------------------------------------------------
# Chats

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}{% endfor %}"""
# Those that lathe wrote first: another text for the same dialogue's last answer alone
EARLIER = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '' + message['content'] | trim }}{{ '\\n\\n' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] | trim }}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] | trim }}"
    "{% if loop.last %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
WORDS = "".join("".join(TEMPLATES[name].values()) for name in TEMPLATES)


def with_template(folder: Path, template: object, beside: bool = False) -> Path:
    exported(folder)
    if beside:
        (folder / "chat_template.jinja").write_text(template)
        return folder
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_of_ours_is_known_again(name, tmp_path):
    export(tiny_model(BPE), BPE, tmp_path)
    write_tokenizer(tmp_path, BPE, 20, name)
    assert find_model(f"hf:{tmp_path}").template == name


@pytest.mark.parametrize("beside", [False, True])
def test_it_is_known_wherever_it_stands_and_however_it_is_written(beside, tmp_path):
    assert find_model(f"hf:{with_template(tmp_path, EARLIER, beside)}").template == "chat"


def test_of_several_templates_the_default_counts(tmp_path):
    templates = [{"name": "tool_use", "template": CHATML}, {"name": "default", "template": EARLIER}]
    assert find_model(f"hf:{with_template(tmp_path, templates)}").template == "chat"


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        EARLIER.replace("Assistant:' }}", "Assistant: now' }}"),
        WORDS + "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        WORDS + "{% for",
        WORDS + "{{ raise_exception('no') }}",
        WORDS + "{{ 'a' * 10**12 }}",
        WORDS + "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**12 }}",  # is not run: it has none of our words
    ],
)
def test_another_chat_template_is_not_followed_and_that_is_said(template, tmp_path, capsys):
    assert find_model(f"hf:{with_template(tmp_path, template)}").template == ""
    assert (
        "its chat template is none of lathe's (turns, chat, instruction)" in capsys.readouterr().err
    )


def test_without_a_chat_template_nothing_is_said(tmp_path, capsys):
    exported(tmp_path)
    assert find_model(f"hf:{tmp_path}").template == ""
    assert "chat template" not in capsys.readouterr().err
