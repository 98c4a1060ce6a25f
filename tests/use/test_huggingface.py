"""Promises of huggingface.py: equal logits and ids in transformers, nothing lost on the way back, plain refusals."""

import json
import random
import shutil
import unicodedata
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import evaluate
import huggingface
import sample
import train
from lathe import ROOT
from lathe.run import checkpoint
from lathe.run.tensor_file import read_tensor, tensor_names, write_safetensors
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.gpt2 import GPT2_PATTERN
from lathe.text.tokenizer import Tokenizer, load_tokenizer, train_char
from lathe.use.hf import export as hf_export
from lathe.use.hf import find as hf_find
from lathe.use.hf import tokenizers as hf_tokenizers
from lathe.use.hf import weights as hf_weights
from model import GPT, GPT2, GPTConfig
from prepare import text as prepare_text

TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken"
T = 20
MODERN = dict(position="rope", norm="rmsnorm")
LETTERS = "abcdefghijklmnopqrstuvwxyzABC \n.,!é日"
# (our settings, their class): every architecture that maps
MAPPED = [
    (dict(GPT2), "GPT2LMHeadModel"),
    (dict(GPT2) | dict(activation="gelu", bias=False), "GPT2LMHeadModel"),
    (dict(GPT2) | dict(norm_weight=False, bias=False, tie_weights=False), "GPT2LMHeadModel"),
    (dict(MODERN, activation="swiglu", qk_norm=False), "LlamaForCausalLM"),
    (dict(MODERN, qk_norm=False, bias=True, norm_weight=True, tie_weights=True, n_kv_head=2), "LlamaForCausalLM"),
    (dict(MODERN, activation="swiglu", qk_norm=True, n_kv_head=2), "Qwen3ForCausalLM"),
    (dict(MODERN, norm_weight=True, head_dim=16, rope_theta=500.0, norm_eps=1e-6), "Qwen3ForCausalLM"),
    (dict(MODERN, activation="relu2", qk_norm=False, n_kv_head=2), "ArceeForCausalLM"),
    (dict(MODERN, activation="gelu", qk_norm=False, bias=True), "ArceeForCausalLM"),
    (dict(MODERN, activation="gelu_tanh", qk_norm=False), "ArceeForCausalLM"),
    (dict(MODERN, activation="relu2", qk_norm=True, norm_weight=True, n_kv_head=2), "ApertusForCausalLM"),
    (dict(norm="layernorm", activation="gelu_tanh", qk_norm=False, n_kv_head=2), "Starcoder2ForCausalLM"),
    (dict(norm="layernorm", activation="relu2", qk_norm=False, bias=True, norm_weight=True, tie_weights=True),
     "Starcoder2ForCausalLM"),
]  # fmt: skip


def tiny_model(tokenizer: Tokenizer, **changes) -> GPT:
    torch.manual_seed(0)
    shape = dict(
        vocab_size=tokenizer.vocab_size,
        block_size=T,
        n_layer=2,
        n_head=4,
        n_embd=32,
        zero_init=False,
    )
    model = GPT(GPTConfig(**{**shape, **changes})).eval()
    for p in model.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def char_tokenizer():
    return train_char([LETTERS])


def bpe_tokenizer(size=1100):
    texts = [
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("test_[a-m]*.py"))
    ]
    return train_bpe(count_pieces(texts, GPT2_PATTERN), size)


# ---- there and back ----


@pytest.mark.parametrize(
    "settings, architecture", MAPPED, ids=lambda x: x if isinstance(x, str) else ""
)
def test_an_export_computes_the_same_in_transformers(
    settings, architecture, tmp_path, char_tokenizer
):
    transformers = pytest.importorskip("transformers")
    model, folder = tiny_model(char_tokenizer, **settings), tmp_path / "out"
    assert hf_export.export(model, char_tokenizer, folder) == architecture
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert (
        type(theirs).__name__ == architecture
        and theirs.config.eos_token_id == char_tokenizer.eot_id
    )
    idx = torch.randint(char_tokenizer.vocab_size, (3, T))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(idx).logits, model(idx), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings, architecture", MAPPED, ids=lambda x: x if isinstance(x, str) else ""
)
def test_an_export_reads_back_bit_for_bit(settings, architecture, tmp_path, char_tokenizer):
    model = tiny_model(char_tokenizer, **settings)
    hf_export.export(model, char_tokenizer, tmp_path / "out")
    back = hf_weights.load_model(tmp_path / "out")
    assert asdict(back.config) == asdict(model.config)
    assert list(back.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_padded_rows_of_the_vocabulary_stay_at_home(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = bpe_tokenizer()
    model = tiny_model(tokenizer)
    assert model.config.padded_vocab_size > model.config.vocab_size == tokenizer.vocab_size
    hf_export.export(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.get_input_embeddings().weight.shape[0] == tokenizer.vocab_size
    idx = torch.randint(tokenizer.vocab_size, (2, T))
    with torch.inference_mode():
        torch.testing.assert_close(
            hf_weights.load_model(tmp_path / "out")(idx), model(idx), rtol=0, atol=0
        )


def test_weights_in_bfloat16_are_the_rounded_ones(tmp_path, char_tokenizer):
    model = tiny_model(char_tokenizer)
    hf_export.export(model, char_tokenizer, tmp_path / "out", "bfloat16")
    back = hf_weights.load_model(tmp_path / "out", dtype=None)
    assert back.transformer.wte.weight.dtype == torch.bfloat16
    assert torch.equal(back.lm_head.weight, model.lm_head.weight.bfloat16())


# ---- theirs, made by transformers ----


@pytest.mark.parametrize("name", ("GPT2", "Llama", "Qwen3", "Arcee"))
def test_a_folder_that_transformers_wrote_computes_the_same_here(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "GPT2":
        config = transformers.GPT2Config(
            vocab_size=97, n_positions=T, n_embd=32, n_layer=2, n_head=4
        )
    else:
        config = getattr(transformers, f"{name}Config")(
            vocab_size=97, max_position_embeddings=T, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=48, head_dim=16, rope_parameters={"rope_type": "default",
            "rope_theta": 5000.0}, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in theirs.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    theirs.save_pretrained(tmp_path / "out", max_shard_size="20KB")  # several files and an index
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    idx = torch.randint(97, (2, T))
    with torch.inference_mode():
        torch.testing.assert_close(
            hf_weights.load_model(tmp_path / "out")(idx), theirs(idx).logits, rtol=0, atol=1e-4
        )


def test_gpt2s_old_names_without_prefix_and_with_masks_are_read(tmp_path, char_tokenizer):
    """As the Hub's gpt2 has them."""
    model, folder = tiny_model(char_tokenizer, **GPT2), tmp_path / "out"
    hf_export.export(model, char_tokenizer, folder)
    path = folder / "model.safetensors"
    tensors = {n: read_tensor(path, n) for n in tensor_names(path)}
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, T, T) for i in range(2)}
    with open(path, "wb") as file:
        write_safetensors(file, old)
    idx = torch.randint(char_tokenizer.vocab_size, (2, T))
    with torch.inference_mode():
        assert torch.equal(hf_weights.load_model(folder)(idx), model(idx))


# ---- tokenizers ----


def strings(alphabet=None, n=500):
    """Varied texts: words, numbers, spaces, scripts, emoji, control characters; or made of an alphabet."""
    choice = random.Random(0)
    parts = [
        "the",
        "Don't",
        "we'll",
        "I'VE",
        " x",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "123",
        "4567",
        "3.14",
        "naïve",
    ]
    parts += [
        "café",
        "日本語",
        "🎉",
        "e\u0301",
        "\u200d",
        "\xa0",
        "\x00",
        "(){};",
        "==",
        "!!",
        "_a",
        "Ünïcödé",
        "русский",
    ]
    parts += [
        "العربية",
        "हिन्दी",
        " \n ",
        "'s",
        "'",
        "<|end",
        "\\",
        "def f(x):",
        "    return",
        "𝔘",
        "👩‍💻",
        "½",
        "Ⅷ",
    ]
    if alphabet:
        parts = list(alphabet)
    return ["".join(choice.choices(parts, k=choice.randint(0, 25))) for _ in range(n)]


def check_tokenizer(ours: Tokenizer, folder: Path, texts):
    transformers = pytest.importorskip("transformers")
    hf_export.export(tiny_model(ours), ours, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token_id == ours.eot_id and len(theirs) == ours.vocab_size
    for text in texts:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids) == ours.decode(ids) == text
    back = hf_tokenizers.find_tokenizer(folder)
    assert back.fingerprint == ours.fingerprint


def test_a_byte_tokenizer_gives_equal_ids_in_transformers(tmp_path):
    check_tokenizer(load_tokenizer("byte"), tmp_path / "out", strings())


def test_a_character_tokenizer_gives_equal_ids_in_transformers(tmp_path, char_tokenizer):
    check_tokenizer(char_tokenizer, tmp_path / "out", strings(LETTERS))


def test_an_own_bpe_gives_equal_ids_in_transformers(tmp_path):
    check_tokenizer(bpe_tokenizer(), tmp_path / "out", strings())


def test_a_bpe_with_another_pattern_and_normalization_as_qwens_gives_equal_ids(tmp_path):
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    )
    pattern += r"\s*[\r\n]+|\s+(?!\S)|\s+"
    own = train_bpe(count_pieces(strings(), pattern), 400, pattern)
    ours = Tokenizer("bpe", "qwen", own.pieces, own.specials, pattern, "NFC")
    check_tokenizer(
        ours, tmp_path / "out", [t for t in strings() if unicodedata.is_normalized("NFC", t)]
    )
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("cafe\u0301")["input_ids"] == ours.encode("cafe\u0301") == ours.encode("caf\xe9")
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == ours.fingerprint != own.fingerprint


@pytest.mark.slow
@pytest.mark.skipif(
    not TIKTOKEN_FILES.is_dir(), reason=f"GPT-2's vocabulary is not in {TIKTOKEN_FILES}"
)
def test_the_gpt2_encoding_gives_equal_ids_in_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    check_tokenizer(load_tokenizer("gpt2"), tmp_path / "out", strings())
    (tmp_path / "out" / "tokenizer.json").unlink()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert (
        hf_tokenizers.find_tokenizer(tmp_path / "out").name == "gpt2"
    )  # a GPT-2 folder without tokenizer files


# ---- the commands ----


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, char_tokenizer):
    folder, model = tmp_path_factory.mktemp("hf") / "run", tiny_model(char_tokenizer)
    state = {"step": 7, "samples": 70, "model": asdict(model.config), "settings": {}, "val_loss": 2.5,
             "dataset": {"path": "data/letters"},
             "tokenizer": {"name": "char", "fingerprint": char_tokenizer.fingerprint}}  # fmt: skip
    checkpoint.save(folder, model.state_dict(), {}, state, char_tokenizer)
    return folder


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "exported"
    assert huggingface.main(["export", f"--out_dir={run_folder}", f"--to={folder}"]) == 0
    return folder


def test_export_verifies_and_writes_a_card(run_folder, tmp_path, capsys):
    pytest.importorskip("transformers")
    arguments = ["export", f"--out_dir={run_folder}", f"--to={tmp_path / 'out'}"]
    huggingface.main([*arguments, "--verify=true"])
    out, err = capsys.readouterr()
    assert (
        out == f"{tmp_path / 'out'}\n"
        and "through transformers: " in err
        and "token ids are equal" in err
    )
    assert "\r" not in err
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "2.5000 nats" in card and "data/letters" in card and "Qwen3ForCausalLM" in card
    with pytest.raises(ValueError, match="exists"):
        huggingface.main(arguments)
    huggingface.main([*arguments, "--overwrite=true", "--dtype=bfloat16"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="exists"):
        huggingface.main([*arguments[:2], f"--to={tmp_path / 'mine'}", "--overwrite=true"])
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_old_export_stays_until_the_new_one_is_checked(tmp_path, char_tokenizer):
    model, folder = tiny_model(char_tokenizer), tmp_path / "out"
    hf_export.export(model, char_tokenizer, folder)
    before = (folder / "model.safetensors").read_bytes()

    def refuse(written):
        assert (folder / "model.safetensors").read_bytes() == before and (
            written / "model.safetensors"
        ).is_file()
        raise ValueError("not the same")

    with pytest.raises(ValueError, match="not the same"):
        hf_export.export(model, char_tokenizer, folder, "bfloat16", check=refuse)
    assert (folder / "model.safetensors").read_bytes() == before and list(tmp_path.iterdir()) == [
        folder
    ]
    hf_export.export(model, char_tokenizer, folder, "bfloat16")
    assert len((folder / "model.safetensors").read_bytes()) < len(before) and list(
        tmp_path.iterdir()
    ) == [folder]


def test_a_wrong_command_is_named_once(capsys):
    with pytest.raises(SystemExit) as end:
        huggingface.main(["foo"])
    assert end.value.code == 2
    assert (
        capsys.readouterr().err
        == "huggingface.py: error: `foo` is no command: the one there is is `export`\n"
    )


def test_a_folder_says_the_same_as_the_run_it_came_from(run_folder, exported, capsys):
    options = ["--prompt=abc", "--max_new_tokens=12", "--num_samples=2", "--device=cpu"]
    sample.main([f"--out_dir={run_folder}", *options])
    expected = capsys.readouterr().out
    sample.main([f"--model=hf:{exported}", *options])
    assert capsys.readouterr().out == expected


def test_a_folder_scores_as_the_run_it_came_from(run_folder, exported, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("abc def, ghi.\n" * 200, encoding="utf-8")
    tokenizer = checkpoint.find_checkpoint(run_folder)
    data = tmp_path / "data"
    prepare_text.main(
        [
            str(tmp_path / "text.txt"),
            f"--out={data}",
            f"--tokenizer={tokenizer}",
            "--val_fraction=0.2",
        ]
    )
    capsys.readouterr()
    scores = []
    for model in (f"--out_dir={run_folder}", f"--model=hf:{exported}"):
        evaluate.main([model, f"--dataset={data}", "--device=cpu"])
        scores.append(json.loads(capsys.readouterr().out)["loss"])
    assert scores[0] == scores[1]
    with pytest.raises(ValueError, match="--dataset"):
        evaluate.main([f"--model=hf:{exported}"])


def test_training_begins_with_the_folders_weights(exported):
    settings = train.Settings(init_from=f"hf:{exported}", block_size=T, dropout=0.1)

    class Data:  # what build_model asks of a dataset
        tokenizer_fingerprint, tokenizer_name = (
            hf_tokenizers.find_tokenizer(exported).fingerprint,
            "char",
        )
        vocab_size = hf_tokenizers.find_tokenizer(exported).vocab_size

    model = train.build_model(settings, Data, hf_find.find(settings.init_from))
    for name, tensor in hf_weights.load_model(exported).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert model.config.dropout == 0.1 and settings.n_embd == 32
    Data.tokenizer_fingerprint = "another"
    with pytest.raises(ValueError, match="tokenizer"):
        train.build_model(settings, Data, hf_find.find(settings.init_from))


# ---- refusals ----


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(logit_softcap=30.0), "logit_softcap=30.0"),
        (dict(bigram_rows=100), "bigram_rows=100"),
        (dict(position="none"), "position=none"),
        (dict(position="sinusoidal"), "position=sinusoidal"),
        (dict(GPT2) | dict(n_kv_head=2), "n_kv_head=2"),
        (dict(GPT2) | dict(activation="relu2"), "activation=relu2"),
        (dict(MODERN, qk_norm=True, bias=True), "bias=True"),
        (dict(norm="layernorm", activation="swiglu", qk_norm=False), "norm=layernorm"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_the_name_of_its_setting(
    settings, words, tmp_path, char_tokenizer
):
    with pytest.raises(ValueError, match=words):
        hf_export.export(tiny_model(char_tokenizer, **settings), char_tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_folders_are_refused(exported, tmp_path):
    def message(change):
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exported, folder)
        change(folder)
        with pytest.raises((ValueError, OSError)) as error:
            hf_weights.load_model(folder), hf_tokenizers.load_hf_tokenizer(folder)
        return str(error.value)

    def configure(**changes):
        def change(folder):
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | changes))

        return change

    def cut(folder):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])

    assert "model.safetensors is missing" in message(lambda f: (f / "model.safetensors").unlink())
    assert "damaged" in message(cut)
    assert "damaged" in message(lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100))
    assert "config.json is missing" in message(lambda f: (f / "config.json").unlink())
    assert "not JSON" in message(lambda f: (f / "config.json").write_text("{"))
    assert "tokenizer.json is missing" in message(lambda f: (f / "tokenizer.json").unlink())
    assert "architecture BertModel" in message(configure(architectures=["BertModel"]))
    assert "activation is silu" in message(configure(architectures=["ArceeForCausalLM"]))
    assert "rope_scaling" in message(configure(rope_scaling={"rope_type": "llama3", "factor": 8.0}))
    assert "hidden_size is missing" in message(
        lambda f: (f / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 9,
        "max_position_embeddings": 8, "num_hidden_layers": 1, "num_attention_heads": 1}))
    )  # fmt: skip
    assert "by config.json it should be" in message(configure(intermediate_size=64))
    assert "lack model.layers.2" in message(configure(num_hidden_layers=3))
    assert "no place for" in message(configure(num_hidden_layers=1))
    assert "no place for" in message(
        configure(architectures=["LlamaForCausalLM"])
    )  # QK-norm's weights would be lost


def test_a_hub_out_of_reach_is_explained(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError,
        match="hf:nobody/nothing is neither a folder nor in the Hub's cache.*model.safetensors",
    ):
        hf_find.find("hf:nobody/nothing")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        hf_find.find(f"hf:{tmp_path / 'nothing'}")
