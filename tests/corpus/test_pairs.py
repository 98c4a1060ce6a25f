"""prepare/pairs.py: prompts and completions, or chats, to tokens of which only the answers are scored."""

import itertools
import json

import numpy as np
import pytest
from paired import CHAT, PAIRS, prepare, scored_texts

from lathe.corpus.pairs import OTHER_FIELDS, PAIR_BESIDE, REST_OF_PROMPT, STRIPPED, UNANSWERED
from lathe.data.shards import ShardWriter
from prepare import verify


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_completions_and_the_end_of_text_behind_them_are_scored_and_nothing_else(
    tmp_path, tokenizer
):
    dataset = prepare(tmp_path, PAIRS, tokenizer=tokenizer)
    [[text, scored]] = list(scored_texts(dataset, dataset.train.n_tokens - 1))
    assert text == "".join(f"<|endoftext|>{row['prompt']}{row['completion']}" for row in PAIRS)
    assert scored == "".join(f"{row['completion']}<|endoftext|>" for row in PAIRS)
    totals = dataset.meta["totals"]["train"]
    assert totals["documents"] == len(PAIRS) and totals["tokens"] == dataset.train.n_tokens
    assert f"\n{len(PAIRS)} documents, " in verify.report(
        dataset, verify.Options([dataset.path], windows=0)
    )


def test_the_ids_of_a_prompt_do_not_depend_on_its_completion(tmp_path):
    """ "rever" + "se" would be one token in one piece; sampling encodes the prompt alone."""
    row = {"prompt": "reverse " * 20 + "rever", "completion": "se"}
    dataset = prepare(tmp_path, [row], tokenizer="bpe:270")
    tokenizer, ids = dataset.tokenizer(), dataset.train.shards[0].tolist()
    prompt = [tokenizer.eot_id, *tokenizer.encode(row["prompt"])]
    assert ids[: len(prompt)] == prompt and tokenizer.encode(row["prompt"] + "se") != ids[1:-1]


def test_a_chat_is_one_document_per_answer_with_all_before_it_as_prompt(tmp_path):
    dataset = prepare(tmp_path, [{"messages": CHAT}], template="chat")
    assert dataset.template == "chat"
    first = "<|endoftext|>Be brief.\n\nUser: hi {there}\nAssistant: hello"
    second = f"{first}\nUser: bye\nAssistant: ciao"
    [found] = list(scored_texts(dataset, dataset.train.n_tokens - 1))
    assert found == [first + second, " hello<|endoftext|> ciao<|endoftext|>"]


def test_what_of_a_chat_is_left_out_or_changed_is_counted(tmp_path):
    user = {"role": "user", "content": "hi\n"}
    call = {"role": "assistant", "content": "hello", "tool_calls": [{"name": "f"}], "name": None}
    rows = [
        {"messages": [user, call, user], "prompt": "a", "completion": "b", "id": 1},
        {"messages": [user | {"content": "hi"}, call | {"tool_calls": []}]},
        {"prompt": "hi ", "completion": "hello"},
    ]
    dataset = prepare(tmp_path, rows, template="chat")
    assert dataset.meta["totals"]["train"]["documents"] == 3
    assert dataset.meta["counts"] == {UNANSWERED: 1, OTHER_FIELDS: 1, PAIR_BESIDE: 1, STRIPPED: 3}


def test_a_field_that_may_belong_to_the_prompt_is_counted(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3", "id": 1},
        {"instruction": "Say hello.", "input": "", "output": "hello", "id": 2},
    ]
    names = {"prompt_field": "instruction", "completion_field": "output"}
    dataset = prepare(tmp_path, rows, template="instruction", **names)
    assert dataset.meta["counts"] == {REST_OF_PROMPT.format("input"): 1}


def test_the_instruction_template_takes_pairs_too(tmp_path):
    rows = [{"instruction": "Add 1 and 2.", "output": "3"}]
    names = {"prompt_field": "instruction", "completion_field": "output"}
    dataset = prepare(tmp_path, rows, template="instruction", **names)
    [[text, scored]] = list(scored_texts(dataset, dataset.train.n_tokens - 1))
    assert text == "<|endoftext|>### Instruction:\nAdd 1 and 2.\n\n### Response:\n3"
    assert scored == "3<|endoftext|>"


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_other_kinds_of_files_give_the_same_tokens(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps(PAIRS))
    elif kind == "csv":
        path.write_text(
            "id,prompt,completion\n"
            + "".join(f'0,"{r["prompt"]}",{r["completion"]}\n' for r in PAIRS)
        )
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), path)
    found = prepare(tmp_path, [], input=path).train
    expected = prepare(tmp_path / "jsonl", PAIRS).train
    for a, b in ((found, expected), (found.mask, expected.mask)):
        assert np.concatenate(a.shards).tolist() == np.concatenate(b.shards).tolist()


def test_shards_workers_and_repeated_rows_change_nothing_that_is_scored(tmp_path, unit_bytes):
    unit_bytes(400)
    rows = [{"prompt": f"{i} and {i}?", "completion": f" {2 * i}"} for i in range(100)]
    plain = prepare(tmp_path / "a", rows, val_fraction=0.2)
    cut = prepare(
        tmp_path / "b", rows + rows, val_fraction=0.2, shard_tokens=77, workers=2, dedup=True
    )
    assert plain.val.n_tokens > 100
    for split in ("train", "val"):
        one, many = (sorted(scored_texts(d, 50, split)) for d in (plain, cut))
        assert one == many
        assert len(getattr(cut, split).shards) == len(getattr(cut, split).mask.shards) > 1


def test_an_interrupted_run_continues_with_its_mask(tmp_path, monkeypatch, unit_bytes):
    unit_bytes(400)
    rows = [{"prompt": f"{i} and {i}?", "completion": f" {2 * i}"} for i in range(100)]
    options = dict(val_fraction=0.2, shard_tokens=77)
    straight = prepare(tmp_path / "straight", rows, **options)
    real, n_calls = ShardWriter.append, itertools.count(1)

    def append(writer, tokens, scored=None):
        real(writer, tokens, scored)
        if next(n_calls) == 7:  # in the middle of a unit: train is written, val is not
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "append", append)
        prepare(tmp_path / "out", rows, **options)
    assert list((tmp_path / "out" / "data").glob("*.mask.tmp"))
    assert prepare(tmp_path / "out", rows, **options).fingerprint == straight.fingerprint


def test_the_answers_of_a_chat_are_on_the_same_side_of_the_split(tmp_path):
    rows = []
    for i in range(60):
        turns = [
            [{"role": "user", "content": f"{i}.{t}"}, {"role": "assistant", "content": f"{t}"}]
            for t in range(3)
        ]
        rows.append({"messages": sum(turns, [])})
    dataset = prepare(tmp_path, rows, template="chat", val_fraction=0.3)
    sides = [
        {text.split("User: ")[1].split(".")[0] for text, _ in scored_texts(dataset, 90, s)}
        for s in ("train", "val")
    ]
    assert not sides[0] & sides[1] and sides[1]
    assert [dataset.meta["totals"][s]["documents"] % 3 for s in ("train", "val")] == [0, 0]


def test_a_few_pairs_are_split_between_pairs(tmp_path):
    dataset = prepare(tmp_path, PAIRS[:2], val_fraction=0.4)
    assert sorted(dataset.meta["totals"][split]["documents"] for split in ("train", "val")) == [
        1,
        1,
    ]


@pytest.mark.parametrize("row, said", [
    ('{"question": "a", "answer": "b"}\n', "no field 'prompt', nor messages in 'messages'; found: question, answer"),
    ('{"prompt": "a"}\n', "no field 'completion', nor messages in 'messages'; found: prompt"),
    ('{"prompt": "a", "completion": " "}\n', "the completion is empty"),
    ('{"prompt": "a", "completion": 3}\n', "'completion' is no text but int"),
    ('{"prompt": "a", "completion": "b"\n', "is not JSON"),
    ('["a", "b"]\n', "is a list, no row"),
    ({"messages": CHAT}, "they need a --template: turns, chat, instruction"),
])  # fmt: skip
def test_a_bad_row_is_one_line_with_file_and_line(tmp_path, row, said):
    with pytest.raises(ValueError, match=r"rows\.jsonl:3") as error:
        prepare(tmp_path, [*PAIRS[:2], row])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "data" / "meta.json").exists()


@pytest.mark.parametrize("messages, said", [
    ([], "no message of the role assistant"),
    ("hi", "'messages' is no list of"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "the completion is empty"),
    ([{"from": "human", "value": "a"}], "found: from='human', value='a'"),
])  # fmt: skip
def test_bad_messages_are_one_line(tmp_path, messages, said):
    with pytest.raises(ValueError, match=r"rows\.jsonl:1") as error:
        prepare(tmp_path, [{"messages": messages}], template="chat")
    assert said in str(error.value)


def test_what_has_no_rows_is_refused(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("Once")
    with pytest.raises(ValueError, match=r"book\.txt has no rows: say with --format"):
        prepare(tmp_path, [], input=path)
