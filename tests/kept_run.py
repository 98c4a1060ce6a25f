"""Datasets and a run as an earlier version wrote them: tests/kept. Later versions must use them.

    dataset/       documents of invented words, in characters      by prepare/text.py
    pairs/         sums and their results, with masks, in bpe:280  by prepare/pairs.py
    run/           20 steps on `dataset`, two checkpoints          by train.py
    expected.json  what was sampled, evaluated and trained from them on the day that they were made

`python tests/kept_run.py NEW_FOLDER` makes such a folder; its run/starts.jsonl names the commit.
What is in tests/kept is never made again: a new format gets a new folder beside it, and both are
read from then on. test_kept.py compares, on a copy.
"""

import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import golden_losses
import pinned

KEPT = Path(__file__).resolve().parent / "kept"
STEPS, LONGER = 20, 30
RUN = dict(
    dataset="dataset", out_dir="run", max_steps=STEPS, warmup_steps=2, eval_interval=10,
    log_interval=1, block_size=16, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, norm_weight="true",
    optimizer="muon", dropout=0, batch_size=8, micro_batch_size=4, sample_tokens=20, num_samples=2,
    sample_prompt="ba", device="cpu", dtype="float32", compile="false",
)  # fmt: skip
ON_CPU = ("--device=cpu", "--dtype=float32")
SAMPLE = ("--out_dir=run", "--prompt=ba", "--max_new_tokens=40", "--format=jsonl", *ON_CPU)


def make(folder: Path):
    """Both datasets and the run, in a folder."""
    documents = itertools.islice(golden_losses.words(), 60)
    sums = [(f"{a} + {b} =", f" {a + b}") for a in range(3, 60, 7) for b in range(2, 30, 5)]
    rows = {
        "words": [{"text": text} for text in documents],
        "sums": [{"prompt": asked, "completion": answer} for asked, answer in sums],
    }
    for name, of_file in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in of_file)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    files = ("--input=words.jsonl", "--out=dataset")
    pinned.run(pinned.PREPARE_TEXT, *files, "--tokenizer=char", folder=folder)
    files = ("--input=sums.jsonl", "--out=pairs")
    pinned.run(pinned.PREPARE_PAIRS, *files, "--tokenizer=bpe:280", folder=folder)
    pinned.run(pinned.TRAIN, *(f"--{k}={v}" for k, v in RUN.items()), folder=folder)
    leave_out_this_machine(folder / "run" / "starts.jsonl")
    for path in (*folder.glob("*.jsonl"), *folder.glob("*/lock"), *folder.glob("run/*.html")):
        path.unlink()


def leave_out_this_machine(starts: Path):
    """Make the command's path relative; name neither processor nor system closely."""
    row = json.loads(starts.read_text(encoding="utf-8"))
    row["command"] = row["command"].replace(f"{pinned.ROOT}/", "")
    row["device"] = "x86-64, 1 core"
    row["versions"]["system"] = "Linux"
    starts.write_text(json.dumps(row) + "\n", encoding="utf-8")


def verify(folder: Path):
    """AssertionError if a dataset is not whole."""
    pinned.run(pinned.VERIFY, "dataset", "pairs", folder=folder)


def sampled(folder: Path) -> dict[str, list[list[int]]]:
    """Ids that the run's best checkpoint continues a prompt with, by temperature."""
    found = {}
    for temperature in ("0", "0.8"):
        how = (f"--temperature={temperature}", "--seed=1", "--num_samples=2")
        lines = pinned.run(pinned.SAMPLE, *SAMPLE, *how, folder=folder).splitlines()
        found[temperature] = [json.loads(line)["ids"] for line in lines]
    return found


def evaluated(folder: Path) -> dict[str, float]:
    """Validation losses of both checkpoints, on the dataset that the run names."""
    found = {}
    for step in (STEPS // 2, STEPS):
        checkpoint = f"run/checkpoints/step-{step:07}"
        said = pinned.run(pinned.EVALUATE, f"--out_dir={checkpoint}", *ON_CPU, folder=folder)
        found[checkpoint] = json.loads(said)["loss"]
    return found


def resumed(folder: Path) -> pinned.Series:
    """Losses of the run's next steps. They are added to its folder: give a copy."""
    how = ("run/settings.toml", "--init_from=resume", f"--max_steps={LONGER}")
    pinned.run(pinned.TRAIN, *how, folder=folder)
    return {key: numbers[STEPS:] for key, numbers in pinned.series(folder / "run").items()}


def main():
    folder = Path(sys.argv[1])
    folder.mkdir()
    make(folder)
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(folder, Path(scratch) / "copy")
        verify(copy)
        expected = {"torch": pinned.TORCH, "sampled": sampled(copy), "evaluated": evaluated(copy)}
        expected["resumed"] = resumed(copy)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (folder / "expected.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
