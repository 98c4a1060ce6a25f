import subprocess
import sys

import numpy as np
import pytest

from lathe import ROOT
from lathe.data.dataset import open_dataset
from lathe.data.shards import write_dataset
from lathe.text.tokenizer import load_tokenizer, train_char


def test_nanogpt_files_open_only_when_named_raw_and_are_checked(tmp_path):
    (tmp_path / "train.bin").write_bytes(np.arange(256, dtype="<u2").tobytes())
    (tmp_path / "val.bin").write_bytes(np.arange(10, dtype="<u2").tobytes())
    with pytest.raises(FileNotFoundError, match="dataset=raw:TOKENIZER:"):
        open_dataset(tmp_path)
    dataset = open_dataset(f"raw:byte:{tmp_path}")
    assert (dataset.train.n_tokens, dataset.val.n_tokens, dataset.vocab_size) == (256, 10, 257)
    (tmp_path / "val.bin").write_bytes(b"\0" * 11)
    with pytest.raises(
        ValueError, match="val.bin has 11 bytes, which is no whole number of uint16 tokens"
    ):
        open_dataset(f"raw:byte:{tmp_path}")
    (tmp_path / "val.bin").write_bytes(np.array([3, 257], "<u2").tobytes())
    with pytest.raises(
        ValueError, match="val.bin: token 1 is 257, outside the tokenizer's 257 ids"
    ):
        open_dataset(f"raw:byte:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="no .bin files"):
        open_dataset(f"raw:byte:{tmp_path}/nothing")


def test_a_mixture_is_known_by_its_weights_and_needs_one_tokenizer(tmp_path):
    write_dataset(tmp_path / "a", load_tokenizer("byte"), ["a" * 50], ["v"])
    write_dataset(tmp_path / "b", load_tokenizer("byte"), ["b" * 70], ["w"])
    mixture = open_dataset(f"{tmp_path}/a:0.75,{tmp_path}/b:0.25")
    other = open_dataset(f"{tmp_path}/a:0.5,{tmp_path}/b:0.5")
    assert other.fingerprint != mixture.fingerprint
    write_dataset(tmp_path / "c", train_char(["xyz"]), ["xyz"], [])
    with pytest.raises(ValueError, match="mixes tokenizers.*byte.*char"):
        open_dataset(f"{tmp_path}/a,{tmp_path}/c")


def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="python prepare/shakespeare_char.py`"):
        open_dataset(tmp_path / "shakespeare_char")
    with pytest.raises(FileNotFoundError, match="prepare/text.py --input YOUR_TEXT --out .*mine`"):
        open_dataset(tmp_path / "mine")
    with pytest.raises(
        FileNotFoundError, match="prepare/text.py --input YOUR_TEXT --out .*verify`"
    ):
        open_dataset(tmp_path / "verify")
    (tmp_path / "progress.jsonl").touch()
    with pytest.raises(FileNotFoundError, match="unfinished.*run the same prepare command again"):
        open_dataset(tmp_path)


def test_importing_data_does_not_import_torch():
    code = "import sys, lathe.data.dataset, lathe.data.batches; sys.exit('torch' in sys.modules or 'tiktoken' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_a_weight_that_is_none_is_refused_of_one_dataset_as_of_several(tmp_path, weight):
    write_dataset(tmp_path / "a", load_tokenizer("byte"), ["some text"], ["more"])
    for path in (f"{tmp_path}/a:{weight}", f"{tmp_path}/a:{weight},{tmp_path}/a:1"):
        with pytest.raises(ValueError, match=r"weights of a mixture .* must be positive, found \["):
            open_dataset(path)
    assert open_dataset(f"{tmp_path}/a:0.5").train.n_tokens == 10
