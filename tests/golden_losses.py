"""Golden losses: what tiny runs of every kind compute, to the last digit, for one version of torch.

    python tests/golden_losses.py          # compare with the file for the installed torch
    python tests/golden_losses.py --write  # write that file

test_golden.py compares, too. A file that is there may be rewritten for one reason only: a change
that is meant to change the numbers (another initialisation, order of samples or optimizer); its
commit says so, and why. A change that is meant to leave the numbers alone, and does not, is wrong.
For another version of torch a new file is written, by code that still agrees with the older one.
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pinned

STEPS = 50
BASE = dict(
    dataset="words", max_steps=STEPS, warmup_steps=5, block_size=32, n_layer=2, n_head=2, n_embd=32,
    batch_size=8, micro_batch_size=8, log_interval=1, eval_interval=STEPS, eval_tokens=256,
    sample_tokens=0, device="cpu", dtype="float32", compile="false",
    shift_windows="false",  # as it was when the figures were written: one run has three epochs
)  # fmt: skip
RUNS = {
    "adamw": dict(optimizer="adamw"),
    "muon": dict(optimizer="muon"),
    "muon_dropout": dict(optimizer="muon", dropout=0.1),
    "accumulation": dict(batch_size=12, micro_batch_size=4),
    "document_mask": dict(document_mask="true", block_size=80),
    "lora": dict(init_from="muon", lora_rank=4),  # begins with the run above
    "gpt2_shape": dict(
        position="learned", norm="layernorm", norm_weight="true", activation="gelu_tanh",
        qk_norm="false", bias="true", tie_weights="true", zero_init="false", learning_rate=0.001,
    ),
    # 8 x 256 tokens x 8,256 rows are more than model.LOGITS_AT_ONCE: the loss goes in pieces.
    "loss_in_pieces": dict(
        dataset="signs", block_size=256, n_layer=1, n_head=4, n_kv_head=2, logit_softcap=15,
        activation="swiglu", ngram_rows=1000,
    ),
}  # fmt: skip


def words() -> Iterator[str]:
    """Documents of invented words, each of which is most often followed by one of three."""
    draw = random.Random(1).random  # whose numbers are the same in every version of Python
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    lexicon = ["".join(syllables[int(60 * draw())] for _ in range(1 + i % 3)) for i in range(200)]
    for _ in range(1200):
        at, said = int(200 * draw()), []
        for _ in range(3 + int(30 * draw())):
            said.append(lexicon[at])
            at = (7 * at + 1 + int(3 * draw())) % 200 if draw() < 0.8 else int(200 * draw())
        yield " ".join(said) + "."


def signs() -> Iterator[str]:
    """Documents of 8,200 different signs, so that the vocabulary is large."""
    draw = random.Random(2).random
    for i in range(100):
        begin = i * 82
        said = [begin + j for j in range(82)]
        for _ in range(300):
            said.append((2 * said[-1] + int(4 * draw())) % 8200)
        yield "".join(chr(0x4E00 + sign) for sign in said)


def measure(folder: Path, names: tuple[str, ...] = tuple(RUNS)) -> dict[str, pinned.Series]:
    """Train these runs in a folder."""
    for name, documents in (("words", words()), ("signs", signs())):
        if any(RUNS[run].get("dataset", "words") == name for run in names):
            lines = [json.dumps({"text": text}) + "\n" for text in documents]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
            options = (f"--input={name}.jsonl", f"--out={name}", "--tokenizer=char")
            pinned.run(pinned.PREPARE_TEXT, *options, folder=folder)
    found = {}
    for name in names:
        settings = BASE | RUNS[name] | {"out_dir": name}
        pinned.run(pinned.TRAIN, *(f"--{k}={v}" for k, v in settings.items()), folder=folder)
        found[name] = pinned.series(folder / name)
    return found


def path_of(torch_version: str) -> Path:
    return Path(__file__).resolve().parent / "golden" / f"losses-torch-{torch_version}.json"


def differences(expected: dict, found: dict, exact: bool) -> list[str]:
    """A line for each run that differs: its first step that does, and both numbers."""
    lines = []
    for name in found:
        if said := pinned.first_difference(expected[name], found[name], exact=exact):
            lines.append(f"{name}, {said}")
    return lines


def main() -> str | int:
    path = path_of(pinned.TORCH)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    if "--write" in sys.argv:
        if reason := pinned.why_not_exact():
            return f"{reason}: these figures would hold here alone"
        path.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
        return 0
    expected = json.loads(path.read_text(encoding="utf-8"))
    return "\n".join(differences(expected, found, exact=not pinned.why_not_exact())) or 0


if __name__ == "__main__":
    sys.exit(main())
