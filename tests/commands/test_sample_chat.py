"""From chats to a model that chats, through the commands."""

import itertools
import json
import math
import subprocess

import numpy as np
import pytest
import tiny_run
import torch
from paired import CHAT, PAIRS, prepare

import evaluate
import sample
import train
from lathe.data.dataset import open_dataset
from lathe.run import checkpoint
from lathe.text.chat import TEMPLATES, chat_prompt
from lathe.use.find_model import find_model
from lathe.use.hf import tokenizers as hf_tokenizers

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory):
    """A run that has learned four answers by heart, of which "again" needs the turn before it."""
    folder = tmp_path_factory.mktemp("chats")
    rows = []
    for color, fruit in (("red", "apple"), ("blue", "plum")):
        turns = [("user", color), ("assistant", fruit), ("user", "again"), ("assistant", fruit)]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    torch.manual_seed(0)
    same = folder / "same.jsonl"  # what is learned by heart is what validation asks for
    same.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(folder, rows, template="chat", val_input=same)
    shape = dict(
        block_size=96, n_embd=64, batch_size=4, micro_batch_size=4, max_steps=120, eval_interval=120
    )
    out = folder / "run"
    shown = dict(sample_prompt="red", sample_tokens=8, num_samples=1)
    train.main(
        tiny_run.arguments(
            folder / "data", out, document_mask="true", learning_rate=0.01, **shape, **shown
        )
    )
    return out


def test_samples_at_evaluations_are_answers(chat_run):
    row = json.loads((chat_run / "samples.jsonl").read_text().splitlines()[-1])
    assert (row["prompt"], row["text"]) == ("red", " apple")


def test_a_dialogue_is_in_the_chat_format_of_the_checkpoint(chat_run):
    words = (
        "sample.py",
        f"--out_dir={chat_run}",
        "--interactive",
        "--temperature=0",
        "--device=cpu",
    )
    process = tiny_run.command(*words, stdin=subprocess.PIPE)
    out, err = process.communicate("red\nagain\n/again\n/new\nblue\n\u00e9\nagain\n", timeout=60)
    assert out.replace("> ", "").split("\n")[:4] == ["apple", "apple", "apple", "plum"], err
    assert "a message, or /help" in err


def test_prompts_are_questions_unless_chat_is_off(chat_run, capsys):
    sample.main(
        [f"--out_dir={chat_run}", "--prompt", "red", "blue", "--temperature=0", "--device=cpu"]
    )
    assert capsys.readouterr().out == "apple\nplum\n"
    text = "--prompt=User: red\nAssistant: apple\nUser: again\nAssistant:"
    sample.main([f"--out_dir={chat_run}", "--chat=false", text, "--temperature=0", "--device=cpu"])
    assert capsys.readouterr().out == " apple\n"


def test_a_system_message_without_a_chat_template_is_refused(chat_run):
    words = [
        f"--out_dir={chat_run}",
        "--prompt=red",
        "--system=Be brief.",
        "--temperature=0",
        "--device=cpu",
    ]
    assert sample.main(words) == 0
    with pytest.raises(ValueError, match="without a chat template: leave it out"):
        sample.main([*words, "--chat=false"])


def test_the_loss_of_evaluate_is_that_of_each_answer_alone(chat_run, capsys):
    """Bits per byte, too, count what is scored and nothing else."""
    evaluate.main([f"--out_dir={chat_run}", "--device=cpu"])
    found = json.loads(capsys.readouterr().out)
    path = checkpoint.find_checkpoint(chat_run)
    model, dataset = find_model(path).load(), open_dataset(chat_run.parent / "data")
    assert model.config.document_token == 256
    ids, mask = dataset.val.shards[0].astype(int), dataset.val.mask.shards[0]
    nats = text_nats = n = n_bytes = 0
    for begin, end in itertools.pairwise(np.flatnonzero(ids == 256)):
        x, y = (torch.tensor(ids[a : a + end - begin])[None] for a in (begin, begin + 1))
        losses = model(x, y, reduction="none").detach()[0].double()[mask[begin + 1 : end + 1] == 1]
        nats, n, text_nats = nats + losses.sum(), n + len(losses), text_nats + losses[:-1].sum()
        n_bytes += len(losses) - 1  # each byte is a token, but end-of-text is none
    assert (
        found["tokens"]
        == n
        == sum(len(f" {fruit}") + 1 for fruit in ("apple", "apple", "plum", "plum"))
    )
    assert found["loss"] == pytest.approx((nats / n).item(), abs=1e-5)
    assert found["bits_per_byte"] == pytest.approx(
        (text_nats / n_bytes).item() / math.log(2), abs=1e-5
    )


def test_fine_tuning_says_what_is_cut_and_refuses_another_tokenizer(chat_run, tmp_path, capsys):
    data = chat_run.parent / "data"
    train.main(tiny_run.arguments(data, tmp_path / "run", block_size=32, max_steps=1))
    assert (
        "2 documents exceed block_size: the beginnings of their prompts are left out"
        in capsys.readouterr().err
    )
    same = prepare(tmp_path / "same", PAIRS, tokenizer=chat_run, val_fraction=0.3)
    train.main(
        tiny_run.arguments(
            same.path, tmp_path / "more", init_from=chat_run, block_size=96, max_steps=1
        )
    )
    other = prepare(tmp_path / "other", PAIRS, tokenizer="char", val_fraction=0.3)
    with pytest.raises(
        ValueError,
        match="has tokenizer char, the checkpoint .* byte .*prepare the data with --tokenizer",
    ):
        train.main(tiny_run.arguments(other.path, tmp_path / "new", init_from=chat_run))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_an_exported_chat_template_makes_the_ids_that_were_trained_on(
    tmp_path, template, tokenizer
):
    from transformers import AutoTokenizer

    dataset = prepare(tmp_path, [{"messages": CHAT}], template=template, tokenizer=tokenizer)
    hf_tokenizers.write_tokenizer(tmp_path, dataset.tokenizer(), 64, template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = dataset.train.shards[0].tolist()
    last = ids[ids.index(dataset.tokenizer().eot_id, 1) :]
    document = theirs.apply_chat_template(CHAT, return_dict=False, end_of_text=True)
    assert document == last
    assert theirs.apply_chat_template(CHAT, return_dict=False) == last[:-1]
    text, space = chat_prompt(CHAT[:-1], template)
    if tokenizer == "byte":  # where it is a token of its own
        text += space
    prompt = [last[0], *dataset.tokenizer().encode(text)]
    assert (
        theirs.apply_chat_template(CHAT[:-1], add_generation_prompt=True, return_dict=False)
        == prompt
    )
