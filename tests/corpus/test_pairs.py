"""prepare/pairs.py: prompts and completions, or chats, to tokens of which only the answers are scored."""

import itertools
import json
import math
import random
import subprocess

import numpy as np
import pytest
import tiny_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
import sample
import train
from lathe.data.batches import TrainBatches, count_val_windows, val_windows
from lathe.data.dataset import Stream, open_dataset
from lathe.data.shards import ShardWriter
from lathe.run import checkpoint
from lathe.text.chat import chat_prompt
from lathe.use.find_model import find_model
from lathe.use.hf import tokenizers as hf_tokenizers
from model import GPT, IGNORE, GPTConfig
from prepare import pairs, verify

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")
PAIRS = [
    {"prompt": f"reverse {w}\n", "completion": w[::-1]}
    for w in "abc hello x lathe token of many words".split()
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " hi {there}\n"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
]


def prepare(folder, rows, **options):
    """The dataset that pairs.py makes of these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    options = {
        "input": path,
        "out": folder / "data",
        "tokenizer": "byte",
        "val_fraction": 0,
        **options,
    }
    pairs.main([f"--{name}={value}" for name, value in options.items()])
    return open_dataset(folder / "data", verify=True)


def scored_texts(dataset, block_size, split="train"):
    """(input, scored targets) of each window, as text."""
    tokenizer = dataset.tokenizer()
    for x, y in val_windows(getattr(dataset, split), block_size, 0, 1):
        yield [
            tokenizer.decode(ids.tolist(), specials=True) for ids in (x[0], y[0][y[0] != IGNORE])
        ]


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


def test_shards_workers_and_repeated_rows_change_nothing_that_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr("lathe.corpus.units.UNIT_BYTES", 400)
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


def test_an_interrupted_run_continues_with_its_mask(tmp_path, monkeypatch):
    monkeypatch.setattr("lathe.corpus.units.UNIT_BYTES", 400)
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
    ('["a", "b"]\n', "is no object with fields but list"),
    ({"messages": CHAT}, "they need --template chat or instruction"),
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


@pytest.mark.parametrize("damage", ["shorter", "other"])
def test_a_damaged_mask_is_found(tmp_path, damage):
    prepare(tmp_path, PAIRS)
    path = tmp_path / "data" / "train_000000.mask"
    path.write_bytes(path.read_bytes()[:-1] + b"\0" * (damage == "other"))
    with pytest.raises(ValueError, match=r"train_000000\.mask (is truncated or|was) changed"):
        open_dataset(tmp_path / "data", verify=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train_000000\.mask is missing"):
        open_dataset(tmp_path / "data")


# Windows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 20),
    st.data(),
)
def test_windows_score_each_target_once_and_cut_no_pair_that_fits(lengths, block_size, data):
    tokens, mask = [], []
    for n_prompt, n_completion in lengths:
        tokens += [0, *range(1, 1 + n_prompt + n_completion)]
        mask += [1] + [0] * n_prompt + [1] * n_completion
    tokens, mask = np.array([*tokens, 0], np.uint16), np.array([*mask, 1], np.uint8)
    at = sorted(data.draw(st.sets(st.integers(1, len(tokens) - 1), max_size=2)))
    stream = Stream(np.split(tokens, at), np.split(mask, at))
    stream.eot_id = 0
    spans = stream.spans(block_size)
    assert spans.n_longer == sum(1 + p + c > block_size for p, c in lengths)
    seen = np.zeros(len(tokens), int)
    for begin, end in zip(spans.begins, spans.ends, strict=True):
        assert 0 < end - begin <= block_size and mask[begin + 1 : end + 1].any()
        seen[begin + 1 : end + 1] += 1
    assert ((seen == 1) | (mask == 0) | (np.arange(len(tokens)) == 0)).all() and seen.max() == 1
    begins = np.flatnonzero(tokens == 0)
    for (p, c), begin in zip(lengths, begins, strict=False):
        inside = (spans.begins <= begin) & (begin + 1 + p + c <= spans.ends)
        assert inside.any() == (1 + p + c <= block_size)
    order = [list(val_windows(stream, block_size, 0, 2, rank, 2)) for rank in range(2)]
    targets = [y[y != IGNORE].tolist() for rank in order for _, y in rank]
    assert sorted(sum(targets, [])) == sorted(tokens[1:][mask[1:] == 1].tolist())
    assert count_val_windows(stream, block_size, 0) == len(spans)


def test_the_count_of_targets_is_what_the_ranks_fetch(tmp_path):
    random.seed(1)
    rows = [
        {"prompt": "p" * random.randint(1, 20), "completion": "c" * random.randint(1, 30)}
        for _ in range(40)
    ]
    dataset = prepare(tmp_path, rows)
    ranks = [TrainBatches(dataset, 24, 8, 2, 5, "cpu", rank, 2) for rank in range(2)]
    assert ranks[0].n_longer == sum(1 + len(r["prompt"]) + len(r["completion"]) > 24 for r in rows)
    seen = 0
    for step in range(6):
        fetched = sum(
            int((b.fetch(8 * step, micro)[1] != IGNORE).sum()) for b in ranks for micro in range(2)
        )
        assert fetched == ranks[0].targets(8 * step) == ranks[1].targets(8 * step) > 0
        seen += fetched
    assert seen > 0


def test_pairs_shorter_than_a_block_are_trained_on(tmp_path):
    dataset = prepare(tmp_path, PAIRS[:2])
    batches = TrainBatches(dataset, 500, 2, 2, 0, "cpu")
    x, y = batches.fetch(0, 0)
    assert (
        batches.targets(0)
        == 2 * sum(len(row["completion"]) + 1 for row in PAIRS[:2])
        == int((y != IGNORE).sum())
    )


def test_pairs_mix_with_text_of_which_all_is_scored(tmp_path):
    prepare(tmp_path, PAIRS, val_fraction=0.3)
    text = tiny_run.make_dataset(tmp_path / "text")
    mixture = open_dataset(f"{text}:0.5,{tmp_path / 'data'}:0.5")
    batches = TrainBatches(mixture, 32, 8, 8, 0, "cpu")
    rows = [row for step in range(8) for row in batches.fetch(8 * step, 0)[1].clone()]
    scored = [(row != IGNORE).float().mean().item() for row in rows]
    assert sum(share == 1 for share in scored) == 32 and all(
        0 < share < 1 for share in scored if share != 1
    )
    found = sum(int((y != IGNORE).sum()) for _, y in val_windows(mixture.val, 32, 0, 4))
    parts = [open_dataset(text).val.n_tokens, open_dataset(tmp_path / "data").val.n_tokens]
    assert parts[0] < found < sum(parts)


# Losses


def test_gradients_with_masked_prompts_are_those_of_the_completions_by_hand(tmp_path):
    """Bar 5. By hand: each pair alone, the log-probabilities of its completion and end-of-text summed."""
    dataset = prepare(tmp_path, PAIRS)
    tokenizer, block_size = dataset.tokenizer(), 64
    config = dict(
        vocab_size=257, block_size=block_size, n_layer=2, n_head=2, n_embd=32, zero_init=False
    )
    model = GPT(GPTConfig(**config)).double()
    by_hand, n = 0.0, 0
    for row in PAIRS:
        prompt, completion = (
            tokenizer.encode(row["prompt"]),
            [*tokenizer.encode(row["completion"]), tokenizer.eot_id],
        )
        ids = torch.tensor([[tokenizer.eot_id, *prompt, *completion[:-1]]])
        logprobs = model(ids)[0].double().log_softmax(-1)[len(prompt) :]
        by_hand = by_hand - logprobs.gather(1, torch.tensor(completion).unsqueeze(1)).sum()
        n += len(completion)
    (by_hand / n).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.config.document_token = tokenizer.eot_id
    batches = TrainBatches(dataset, block_size, 2, 1, 0, "cpu")
    windows = len(dataset.train.spans(block_size))
    assert windows > 1
    epoch = TrainBatches(dataset, block_size, windows, 1, 0, "cpu")
    assert epoch.targets(0) == n and batches.targets(0) < n
    for micro in range(windows):
        (model(*epoch.fetch(0, micro), reduction="sum") / epoch.targets(0)).backward()
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).abs().max() <= 1e-6, name


# From chats to a model that chats


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory):
    """A run that has learned four answers by heart, of which "again" needs the turn before it."""
    folder = tmp_path_factory.mktemp("chats")
    rows = []
    for color, fruit in (("red", "apple"), ("blue", "plum")):
        turns = [("user", color), ("assistant", fruit), ("user", "again"), ("assistant", fruit)]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    torch.manual_seed(0)
    prepare(folder, rows, template="chat", val_input=folder / "rows.jsonl")
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


@pytest.mark.parametrize("template", ["chat", "instruction"])
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
    assert theirs.apply_chat_template(CHAT, return_dict=False) == last
    prompt = [last[0], *dataset.tokenizer().encode(chat_prompt(CHAT[:-1], template)[0])]
    assert (
        theirs.apply_chat_template(CHAT[:-1], add_generation_prompt=True, return_dict=False)
        == prompt
    )
