"""Promises of sample.py: what is chosen, that neither caches nor company change it, and what the command prints."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import command as start
from tiny_run import loud_model

import sample
from lathe import ROOT
from lathe.run import checkpoint
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.gpt2 import GPT2_PATTERN
from lathe.text.tokenizer import load_tokenizer, train_char
from lathe.use.filters import choose, distribution, penalize
from lathe.use.generation import generate
from lathe.use.quantize import choose_weights, prepare_weights
from lathe.use.sampling import Sampling
from lathe.use.stream import TextStream
from model import CHOICES, GPT, GPT2

TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken"
T, V = 24, 61
GREEDY = Sampling(temperature=0)


def tiny_model(**changes) -> GPT:
    return loud_model(**dict(vocab_size=V, block_size=T, n_head=4) | changes)


def rows_of(steps, n_rows) -> list[list[int]]:
    rows = [[] for _ in range(n_rows)]
    for tokens in steps:
        for token in tokens:
            rows[token.row].append(token.id)
    return rows


def run(model, prompts, n_rows=None, **options):
    return rows_of(
        generate(model, prompts, **options), n_rows or len(prompts) * options.get("num_samples", 1)
    )


ARCHITECTURES = [dict(position=p) for p in CHOICES["position"]]
ARCHITECTURES += [
    dict(n_kv_head=2),
    dict(GPT2),
    dict(n_kv_head=1, norm_weight=True, tie_weights=True),
]
ARCHITECTURES += [dict(bigram_rows=10**4)]


# ---- what a row says depends on nothing but its prompt, seed and number ----


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_greedy_text_equals_that_of_the_uncached_network_past_its_context(architecture):
    """block_size + 50 tokens; when the context is full, its last half begins a new one."""
    model = tiny_model(**architecture)
    ids = [3, 1, 4]
    begin = 0
    with torch.inference_mode():
        for _ in range(T + 50):
            if len(ids) - begin > T:
                begin = len(ids) - T // 2
            ids.append(model(torch.tensor([ids[begin:]]))[0, -1].argmax().item())
    assert run(model, [[3, 1, 4]], max_new_tokens=T + 50, sampling=GREEDY) == [ids[3:]]
    assert len(set(ids)) > 3  # the model says more than one thing, so equality means something


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_row_among_others_of_any_length_equals_the_row_alone(architecture):
    model = tiny_model(**architecture)
    prompts = [
        [5],
        [7, 8, 9, 10, 11],
        list(range(T)),
        list(range(2 * T)),
        [7, 8, 9, 10, 11],
        [1, 2],
    ]
    alone = [run(model, [p], max_new_tokens=T + 9, sampling=GREEDY)[0] for p in prompts]
    for batch_size in (6, 4):
        assert (
            run(model, prompts, max_new_tokens=T + 9, sampling=GREEDY, batch_size=batch_size)
            == alone
        )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, V - 1), min_size=1, max_size=T + 5), min_size=1, max_size=5
    ),
    num_samples=st.integers(1, 4),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 2**40),
)
def test_sample_i_depends_on_prompt_seed_and_i_alone(prompts, num_samples, batch_size, seed):
    model, s = (
        tiny_model(),
        Sampling(temperature=1.0, top_k=20, min_p=0.01, repetition_penalty=1.2, seed=seed),
    )
    together = run(
        model,
        prompts,
        num_samples=num_samples,
        max_new_tokens=12,
        sampling=s,
        batch_size=batch_size,
    )
    for p, prompt in enumerate(prompts):
        most = run(model, [prompt], num_samples=4, max_new_tokens=12, sampling=s)
        assert together[p * num_samples : (p + 1) * num_samples] == most[:num_samples]


def test_samples_and_seeds_differ_from_each_other():
    model = tiny_model()
    first = run(
        model, [[1]], num_samples=8, max_new_tokens=10, sampling=Sampling(temperature=1.0, seed=1)
    )
    other = run(
        model, [[1]], num_samples=8, max_new_tokens=10, sampling=Sampling(temperature=1.0, seed=2)
    )
    assert len({tuple(row) for row in first + other}) == 16


def test_a_row_that_ends_makes_place_for_the_next():
    model, prompts = tiny_model(), [[i] for i in range(9)]
    free = run(model, prompts, max_new_tokens=15, sampling=GREEDY)
    stop = free[0][4]
    stopped = run(
        model, prompts, max_new_tokens=15, sampling=GREEDY, stop_ids=(stop,), batch_size=2
    )
    for whole, cut in zip(free, stopped, strict=True):
        assert cut == (whole[: whole.index(stop) + 1] if stop in whole else whole)


def test_a_row_that_the_caller_ends_says_no_more():
    model, ended, rows = tiny_model(), set(), [[], []]
    for tokens in generate(model, [[1], [2]], max_new_tokens=8, sampling=GREEDY, ended=ended):
        for token in tokens:
            rows[token.row].append(token.id)
        if len(rows[1]) == 3:
            ended.add(1)
    assert [len(row) for row in rows] == [8, 3]


def test_log_probabilities_are_the_models_own_before_any_filter():
    model, prompt = tiny_model(), [1, 2, 3]
    s = Sampling(temperature=0.3, top_k=2, frequency_penalty=5.0, logprobs=4)
    ids = list(prompt)
    for tokens in generate(model, [prompt], max_new_tokens=10, sampling=s):
        (token,) = tokens
        with torch.inference_mode():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(expected[token.id].item(), abs=1e-5)
        assert [i for i, _ in token.top] == expected.topk(4).indices.tolist()
        assert [p for _, p in token.top] == pytest.approx(
            expected.topk(4).values.tolist(), abs=1e-5
        )
        ids.append(token.id)


def test_weights_that_are_not_numbers_are_reported():
    model = tiny_model()
    model.transformer.h[0].mlp.c_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        run(model, [[1]])


# ---- the choice ----


def logits_rows(n=1000, size=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=generator) * torch.rand(n, 1, generator=generator) * 6


def probabilities(logits, **options):
    """distribution() as probabilities over all ids."""
    p, order = distribution(logits, Sampling(**options))
    p = p / p.sum(-1, keepdim=True)
    return p if order is None else torch.zeros(logits.shape, dtype=p.dtype).scatter_(1, order, p)


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.7), dict(temperature=1.0, top_k=50), dict(temperature=1.3, top_p=0.9),
        dict(temperature=1.5, min_p=0.05), dict(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
    ],
    ids=str,
)  # fmt: skip
def test_filters_equal_those_of_transformers(options):
    """1,000 random rows: the same tokens are left, with the same probabilities."""
    transformers = pytest.importorskip("transformers")
    logits = logits_rows()
    expected = logits.double() / options["temperature"]
    if top_k := options.get("top_k"):
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p := options.get("top_p"):
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    if min_p := options.get("min_p"):
        expected = transformers.MinPLogitsWarper(min_p)(None, expected)
    expected, ours = expected.softmax(-1), probabilities(logits, **options)
    assert ((ours > 0) == (expected > 0)).all()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_the_shortcut_of_top_p_over_a_large_vocabulary_changes_nothing():
    """The likeliest 1,024 of 5,000 hold top_p in the first row, not in the second."""
    logits = torch.stack((torch.randn(5000) * 6, torch.randn(5000) * 0.1))
    for rows in (logits[:1], logits):
        sorted_p, order = rows.double().softmax(-1).sort(descending=True)
        kept = torch.where(sorted_p.cumsum(-1) - sorted_p < 0.9, sorted_p, 0.0)
        expected = torch.zeros_like(kept).scatter_(1, order, kept / kept.sum(-1, keepdim=True))
        torch.testing.assert_close(
            probabilities(rows, temperature=1.0, top_p=0.9), expected, rtol=0, atol=1e-12
        )


def test_penalties_equal_their_definitions():
    transformers = pytest.importorskip("transformers")
    logits = logits_rows(20)
    prompt, answer = torch.randint(500, (20, 30)), torch.randint(50, (20, 40))
    seen = torch.zeros(20, 500, dtype=torch.bool).scatter_(1, torch.cat((prompt, answer), 1), True)
    counts = torch.zeros(20, 500, dtype=torch.int32)
    counts.scatter_add_(1, answer, torch.ones_like(answer, dtype=torch.int32))
    ours = penalize(logits, seen, counts, Sampling(repetition_penalty=1.3))
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(
        torch.cat((prompt, answer), 1), logits.clone()
    )
    torch.testing.assert_close(ours, theirs)
    ours = penalize(logits, seen, counts, Sampling(frequency_penalty=0.5, presence_penalty=0.25))
    torch.testing.assert_close(ours, logits - 0.5 * counts - 0.25 * (counts > 0))


def test_penalties_act_on_what_was_generated():
    model = tiny_model()
    plain = run(model, [[1]], max_new_tokens=40, sampling=GREEDY)[0]
    assert len(set(plain)) < 40
    never_again = run(
        model, [[1]], max_new_tokens=40, sampling=Sampling(temperature=0, presence_penalty=1e6)
    )[0]
    assert len(set(never_again)) == 40


def test_zero_temperature_and_the_narrowest_filters_take_the_likeliest():
    logits, u = logits_rows(), torch.rand(1000)
    for options in (dict(temperature=0), dict(temperature=1.0, top_k=1), dict(temperature=1.0, top_p=1e-9),
                    dict(temperature=1.0, min_p=1.0), dict(temperature=1e-320)):  # fmt: skip
        assert (choose(logits, u, Sampling(**options)) == logits.argmax(-1)).all(), options


def test_a_choice_never_leaves_the_filter():
    logits = logits_rows(200, 50)
    for u in (0.0, 0.5, 1 - 2**-24):
        chosen = choose(logits, torch.full((200,), u), Sampling(temperature=1.0, top_k=5))
        assert (logits.topk(5).indices == chosen.unsqueeze(1)).any(-1).all()


@pytest.mark.parametrize(
    "options", [dict(temperature=1.0), dict(temperature=0.8, top_k=20, top_p=0.95)], ids=str
)
def test_200_000_draws_follow_the_distribution(options):
    logits = logits_rows(1, 60, seed=4) / 2
    draws = 200_000
    u = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    chosen = choose(logits.expand(draws, -1), u, Sampling(**options))
    expected = probabilities(logits, **options)[0] * draws
    found = torch.bincount(chosen, minlength=60)
    assert (found[expected == 0] == 0).all()
    kept = expected > 5
    chi_square = ((found[kept] - expected[kept]).square() / expected[kept]).sum().item()
    freedom = kept.sum().item() - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


# ---- weights laid out for decoding ----


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize(
    "dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05), ("float16", 0.01), ("int8", 0.1)]
)
def test_prepared_weights_compute_the_same_within_their_precision(dtype, tolerance, tied):
    model, idx = tiny_model(tie_weights=tied, bias=True, vocab_size=1030), torch.randint(V, (3, T))
    try:
        choose_weights(dtype, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    with torch.inference_mode():
        expected = model(idx)
        prepared = prepare_weights(model, dtype)
        for rows in (idx, idx[:1, :1]):
            error = (
                prepared(rows) - expected[: len(rows), : rows.shape[1]]
            ).abs().max() / expected.abs().max()
            assert error < tolerance


def test_prepared_weights_say_the_same_text():
    alone = run(tiny_model(), [[1, 2]], max_new_tokens=30, sampling=GREEDY)
    assert (
        run(prepare_weights(tiny_model(), "float32"), [[1, 2]], max_new_tokens=30, sampling=GREEDY)
        == alone
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("compiled", (False, True))
def test_replayed_cuda_graphs_say_what_the_cpu_says(architecture, compiled):
    prompts = [[5], [7, 8, 9, 10, 11], list(range(T)), [1, 2]]
    s = Sampling(temperature=0, presence_penalty=0.5, logprobs=2)
    expected = run(tiny_model(**architecture), prompts, max_new_tokens=T + 9, sampling=s)
    model = prepare_weights(tiny_model(**architecture).cuda(), "float32")
    got = run(model, prompts, max_new_tokens=T + 9, sampling=s, batch_size=3, compiled=compiled)
    assert got == expected


# ---- text ----


TEXT = "It was the best of times, it was the worst of times; naïve café 日本語 🎉 e\u0301.\n"


def tokenizers():
    yield "byte", load_tokenizer("byte")
    yield "char", train_char([TEXT])
    yield "bpe", train_bpe(count_pieces([TEXT] * 3, GPT2_PATTERN), 300)


@pytest.mark.parametrize(
    "name, tokenizer", tokenizers(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_streamed_text_equals_that_decoded_at_once(name, tokenizer):
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    def check(ids):
        stream = TextStream(tokenizer)
        assert "".join([stream.add(i) for i in ids]) + stream.end() == tokenizer.decode(ids)

    check()
    stream = TextStream(tokenizer)
    streamed = [stream.add(i) for i in tokenizer.encode(TEXT)]
    assert "".join(streamed) == TEXT and "\N{REPLACEMENT CHARACTER}" not in "".join(streamed)


@pytest.mark.skipif(
    not TIKTOKEN_FILES.is_dir(), reason=f"GPT-2's vocabulary is not in {TIKTOKEN_FILES}"
)
def test_every_token_of_gpt2_streams_as_it_decodes(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    tokenizer = load_tokenizer("gpt2")
    ids = torch.randperm(tokenizer.vocab_size, generator=torch.Generator().manual_seed(0)).tolist()
    stream = TextStream(tokenizer)
    assert "".join([stream.add(i) for i in ids]) + stream.end() == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text("ab\né", max_size=30),
    stops=st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_exactly_however_they_are_split(text, stops):
    """The first stop string to be complete ends the text before its first character; nothing of it is ever released."""
    tokenizer = load_tokenizer("byte")
    ends = [text.find(s) + len(s) for s in stops if s in text]
    expected = text
    if ends:
        upto = text[: min(ends)]
        expected = upto[: min(upto.find(s) for s in stops if upto.endswith(s))]
        expected = min((upto[: -len(s)] for s in stops if upto.endswith(s)), key=len)
    stream, pieces = TextStream(tokenizer, stops), []
    for i in tokenizer.encode(text):
        pieces.append(stream.add(i))
        if stream.stopped:
            break
    pieces.append(stream.end())
    assert "".join(pieces) == expected
    assert stream.stopped == bool(ends)


# ---- the command ----


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A checkpoint of an untrained tiny model with a character tokenizer: sampling needs nothing else."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    tokenizer = train_char(["abcdefghijklmnopqrstuvwxyz ABC\n.,"])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    state = {"step": 7, "samples": 70, "model": asdict(model.config), "settings": {}, "val_loss": 2.5,
             "dataset": {"path": "data/letters"},
             "tokenizer": {"name": "char", "fingerprint": tokenizer.fingerprint}}  # fmt: skip
    checkpoint.save(folder, model.state_dict(), {}, state, tokenizer)
    return folder


def command(run_folder, capsys, *arguments):
    """(stdout, stderr) of sample.main, in this process."""
    assert sample.main([f"--out_dir={run_folder}", "--device=cpu", *arguments]) == 0
    return capsys.readouterr()


def test_stdout_holds_generated_text_alone(run_folder, capsys):
    out, err = command(
        run_folder, capsys, "--prompt=abc", "--max_new_tokens=20", "--ignore_eot=true"
    )
    assert 1 < len(out) <= 21 and out.endswith("\n") and not out.startswith("abc")
    assert "20 tokens, " in err and " tokens/s, first after " in err


def test_jsonl_rows_say_everything(run_folder, capsys):
    arguments = ("--prompt=abc", "--prompt=x", "--num_samples=2", "--max_new_tokens=9", "--format=jsonl",
                 "--logprobs=3", "--seed=5")  # fmt: skip
    out, _ = command(run_folder, capsys, *arguments)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [
        ("abc", 0),
        ("abc", 1),
        ("x", 0),
        ("x", 1),
    ]
    tokenizer = load_tokenizer(checkpoint.find_checkpoint(run_folder))
    for row in rows:
        assert (
            row["text"] == tokenizer.decode(row["ids"])
            and row["seed"] == 5
            and row["tokens_per_second"] > 0
        )
        assert row["finish_reason"] == ("length" if len(row["ids"]) == 9 else "stop")
        assert len(row["logprobs"]) == len(row["top_logprobs"]) == len(row["ids"])
        assert all(len(top) == 3 for top in row["top_logprobs"])
    again, _ = command(run_folder, capsys, *arguments, "--batch_size=1")
    assert [json.loads(line)["ids"] for line in again.splitlines()] == [row["ids"] for row in rows]


def test_prompts_come_from_files_standard_input_and_jsonl(
    run_folder, capsys, tmp_path, monkeypatch
):
    options = ("--max_new_tokens=6", "--temperature=0")
    expected, _ = command(run_folder, capsys, "--prompt=abc\nd", *options)
    (tmp_path / "p.txt").write_text("abc\nd")
    assert (
        command(run_folder, capsys, f"--prompt_file={tmp_path / 'p.txt'}", *options).out == expected
    )
    with open(tmp_path / "p.txt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert command(run_folder, capsys, "--prompt", "-", *options).out == expected
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "abc\\nd", "id": 17}\n\n{"prompt": "zz", "id": 18}\n'
    )
    out, _ = command(
        run_folder, capsys, f"--prompts={tmp_path / 'p.jsonl'}", "--format=jsonl", *options
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == [17, 18] and rows[0]["text"] + "\n" == expected


def test_prompts_may_hold_unicode_line_ends_and_begin_with_a_mark(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b\x85"}\r\n{"prompt": "c"}\n'.encode())
    rows = sample.read_prompts(sample.Options(prompts=str(path)))
    assert [row["prompt"] for row in rows] == ["a\u2028b\x85", "c"]


def test_a_stop_string_is_never_printed(run_folder, capsys):
    options = ("--prompt=abc", "--max_new_tokens=60", "--temperature=0", "--ignore_eot=true")
    whole, _ = command(run_folder, capsys, *options)
    stop = whole[7:10]
    out, _ = command(run_folder, capsys, *options, f"--stop={stop}")
    assert out == whole[: whole.find(stop)] + "\n"
    out, _ = command(run_folder, capsys, *options, f"--stop={stop}", "--format=jsonl")
    assert (
        json.loads(out)["text"] == whole[: whole.find(stop)]
        and json.loads(out)["finish_reason"] == "stop"
    )


def test_an_empty_prompt_starts_a_document(run_folder, capsys):
    assert 1 < len(command(run_folder, capsys, "--max_new_tokens=5", "--ignore_eot=true").out) <= 6


def test_a_prompt_longer_than_the_context_is_said_to_be(run_folder, capsys):
    _, err = command(run_folder, capsys, "--prompt=" + "a" * (2 * T), "--max_new_tokens=3")
    assert (
        f"a prompt of {2 * T + 1} tokens exceeds the context of {T}: its last {T // 2} count" in err
    )
    _, err = command(run_folder, capsys, "--prompt=a", f"--max_new_tokens={T}")
    assert "when full, its last half is kept" in err and err.count("last half") == 1


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16", "int8"))
def test_every_type_of_weights_generates(run_folder, capsys, dtype):
    try:
        choose_weights(dtype, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    out, err = command(
        run_folder, capsys, "--max_new_tokens=8", f"--dtype={dtype}", "--ignore_eot=true"
    )
    assert 1 < len(out) <= 9 and dtype in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--top_p=0"], "top_p is 0.0: it must be above 0 and at most 1"),
        (["--top_p=1.1"], "top_p is 1.1"),
        (["--min_p=-0.1"], "min_p is -0.1"),
        (["--temperature=-1"], "temperature is -1.0: it must be 0 (greedy) or more"),
        (["--temperature=nan"], "temperature is nan"),
        (["--top_k=-1"], "top_k is -1"),
        (["--repetition_penalty=0"], "repetition_penalty is 0.0"),
        (["--num_samples=0"], "num_samples is 0"),
        (["--max_new_tokens=0"], "max_new_tokens is 0"),
        (["--prompt=a", "--prompt_file=b"], "prompt_file and prompt are both given"),
        (["--stop="], "stop is an empty text"),
        (["--logprobs=3"], "add --format=jsonl"),
        (["--model=gpt2"], "write --model=hf:NAME_OR_FOLDER"),
        (["--top_kk=3"], "did you mean --top_k?"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit:
        sample.main(arguments)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and words in err and err.count("\n") == 1


def test_mistakes_in_prompts_are_named(run_folder, tmp_path):
    def message(*arguments):
        with pytest.raises((ValueError, OSError)) as error:
            sample.main([f"--out_dir={run_folder}", *arguments])
        return str(error.value)

    assert "'é' (U+00E9)" in message("--prompt=abé") and "'Z'" in message("--prompt=abéZ")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "latin is not UTF-8: byte 3 is 0xe9" in message(f"--prompt_file={tmp_path / 'latin'}")
    assert "nowhere" in message("--prompt_file=nowhere")
    for text, words in (
        ("{}", "line 1"),
        ('{"prompt": "a"}\nx', "line 2"),
        ("\n", "no prompt"),
        ("3", "line 1"),
    ):
        (tmp_path / "p.jsonl").write_text(text)
        assert words in message(f"--prompts={tmp_path / 'p.jsonl'}")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sample.main([f"--out_dir={tmp_path / 'nothing'}"])


@pytest.mark.slow
def test_a_reader_that_leaves_and_ctrl_c_end_it_in_silence(run_folder):
    words = (
        "sample.py",
        f"--out_dir={run_folder}",
        "--device=cpu",
        "--max_new_tokens=1000000",
        "--ignore_eot=true",
    )
    leaving, interrupted = start(*words), start(*words)
    assert leaving.stdout.read(5) and interrupted.stdout.read(5)
    leaving.stdout.close()
    interrupted.send_signal(signal.SIGINT)
    assert leaving.wait(60) == 141 and interrupted.wait(60) == 130
    for process in (leaving, interrupted):
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_a_dialogue_continues_retries_and_changes_settings(run_folder):
    words = (
        "sample.py",
        f"--out_dir={run_folder}",
        "--device=cpu",
        "--interactive=true",
        "--ignore_eot=true",
    )
    process = start(*words, "--max_new_tokens=5", stdin=subprocess.PIPE)
    lines = (
        "abc",
        "",
        "/again",
        "/set temperature 0",
        "/set",
        "/set top_p 7",
        "é",
        "/nonsense",
        "abc",
        "abc",
        "/quit",
    )
    out, err = process.communicate("\n".join(lines) + "\n", timeout=120)
    answers = [answer for answer in out.split("> ")[1:] if answer]
    assert process.returncode == 0 and len(answers) >= 5
    assert (
        "temperature=0.0" in err and "top_p is 7.0" in err and "U+00E9" in err and "/again" in err
    )
    assert answers[-1] == answers[-2] or answers[-1] == ""  # greedy by then
