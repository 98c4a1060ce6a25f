"""A network with a table by n-grams in transformers: what the folder's own code computes there."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from exports import CHARACTERS, CONTEXT, MAPPED, tiny_model

import huggingface
from lathe.run import checkpoint
from lathe.use.hf.clients import refuse_for
from lathe.use.hf.config import our_config
from lathe.use.hf.export import export
from lathe.use.hf.weights import load_model
from model import GPT

TABLE = dict(ngram_rows=150, ngram_order=4)
OF_EACH_FAMILY = {architecture: settings for settings, architecture in reversed(MAPPED)}
V = CHARACTERS.vocab_size
PAD = CHARACTERS.eot_id


@pytest.fixture(scope="module", autouse=True)
def modules_of_folders(tmp_path_factory):
    """transformers copies the code of folders here before it runs it, not into the user's home."""
    pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield


def families() -> list:
    in_the_suite = ("GPT2LMHeadModel", "Qwen3ForCausalLM")
    rare = pytest.mark.exhaustive
    return [n if n in in_the_suite else pytest.param(n, marks=rare) for n in OF_EACH_FAMILY]


@pytest.fixture(scope="module", params=families())
def both(request, tmp_path_factory):
    """(our network, transformers' of its export, the folder), of each family."""
    folder = tmp_path_factory.mktemp("ngrams") / request.param
    return *written(folder, **OF_EACH_FAMILY[request.param]), folder


def written(folder: Path, **settings):
    model = tiny_model(**TABLE, **settings)
    torch.nn.init.normal_(model.transformer.ngrams.weight)
    export(model, CHARACTERS, folder)
    return model, opened(folder)


def opened(folder: Path):
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=torch.float32, trust_remote_code=True)


def ids_of(n_rows: int, n: int = CONTEXT) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(V, (n_rows, n))


def greedy(model: GPT, ids: list[int], n: int) -> list[int]:
    for _ in range(n):
        ids = [*ids, model(torch.tensor([ids]))[0, -1].argmax().item()]
    return ids


@torch.inference_mode()
def test_the_folders_code_computes_what_our_network_does(both):
    model, theirs, folder = both
    idx = ids_of(3)
    torch.testing.assert_close(theirs(idx).logits, model(idx), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        theirs(idx, labels=idx).loss, model(idx[:, :-1], idx[:, 1:]), rtol=0, atol=1e-4
    )
    last = theirs(idx, logits_to_keep=1).logits
    torch.testing.assert_close(last, model(idx)[:, -1:], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_texts_of_several_lengths_are_continued_each_as_if_alone(both):
    model, theirs, folder = both
    prompts = [[5, 7, 3, 9, 2, 8], [4], [3, 9]]
    alone = [greedy(model, prompt, 8) for prompt in prompts]
    longest = max(map(len, prompts))
    padded = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    options = dict(attention_mask=mask, max_new_tokens=8, do_sample=False, top_k=None)
    options |= dict(temperature=None, eos_token_id=None, pad_token_id=PAD)
    for more in (dict(use_cache=True), dict(use_cache=False), dict(cache_implementation="static")):
        rows = theirs.generate(padded, **options, **more).tolist()
        for row, expected in zip(rows, alone, strict=True):
            assert row[-len(expected) :] == expected, more
    # Beams are put in another order from step to step
    beams = dict(num_beams=3, length_penalty=0.0, num_return_sequences=2)
    with_cache = theirs.generate(padded, **options, **beams)
    assert torch.equal(with_cache, theirs.generate(padded, use_cache=False, **options, **beams))


@torch.inference_mode()
def test_ids_in_a_cache_are_handed_on_or_asked_for(both):
    model, theirs, folder = both
    idx = ids_of(2)
    out = theirs(idx[:, :9], use_cache=True)
    name = "cache" if hasattr(out, "cache") else "past_key_values"  # transformers 5, 4
    cache = {name: getattr(out, name)}
    with pytest.raises(ValueError, match="9 tokens are in the cache.*earlier_ids=ids.:, -3:."):
        theirs(idx[:, 9:10], **cache)
    with pytest.raises(ValueError, match="pass input_ids"):
        theirs(inputs_embeds=torch.zeros(1, 2, 32))
    later = theirs(idx[:, 9:12], earlier_ids=idx[:, :9], **cache).logits
    torch.testing.assert_close(later, model(idx)[:, 9:12], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_what_transformers_saves_opens_again_there_and_here(both, tmp_path):
    model, theirs, folder = both
    theirs.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "modeling_ngrams.py").is_file()
    idx = ids_of(2)
    logits = theirs(idx).logits
    assert torch.equal(opened(tmp_path / "saved")(idx).logits, logits)
    torch.testing.assert_close(load_model(tmp_path / "saved")(idx), logits, rtol=0, atol=1e-4)


def test_a_folder_with_a_table_reads_back_bit_for_bit_without_running_its_code(both, tmp_path):
    model, theirs, folder = both
    code = folder / "modeling_ngrams.py"
    assert "lathe" in code.read_text() and "import lathe" not in code.read_text()
    (tmp_path / "folder").mkdir()
    for path in folder.iterdir():
        (tmp_path / "folder" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "folder" / code.name).write_text("raise SystemExit('this was run')")
    back = load_model(tmp_path / "folder")
    assert asdict(back.config) == asdict(model.config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_resized_embeddings_leave_ngrams_as_they_are(tmp_path):
    model, theirs = written(tmp_path / "out")
    idx = ids_of(2)
    with torch.inference_mode():
        theirs.resize_token_embeddings(V + 3, mean_resizing=False)
        torch.testing.assert_close(theirs(idx).logits[..., :V], model(idx), rtol=0, atol=1e-4)
        theirs(torch.full((1, 5), V + 2))
    theirs.save_pretrained(tmp_path / "resized")
    with pytest.raises(ValueError, match=f"ngram_vocab_size is {V} and vocab_size {V + 3}"):
        load_model(tmp_path / "resized")


@pytest.mark.parametrize(
    "changed, words",
    [
        (dict(ngram_rows=None), "ngram_rows is None"),
        (dict(ngram_rows=-3), "ngram_rows is -3"),
        (dict(ngram_order=1), "ngram_order is 1"),
        (dict(ngram_order="5"), "ngram_order is 5, not"),
        (dict(ngram_rows=10**12), "ngram_rows is 1000000000000"),
    ],
)
def test_a_table_that_cannot_be_is_named(changed, words, tmp_path):
    export(tiny_model(**TABLE), CHARACTERS, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    with pytest.raises(ValueError, match=words):
        our_config(json.loads(path.read_text()) | changed, path)


@pytest.mark.parametrize("client", ["vllm", "ctranslate2", "mlx-lm", "llama.cpp"])
def test_other_programs_are_refused_by_the_name_of_the_table(client):
    config = tiny_model(**TABLE, n_embd=128).config
    with pytest.raises(ValueError, match=f"{client} cannot hold ngram_rows=150"):
        refuse_for(["transformers", "lm-eval", client], config, CHARACTERS)


def test_transformers_does_not_take_the_folder_for_a_network_without_a_table(tmp_path):
    from transformers import AutoModelForCausalLM

    export(tiny_model(**TABLE), CHARACTERS, tmp_path / "out")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)


def test_an_export_says_that_its_table_needs_the_folders_code(tmp_path, capsys):
    model = tiny_model(**TABLE)
    torch.nn.init.normal_(model.transformer.ngrams.weight)
    state = {"step": 1, "samples": 10, "model": asdict(model.config), "settings": {}}
    checkpoint.save(tmp_path / "run", model.state_dict(), {}, state, CHARACTERS)
    command = ["export", f"--out_dir={tmp_path / 'run'}"]
    huggingface.main([*command, f"--to={tmp_path / 'out'}", "--verify=true"])
    err = capsys.readouterr().err
    assert "greedy text of 9 tokens is equal" in err
    last = err.splitlines()[-4:]
    assert "ngram_rows=150: modeling_ngrams.py" in last[0]
    calls = [line.removeprefix("  ").partition(":")[0] for line in last[2:]]
    assert calls == ["transformers", "lm-eval"]
    assert ",trust_remote_code=True --tasks TASK" in last[3]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "`Qwen3ForCausalLM` with a table by n-grams" in card
    assert 'from_pretrained(".", trust_remote_code=True)' in card
    with pytest.raises(ValueError, match="llama.cpp cannot hold ngram_rows=150"):
        huggingface.main([*command, f"--gguf={tmp_path / 'out.gguf'}"])
