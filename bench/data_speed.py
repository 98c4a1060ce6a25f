"""Measure the way of the data: prepare's speed, memory and disk, own BPE, batches, their order.

    python bench/data_speed.py                         everything, some 10 minutes on 2 cores
    python bench/data_speed.py --only prepare fetch    some of it
    python bench/data_speed.py --nanogpt FOLDER        nanoGPT's openwebtext preparation beside ours

prepare: one worker against the bare encoder and against nanoGPT. workers: two against one, and the
bytes that they write. memory: a document of 1 GB, and a million tiny ones. disk: the folder at its
largest, against what is left. kills: kill -9 at random moments, and run again. bpe: own BPE of
4,096 ids on the library. shakespeare: small texts from file to shards. fetch: batches from memory
to int64 buffers. order: an epoch of 10 billion tokens.

Prints a line per figure as it is known, and a table at the end, which bench/RESULTS.md gets too.
CPU seconds are of all processes together, so they hold on a busy machine; wall-clock figures need
an idle one. The corpus is this Python's library, repeated to 75 MB, as JSON lines.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.processes import Child, run_child
from bench.results import Figures
from bench.turns import in_turn
from lathe import ROOT, cli
from lathe.data.batches import TrainBatches
from lathe.data.dataset import Stream, open_dataset
from lathe.data.order import SampleOrder
from lathe.fields import PathName
from lathe.text.bpe import count_pieces, train_bpe
from lathe.text.tokenizer import load_tokenizer

PREPARE = [sys.executable, str(ROOT / "prepare" / "text.py")]
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "__pycache__"}  # of the library
Part = Literal[
    "prepare", "workers", "memory", "disk", "kills", "bpe", "shakespeare", "fetch", "order"
]


@dataclass
class Options:
    """What to measure."""

    only: list[Part] = field(default_factory=list)  # all where empty
    work: PathName = ""  # folder for the corpora and datasets (5 GB); a temporary one by default
    nanogpt: PathName = ""  # a checkout of nanoGPT to compare with
    # of the prepare parts; byte where tiktoken's files cannot be reached
    tokenizer: str = "gpt2"
    shakespeare: PathName = ""  # file of tiny Shakespeare; empty = left out
    library: PathName = ""  # folder of Python source; empty = this Python's library
    scale: float = 1.0  # all sizes and counts times this; below 1 for a quick look
    repeats: int = 3  # of each timing; the best is shown
    save: bool = True  # append the table to bench/RESULTS.md

    def __post_init__(self):
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale is {self.scale}: it must be above 0 and at most 1")
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}: it must be 1 or more")

    def scaled(self, count: float) -> int:
        return max(1, round(count * self.scale))


def main(argv: list[str] | None = None) -> int:
    options = cli.parse(Options, argv, prog="bench/data_speed.py", description=__doc__)
    measures = {
        "prepare": measure_prepare,
        "workers": measure_workers,
        "memory": measure_memory,
        "disk": measure_disk,
        "kills": measure_kills,
        "bpe": measure_bpe,
        "shakespeare": measure_shakespeare,
        "fetch": measure_fetch,
        "order": measure_order,
    }
    parts = options.only or get_args(Part)
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    notes = f"Load at the start: {load}."
    if options.scale != 1:
        notes += f" All sizes and counts times {options.scale:g}."

    figures = Figures()
    with ExitStack() as stack:
        folder = options.work
        if not folder:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lathe-data-speed-"))
        work = Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for part in parts:
            measures[part](options, work, figures)
    figures.record(f"The way of the data: {', '.join(parts)}", notes, options.save)
    return 0


# -----------------------------------------------------------------------------
# The corpus, and preparing it


def library_documents(options: Options) -> list[str]:
    root = Path(options.library or sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not LEFT_OUT.intersection(folders):
            text = path.read_bytes().decode(errors="replace")
            if text:
                documents.append(text)
    return documents


def n_bytes(documents: list[str]) -> int:
    return sum(len(document.encode()) for document in documents)


def corpus(options: Options, work: Path) -> Path:
    """The library, repeated to 75 MB, each copy marked so that no two documents are equal."""
    size = options.scaled(75_600_000)
    path = work / f"corpus-{size}.jsonl"
    if not path.exists():
        documents = library_documents(options)
        n_copies = max(1, round(size / n_bytes(documents)))
        with open(path, "w", encoding="utf-8") as file:
            for copy in range(n_copies):
                for document in documents:
                    row = {"text": f"# copy {copy}\n{document}"}
                    file.write(json.dumps(row) + "\n")
    return path


def prepare(out: Path, source: Path, *settings: str) -> Child:
    """Run prepare/text.py, with its output in a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    return run_child([*PREPARE, f"--input={source}", f"--out={out}", *settings])


def shard_hashes(folder: Path) -> dict[str, str]:
    """{name: sha256} of a dataset's shards, which are read and compared with them."""
    shards = open_dataset(folder, verify=True).meta["shards"]
    return {shard["name"]: shard["sha256"] for shard in shards}


@contextmanager
def watching(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call look() every so many seconds, in a thread, while the body runs."""
    stop = threading.Event()

    def watch():
        while not stop.wait(seconds):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


# -----------------------------------------------------------------------------
# prepare

BARE = """
import json, sys, time
sys.path.insert(0, {root!r})
from lathe.text.tokenizer import load_tokenizer
texts = [json.loads(line)["text"] for line in open({path!r}, encoding="utf-8")]
tokenizer = load_tokenizer({tokenizer!r})
tokenizer.encode("warm")
began = time.process_time()
for text in texts:
    {encode}(text)
print(time.process_time() - began)
"""

# nanoGPT's script on our corpus: one process, and the two documents that fall into its validation
# split do not fill the 1,024 batches that it writes; train is complete by then.
NANOGPT = """
import datasets, runpy
real = datasets.load_dataset
datasets.load_dataset = lambda *a, **k: real("json", data_files={corpus!r}, cache_dir={cache!r})
try:
    runpy.run_path({script!r}, run_name="__main__")
except IndexError:
    pass
"""


def measure_prepare(options: Options, work: Path, figures: Figures):
    source = corpus(options, work)
    with open(source, encoding="utf-8") as file:
        megabytes = sum(len(json.loads(line)["text"].encode()) for line in file) / 1e6
    encode = "tokenizer.encode"
    if options.tokenizer != "byte":
        encode = "tokenizer.encoding.encode_ordinary"
    code = BARE.format(
        root=str(ROOT),
        path=str(source),
        tokenizer=options.tokenizer,
        encode=encode,
    )

    def bare() -> Child:
        child = run_child([sys.executable, "-c", code])
        child.cpu_seconds = float(child.output.split()[-1])  # of encoding alone
        return child

    def ours() -> Child:
        return prepare(work / "one", source, f"--tokenizer={options.tokenizer}", "--workers=1")

    arms = {"bare": bare, "prepare": ours}
    if options.nanogpt:
        arms["nanoGPT"] = lambda: prepare_by_nanogpt(options.nanogpt, source, work)
    children = in_turn(options.repeats, arms)
    cpu = {arm: min(child.cpu_seconds for child in of_arm) for arm, of_arm in children.items()}
    wall = {arm: min(child.seconds for child in of_arm) for arm, of_arm in children.items()}

    figures.tell("corpus", f"{megabytes:.1f} MB of text")
    figures.tell(
        f"bare tiktoken ({options.tokenizer}), encode only",
        f"{megabytes / cpu['bare']:.1f} MB/s of CPU",
    )
    figures.tell(
        "prepare/text.py, whole process, 1 worker",
        f"{megabytes / cpu['prepare']:.1f} MB/s of CPU, {wall['prepare']:.1f} s wall-clock",
    )
    figures.tell("prepare / bare", f"{cpu['bare'] / cpu['prepare']:.1%}")
    if options.nanogpt:
        figures.tell(
            "nanoGPT, 1 process",
            f"{megabytes / cpu['nanoGPT']:.1f} MB/s of CPU, {wall['nanoGPT']:.1f} s wall-clock",
        )
        figures.tell(
            "prepare / nanoGPT",
            f"{cpu['nanoGPT'] / cpu['prepare']:.2f} x CPU, "
            f"{wall['nanoGPT'] / wall['prepare']:.2f} x wall-clock",
        )


def prepare_by_nanogpt(peer: str, source: Path, work: Path) -> Child:
    cache = work / "nanogpt-cache"
    shutil.rmtree(cache, ignore_errors=True)
    script = work / "nanogpt" / "prepare.py"  # it writes beside itself
    script.parent.mkdir(exist_ok=True)
    text = Path(peer, "data", "openwebtext", "prepare.py").read_text()
    script.write_text(text.replace("num_proc = 8", "num_proc = 1"))
    code = NANOGPT.format(corpus=str(source), cache=str(cache), script=str(script))
    return run_child([sys.executable, "-c", code])


# -----------------------------------------------------------------------------
# workers


def measure_workers(options: Options, work: Path, figures: Figures):
    source = work / "300MB"
    source.mkdir(exist_ok=True)
    for copy in range(4):
        shutil.copy(corpus(options, work), source / f"{copy}.jsonl")
    settings = [f"--tokenizer={options.tokenizer}", f"--shard_tokens={options.scaled(20_000_000)}"]

    def prepare_by(n_workers: int) -> Child:
        return prepare(work / f"w{n_workers}", source, *settings, f"--workers={n_workers}")

    children = in_turn(
        options.repeats, {"one": lambda: prepare_by(1), "two": lambda: prepare_by(2)}
    )
    prepare_by(4)
    wall_of_one = min(child.seconds for child in children["one"])
    wall_of_two = min(child.seconds for child in children["two"])
    cpu_of_one = min(child.cpu_seconds for child in children["one"])
    cpu_of_two = min(child.cpu_seconds for child in children["two"])
    figures.tell(
        f"2 workers / 1 worker, {300 * options.scale:g} MB",
        f"{wall_of_one / wall_of_two:.2f} x ({wall_of_one:.1f} s, {wall_of_two:.1f} s wall-clock)",
    )
    figures.tell("CPU seconds, 1 and 2 workers", f"{cpu_of_one:.1f}, {cpu_of_two:.1f}")
    hashes = [shard_hashes(work / f"w{n_workers}") for n_workers in (1, 2, 4)]
    same = hashes[0] == hashes[1] == hashes[2]
    figures.tell(f"sha256 of {len(hashes[0])} shards, workers 1, 2, 4", identical(same))


def identical(same: bool) -> str:
    return "identical" if same else "DIFFERENT"


# -----------------------------------------------------------------------------
# memory


def measure_memory(options: Options, work: Path, figures: Figures):
    large = work / "large.txt"
    large_size = options.scaled(1e9)
    block = "\n\n".join(library_documents(options)).encode()
    with open(large, "wb") as file:
        while file.tell() < large_size:
            file.write(block)
    tiny = work / "tiny.jsonl"
    n_tiny = options.scaled(1e6)
    with open(tiny, "w") as file:
        for number in range(n_tiny):
            file.write(json.dumps({"text": f"tiny document {number}"}) + "\n")

    measure_peaks(f"one document of {large_size / 1e9:g} GB", large, 1, "byte", work, figures)
    measure_peaks(
        f"one document of {large_size / 1e9:g} GB", large, 2, options.tokenizer, work, figures
    )
    for n_workers in (1, 2):
        measure_peaks(
            f"{n_tiny:,} tiny documents", tiny, n_workers, options.tokenizer, work, figures
        )
    large.unlink()


def measure_peaks(
    what: str, source: Path, n_workers: int, tokenizer: str, work: Path, figures: Figures
):
    peaks: dict[str, int] = {}  # bytes, by process
    out = work / "memory"
    with watching(lambda: look_at_memory(peaks), seconds=0.1):
        child = prepare(out, source, f"--tokenizer={tokenizer}", f"--workers={n_workers}")
    shutil.rmtree(out)
    largest = sorted(peaks.values(), reverse=True)[: n_workers + 1]
    megabytes = ", ".join(f"{peak / 1e6:.0f}" for peak in largest)
    figures.tell(
        f"{what}, {n_workers} workers, {tokenizer}",
        f"peak MB per process: {megabytes} ({child.seconds:.0f} s)",
    )


def look_at_memory(peaks: dict[str, int]):
    """Put the peak memory so far of every process of prepare/text.py into `peaks`, from /proc."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError, KeyError):  # it has just ended
            words = status.with_name("cmdline").read_bytes().split(b"\0")
            is_main = len(words) > 1 and words[1].endswith(b"prepare/text.py")
            is_worker = len(words) > 2 and b"spawn_main" in words[2]
            if is_main or is_worker:
                lines = status.read_text().splitlines()
                values = dict(line.split(":", 1) for line in lines if ":" in line)
                kibibytes = int(values["VmHWM"].split()[0])
                peaks[status.parent.name] = 1024 * kibibytes


# -----------------------------------------------------------------------------
# disk


def measure_disk(options: Options, work: Path, figures: Figures):
    source = corpus(options, work)
    out = work / "disk"
    peak = 0

    def look():
        nonlocal peak
        with suppress(OSError):  # a file has just been renamed
            peak = max(peak, folder_size(out, "*"))

    settings = [f"--tokenizer={options.tokenizer}", f"--shard_tokens={options.scaled(5_000_000)}"]
    with watching(look, seconds=0.02):
        prepare(out, source, *settings, "--workers=2")
    final = folder_size(out, "*.bin")
    figures.tell(
        "disk while preparing / final shards",
        f"{peak / final:.3f} ({peak / 1e6:.1f} of {final / 1e6:.1f} MB)",
    )


def folder_size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


# -----------------------------------------------------------------------------
# kills


def measure_kills(options: Options, work: Path, figures: Figures):
    source = corpus(options, work)
    settings = [f"--tokenizer={options.tokenizer}", f"--shard_tokens={options.scaled(5_000_000)}"]
    straight = prepare(work / "straight", source, *settings, "--workers=2")
    expected = shard_hashes(work / "straight")
    out = work / "killed"
    shutil.rmtree(out, ignore_errors=True)
    draw = random.Random(0)
    n_wanted = options.scaled(20)
    n_killed = 0
    n_finished = 0
    while n_killed < n_wanted:
        workers = f"--workers={draw.choice([1, 2])}"
        process = subprocess.Popen(
            [*PREPARE, f"--input={source}", f"--out={out}", *settings, workers],
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        try:
            process.wait(timeout=draw.uniform(0.3, straight.seconds / 2))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            n_killed += 1
            continue
        if shard_hashes(out) != expected:
            break
        n_finished += 1
        shutil.rmtree(out)
    run_child([*PREPARE, f"--input={source}", f"--out={out}", *settings])
    figures.tell(
        f"sha256 after {n_killed} kill -9, {n_finished + 1} datasets finished",
        identical(shard_hashes(out) == expected),
    )


# -----------------------------------------------------------------------------
# bpe


def measure_bpe(options: Options, work: Path, figures: Figures):
    documents = library_documents(options)
    size = n_bytes(documents)
    best = float("inf")
    for _ in range(options.repeats):
        began = time.process_time()
        counts = count_pieces(documents)
        counted = time.process_time()
        tokenizer = train_bpe(counts, 4096)
        best = min(best, time.process_time() - began)
    figures.tell(
        f"own BPE, 4,096 ids, {size / 1e6:.1f} MB",
        f"{best:.2f} CPU s ({counted - began:.2f} of it counting)",
    )
    encoded = [tokenizer.encode_numpy(document) for document in documents]
    figures.tell("bytes per token", f"{size / sum(map(len, encoded)):.3f}")

    tokenizer.save(work)
    loaded = load_tokenizer(work)
    equal = True
    inverse = True
    for document, ids in zip(documents, encoded, strict=True):
        equal = equal and np.array_equal(loaded.encode_numpy(document), ids)
        inverse = inverse and loaded.decode(ids) == document
    figures.tell("ids equal after save and load; decode(encode(x)) = x", f"{equal}; {inverse}")


# -----------------------------------------------------------------------------
# shakespeare


def measure_shakespeare(options: Options, work: Path, figures: Figures):
    """The whole process from file to shards, of tiny Shakespeare and of the library."""
    if options.shakespeare:
        command = [sys.executable, str(ROOT / "prepare" / "shakespeare_char.py")]
        command += [f"--input={Path(options.shakespeare).resolve()}"]
        out = work / "shakespeare"
        children = []
        for _ in range(options.repeats):
            shutil.rmtree(out, ignore_errors=True)
            children.append(run_child([*command, f"--out={out}"]))
        best = min(children, key=lambda child: child.cpu_seconds)
        figures.tell(
            "tiny Shakespeare, file to shards",
            f"{best.cpu_seconds:.2f} CPU s, {best.seconds:.2f} s wall-clock",
        )
    command = [sys.executable, str(ROOT / "prepare" / "python_stdlib.py")]
    if options.library:
        command += [f"--input={Path(options.library).resolve()}"]
    out = work / "stdlib"
    shutil.rmtree(out, ignore_errors=True)
    child = run_child([*command, f"--out={out}"])
    figures.tell(
        "the Python library, files to shards",
        f"{child.cpu_seconds:.2f} CPU s, {child.seconds:.2f} s wall-clock",
    )


# -----------------------------------------------------------------------------
# fetch


def measure_fetch(options: Options, work: Path, figures: Figures):
    """On one core."""
    ids = np.random.default_rng(0).integers(0, 50257, options.scaled(50_000_000))

    class Dataset:  # what TrainBatches reads of one
        train = Stream([ids.astype("<u2")])
        parts = [(train, 1.0)]

    block_size = 1024
    n_steps = options.scaled(200)
    for n_rows in (12, 32, 64):
        batches = TrainBatches(Dataset, block_size, n_rows, n_rows, seed=0, device="cpu")
        best = float("inf")
        for _ in range(5 * options.repeats):
            began = time.process_time()
            for step in range(n_steps):
                batches.fetch(step * n_rows, 0)
            best = min(best, (time.process_time() - began) / n_steps)
        figures.tell(
            f"fetch B={n_rows}, T={block_size}",
            f"{best * 1e6:.0f} us, {n_rows * block_size / best / 1e6:.0f} million tokens/s",
        )


# -----------------------------------------------------------------------------
# order


def measure_order(options: Options, work: Path, figures: Figures):
    n_tokens = options.scaled(10**10)
    best = float("inf")
    for _ in range(options.repeats):
        began = time.process_time()
        permutation = SampleOrder(n_tokens, 1024, 0).epoch_order(0)
        best = min(best, time.process_time() - began)
    megabytes = permutation.nbytes / 1e6
    digest = hashlib.sha256(permutation.tobytes()).hexdigest()[:12]
    figures.tell(
        f"order of {n_tokens / 1e9:g}B tokens, T=1024",
        f"{best:.2f} CPU s, {megabytes:.1f} MB kept (sha256 {digest})",
    )


if __name__ == "__main__":
    cli.run(main)
