"""What a training step takes on this device: passes and updates, timed on a network of new weights.

The dial times networks that it may choose (`known_timing` keeps what it saw for a week); how long a
run takes is told from a network like the run's own (lathe/use/pace.py).
"""

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lathe.optim.build import build_optimizers
from lathe.run import ranks
from lathe.run.devices import Runtime
from lathe.run.files import write_atomically
from lathe.run.parallel import use_sparse_gradients
from lathe.run.provenance import cpu_name
from lathe.settings import Settings
from model import GPT, GPTConfig


@dataclass(frozen=True)
class Timing:
    """Seconds of a training step are tokens * token + update; launch + update, if that is more."""

    token: float  # forward and backward, of one token
    update: float  # of the optimizers
    launch: float = 0.0  # what a host takes to ask a GPU for the kernels of a pass

    def passes(self, tokens: int, captured: bool = False) -> float:
        """Forward and backward of so many tokens. captured: as one CUDA graph, asked for once."""
        computed = tokens * self.token
        return computed if captured else max(computed, self.launch)

    def step(self, tokens: int, captured: bool = False) -> float:
        return self.passes(tokens, captured) + self.update

    def least(self, other: "Timing") -> "Timing":
        return Timing(
            min(self.token, other.token),
            min(self.update, other.update),
            min(self.launch, other.launch),
        )


class TimedNetwork:
    """A network, on the run's device, whose passes and updates say what they take, in seconds."""

    def __init__(self, model: GPT, s: Settings, runtime: Runtime):
        self.model = model.to(runtime.device).train()
        self.runtime = runtime
        # At any rates an update takes as long.
        self.optimizers = build_optimizers(
            model.named_parameters(),
            optimizer=s.optimizer,
            learning_rate=1e-6,
            muon_learning_rate=1e-6,
            weight_decay=0.1,
            betas=(0.8, 0.95),
            muon_momentum=0.9,
            fused_rows=model.fused_rows(),
            ngram_learning_rate=1e-6,
        )
        use_sparse_gradients(model, runtime, compiled=False)
        self.skipped = torch.tensor(False, device=runtime.device)

    def one_pass(self, n_sequences: int, n_tokens: int) -> float:
        """Forward and backward of so many sequences of n_tokens each."""
        size = (n_sequences, n_tokens + 1)
        ids = torch.randint(self.model.config.vocab_size, size, device=self.runtime.device)
        x = ids[:, :-1].contiguous()
        y = ids[:, 1:].contiguous()
        began = self.now()
        with self.runtime.autocast():
            loss = self.model(x, y, reduction="sum")
        loss.backward()
        return self.now() - began

    def one_update(self) -> float:
        began = self.now()
        for optimizer in self.optimizers:
            optimizer.step(self.skipped)
            optimizer.zero_grad()
        return self.now() - began

    def now(self) -> float:
        """Once all that was begun is done."""
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)
        elif self.runtime.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


# -----------------------------------------------------------------------------
# Of a network that is in question

MEASURED_SECONDS = 0.3  # at least, of each network whose passes are short
CHECKED_SECONDS = 0.05  # the same, where it was measured before
LONG_PASS = 0.1  # seconds; a network is then measured by one sequence
MEASURED_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}  # of a pass


def time_network(
    config: GPTConfig, s: Settings, runtime: Runtime, seconds: float = MEASURED_SECONDS
) -> Timing:
    """What its steps take on this device, now; short passes are repeated for so many seconds."""
    network = TimedNetwork(GPT(config), s, runtime)
    n_tokens = config.block_size
    network.one_pass(1, n_tokens)  # the first loads what later ones have
    network.one_update()
    shortest = network.one_pass(1, n_tokens)
    updates = [network.one_update()]
    if shortest > LONG_PASS:
        return Timing(shortest / n_tokens, updates[0])
    most = max(1, MEASURED_TOKENS[runtime.device.type] // n_tokens)
    launch = 0.0
    if runtime.device.type == "cuda":
        launch = min(network.one_pass(1, n_tokens) for _ in range(3))
    passes = []
    began = time.perf_counter()
    while len(passes) < 2 or time.perf_counter() - began < seconds:
        passes.append(network.one_pass(most, n_tokens))
        updates.append(network.one_update())
    # The least is what a busy machine can do when it is not.
    return Timing(min(passes) / (most * n_tokens), min(updates), launch)


def known_timing(config: GPTConfig, s: Settings, runtime: Runtime) -> Timing:
    """The same, as rank 0 sees it while all ranks work; remembered for this machine for a week.

    What is remembered is looked at again, shortly, and the lesser holds: it may come from a busy
    hour, in which a step takes a hundred times as long.
    """
    file = speeds_file()
    key = speed_key(config, s, runtime)
    known = ranks.on_main(lambda: remembered(file, key))
    seconds = CHECKED_SECONDS if known else MEASURED_SECONDS
    measured = ranks.gather(time_network(config, s, runtime, seconds))[0]
    least = measured.least(known) if known else measured
    if runtime.is_main and least != known:
        keep_speed(file, key, least)
    return least


def remembered(file: Path, key: str) -> Timing | None:
    speed = read_speeds(file).get(key)
    return Timing(speed["token"], speed["update"], speed["launch"]) if speed else None


WEEK = 7 * 24 * 3600
MOST_SPEEDS = 500


def speeds_file() -> Path:
    """In the user's folder for what can be made again."""
    if os.name == "nt":
        home = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        home = "~/Library/Caches"
    else:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "lathe" / "speeds.json"


def speed_key(config: GPTConfig, s: Settings, runtime: Runtime) -> str:
    device = cpu_name() if runtime.device.type == "cpu" else runtime.device_name
    about = [device, runtime.world_size, torch.get_num_threads(), torch.__version__]
    about += [str(runtime.dtype), s.optimizer, asdict(config)]
    return json.dumps(about)


def read_speeds(file: Path) -> dict[str, dict[str, float]]:
    """What is remembered and not too old; nothing where that cannot be read."""
    try:
        speeds = json.loads(file.read_text(encoding="utf-8"))
        newest = time.time() - WEEK
        return {
            key: {name: float(speed[name]) for name in ("token", "update", "launch", "time")}
            for key, speed in speeds.items()
            if speed["time"] > newest and 0 < speed["token"] < 1 and 0 < speed["update"] < 1e3
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def keep_speed(file: Path, key: str, measured: Timing):
    speeds = read_speeds(file)
    speeds[key] = {**asdict(measured), "time": time.time()}
    newest = sorted(speeds.items(), key=lambda item: item[1]["time"])[-MOST_SPEEDS:]
    with suppress(OSError):  # a home that cannot be written to: measured again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(dict(newest)))
