"""The dial: what to train, and how, in so many minutes on this machine.

`turn_dial` times a few steps of the networks in question, takes the largest one that still reads
enough of the text in the time there is, and sets batch, steps and rates by rules. bench/LOG.md has
the runs that the rules come from ("By minutes"). What a user has set stays.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lathe.optim.build import is_ngram_table
from lathe.optim.schedule import decay_by_reading
from lathe.run import ranks
from lathe.run.devices import Runtime
from lathe.run.parallel import has_sparse_gradients
from lathe.run.timing import Timing, known_timing
from lathe.settings import Settings
from model import GPT, GPTConfig

LEAST_MINUTES = 0.1

# -----------------------------------------------------------------------------
# What is asked for

LENGTHS = ("max_steps", "tokens", "epochs")  # other settings that say how long a run is


def settle_length(s: Settings, say: Callable[[str], None]) -> Settings:
    """The settings with one word on how long the run is: the command line's before a preset's.

    Raises ValueError where two are in one place.
    """
    if not s.minutes:
        return s
    if s.minutes < LEAST_MINUTES:
        raise ValueError(f"minutes is {s.minutes:g}; start-up alone takes {LEAST_MINUTES:g}")
    asked = s.given.get("minutes", "")
    if s.gpus and asked:
        raise ValueError("minutes are measured on this machine, gpus are another: drop one of them")
    if s.gpus:
        return s.but(minutes=0.0)
    for name in LENGTHS:
        source = s.given.get(name, "")
        if not source or not getattr(s, name):
            continue
        if source.startswith("--") and not asked.startswith("--"):
            return s.but(minutes=0.0)
        if source.startswith("--") or not asked.startswith("--"):
            raise ValueError(f"minutes and {name} both say how long the run is: drop one of them")
        say(f"{source} = {getattr(s, name)} gives way to --minutes={s.minutes:g}")
    return s


# -----------------------------------------------------------------------------
# Which network


Network = Callable[[Settings], GPTConfig]  # the network of such settings


@dataclass(frozen=True)
class Text:
    """What a run reads, in tokens."""

    n_tokens: int  # of the training split
    of_smallest: int  # of the smallest dataset in it
    n_val_tokens: int


@dataclass(frozen=True)
class Size:
    n_layer: int
    n_embd: int


SIZES = [Size(2, 64), Size(2, 96), Size(3, 96), Size(3, 128), Size(4, 160), Size(4, 192)]
SIZES += [Size(5, 256), Size(6, 384), Size(8, 512), Size(12, 768), Size(16, 1024), Size(20, 1280)]
# The best network is the largest one that reads so many tokens for each weight of its blocks.
TOKENS_PER_WEIGHT = 4.0
TOKENS_PER_WEIGHT_OF_CHARACTERS = 7.0  # each of which says less
# Beside a table by words, which knows already what small networks learn first.
TOKENS_PER_WEIGHT_BESIDE_TABLE = 3.0
# Where it would read a small text more often than this, a larger one with fewer tokens is better.
MANY_EPOCHS = 8.0
TOKENS_PER_WEIGHT_THEN = 2.5


def tokens_wanted(config: GPTConfig) -> float:
    """Tokens for each weight of its blocks, with which a network is not too large."""
    if config.vocab_size <= CHARACTERS:
        return TOKENS_PER_WEIGHT_OF_CHARACTERS
    return TOKENS_PER_WEIGHT_BESIDE_TABLE if config.ngram_rows else TOKENS_PER_WEIGHT


@dataclass(frozen=True)
class Candidate:
    """A network, and what it would do in the time there is."""

    config: GPTConfig
    timing: Timing
    batch_size: int
    n_steps: int
    block_weights: int
    text_tokens: int
    captured: bool  # a pass is a CUDA graph

    @property
    def n_tokens(self) -> int:
        return self.n_steps * self.batch_size * self.config.block_size

    @property
    def tokens_per_weight(self) -> float:
        return self.n_tokens / self.block_weights

    @property
    def n_epochs(self) -> float:
        return self.n_tokens / self.text_tokens

    def __str__(self) -> str:
        return f"{self.config.n_layer} x {self.config.n_embd}"


def candidate(
    config: GPTConfig, s: Settings, speed: Timing, n_tokens: int, seconds: float, world_size: int
) -> Candidate:
    """What the network would do in so many seconds of training. n_tokens: of the text."""
    with torch.device("meta"):
        blocks = GPT(config).transformer.h
    weights = sum(p.numel() for p in blocks.parameters())
    batch_size = s.batch_size
    if is_free(s, "batch_size"):
        batch_size = batch_by_tokens(seconds / speed.token, config.block_size, world_size)
    step_tokens = batch_size * config.block_size // world_size  # of a rank
    captured = can_capture(s, world_size) and speed.passes(step_tokens, True) < speed.launch
    n_steps = max(1, round(seconds / speed.step(step_tokens, captured)))
    return Candidate(config, speed, batch_size, n_steps, weights, n_tokens, captured)


def can_capture(s: Settings, world_size: int) -> bool:
    """Whether passes may become CUDA graphs (lathe/run/plan.py, decide_graphs)."""
    allowed = is_free(s, "cuda_graphs") or s.cuda_graphs
    return allowed and world_size == 1 and s.activation_checkpointing == "none"


def scaled(speed: Timing, measured: GPTConfig, config: GPTConfig) -> Timing:
    """What another network takes, by its operations and weights."""
    with torch.device("meta"):
        one, other = GPT(measured), GPT(config)
    return Timing(
        speed.token * other.flops_per_token() / one.flops_per_token(),
        speed.update * n_updated(other) / n_updated(one),
        speed.launch * config.n_layer / measured.n_layer,
    )


def n_updated(model: GPT) -> int:
    """How many numbers each update moves: of a table by n-grams it moves few."""
    return sum(p.numel() for name, p in model.named_parameters() if not is_ngram_table(name))


def batch_by_tokens(n_tokens: float, block_size: int, world_size: int) -> int:
    """Sequences of a step: about 900 tokens in a run of 300,000, and ~ tokens^0.383 beyond."""
    step_tokens = 900 * (n_tokens * world_size / 300_000) ** 0.383
    n = max(1, round(step_tokens / block_size / world_size))
    step = 2 ** max(0, math.floor(math.log2(n)) - 2)  # 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ...
    return world_size * step * round(n / step)


@dataclass(frozen=True)
class Table:
    """A table by n-grams that suits a vocabulary."""

    order: int
    rows: int


OF_CHARACTERS = Table(order=5, rows=16_384)
OF_WORDS = Table(order=3, rows=65_536)
CHARACTERS = 300  # ids at most: bytes are like characters
# A run that reads its text more often comes to know it by heart through the table.
NGRAM_EPOCHS = 2.0
NGRAM_DROPOUT = 0.5  # once a text is read again
NGRAM_WIDTH = 256  # wider networks were not tried with a table


def table_for(vocab_size: int) -> Table:
    return OF_CHARACTERS if vocab_size <= CHARACTERS else OF_WORDS


def with_order(config: GPTConfig, s: Settings) -> GPTConfig:
    """With the order that suits the vocabulary, if there is to be a table and the user has left
    that open."""
    if not config.ngram_rows or not is_free(s, "ngram_order"):
        return config
    return replace(config, ngram_order=table_for(config.vocab_size).order)


def table_pays(one: "Candidate", s: Settings, runtime: Runtime) -> bool:
    """Whether a table would do better: it learns fast, where a step moves the rows alone that it
    uses, and a text is not read often."""
    is_sparse = has_sparse_gradients(runtime.device.type, runtime.world_size, s.compile == "true")
    is_small = one.config.n_embd <= NGRAM_WIDTH
    return is_sparse and is_small and one.n_epochs <= NGRAM_EPOCHS


def sized(s: Settings, size: Size, text: Text) -> Settings:
    """The settings with a network of this size, where the user has not said otherwise."""
    n_embd = size.n_embd
    if not is_free(s, "n_embd"):
        n_embd = s.n_embd
    elif not is_free(s, "n_head"):  # whose heads are to be as wide as one another
        n_embd = max(1, round(n_embd / s.n_head / 16)) * 16 * s.n_head
    heads = [n for n in range(1, n_embd + 1) if n_embd % n == 0 and n_embd // n % 2 == 0]
    wanted = {"n_layer": size.n_layer, "n_embd": n_embd}
    # Heads of 64, or a little more where that does not come out even; two are better than one
    least = 64 if n_embd >= 128 else 48
    wanted["n_head"] = max((n for n in heads if n_embd // n >= least), default=1)
    wanted["block_size"] = min(context_of(n_embd), text.of_smallest - 1)
    # In small networks it costs more than it helps once they are trained for a while.
    wanted["qk_norm"] = n_embd >= 256
    return s.but(**{name: value for name, value in wanted.items() if is_free(s, name)})


def context_of(n_embd: int) -> int:
    if n_embd <= 64:
        return 64
    if n_embd <= 256:
        return 128
    return 256 if n_embd <= 512 else 1024


def is_free(s: Settings, name: str) -> bool:
    """Whether the user has left it to the dial."""
    return name not in s.given


LARGE = 12 * 256**2 * 8  # weights of blocks, of which two are then timed for all

# Of the time for training, and seconds at most; then sizes are judged by those measured
MEASURED_SHARE = 0.04
MOST_MEASURED = 20.0


def timing_of(config: GPTConfig, s: Settings, runtime: Runtime) -> Timing:
    """As measured; a large network's by two of its blocks, since its own would take minutes."""
    two = replace(config, n_layer=min(2, config.n_layer))
    if config.n_layer * 12 * config.n_embd**2 <= LARGE or two == config:
        return known_timing(config, s, runtime)
    return scaled(known_timing(two, s, runtime), two, config)


def choose_network(
    s: Settings, runtime: Runtime, network: Network, text: Text, seconds: float
) -> tuple[Candidate, str]:
    """The network that learns most in the time, and why; only what is in question is timed."""
    timed: dict[int, Candidate] = {}
    began = time.monotonic()

    def is_late() -> bool:
        late = time.monotonic() - began > min(MEASURED_SHARE * seconds, MOST_MEASURED)
        return ranks.on_main(lambda: late)

    def at(i: int) -> Candidate:
        if i in timed:
            return timed[i]
        config = network(sized(s, SIZES[i], text))
        config = with_order(config, s)
        if timed and is_late():
            nearest = timed[min(timed, key=lambda k: abs(k - i))]
            speed = scaled(nearest.timing, nearest.config, config)
        else:
            speed = timing_of(config, s, runtime)
        timed[i] = candidate(config, s, speed, text.n_tokens, seconds, runtime.world_size)
        return timed[i]

    def reads_enough(i: int, least: float | None = None) -> bool:
        if i == len(SIZES):
            return False
        one = at(i)
        return one.tokens_per_weight >= (least or tokens_wanted(one.config))

    i = first_guess(s, runtime, network, text, seconds)
    while i > 0 and not reads_enough(i):
        i -= 1
    while reads_enough(i + 1):
        i += 1
    least = tokens_wanted(at(i).config)
    if at(i).n_epochs > MANY_EPOCHS:
        least = TOKENS_PER_WEIGHT_THEN
        while at(i).n_epochs > MANY_EPOCHS and reads_enough(i + 1, least):
            i += 1
    one = at(i)
    why = f"{one.tokens_per_weight:.3g} tokens for each weight of its blocks"
    following = timed.get(i + 1, one)
    if str(following) != str(one):
        why += f"; {following} would read {following.tokens_per_weight:.2g}, "
        why += f"at least {least:g} are good"
    return one, why


ASSUMED_FLOPS = {"cpu": 5e10, "mps": 2e12, "cuda": 1e14}  # a second, where timing begins


def assumed_seconds(config: GPTConfig, n_tokens: int, runtime: Runtime) -> float:
    """Of training on so many tokens, before anything is timed: often wrong by a factor of four."""
    with torch.device("meta"):
        model = GPT(config)
    return n_tokens * model.flops_per_token() / ASSUMED_FLOPS[runtime.device.type]


def refuse_longer_than_the_run(config: GPTConfig, runtime: Runtime, seconds: float):
    """ValueError for sequences of which one takes longer than all of the training, even on a device
    four times as quick as is assumed: timing one would, too."""
    takes = assumed_seconds(config, config.block_size, runtime) / 4
    if takes > seconds:
        raise ValueError(
            f"block_size {config.block_size:,}: a sequence takes {takes:,.0f} s or more here, "
            f"training has {seconds:.0f} s: lower it, or give more minutes"
        )


def refuse_a_step_longer_than_the_run(one: Candidate, runtime: Runtime, seconds: float):
    """ValueError where the first step would end after the run. A small step that was timed so long
    met a busy moment, and is not refused."""
    n_tokens = one.batch_size * one.config.block_size // runtime.world_size
    takes = one.timing.step(n_tokens)
    if takes > seconds and assumed_seconds(one.config, n_tokens, runtime) > seconds / 4:
        raise ValueError(
            f"a step of batch_size {one.batch_size:,} x block_size {one.config.block_size:,} takes "
            f"about {takes:,.0f} s here, training has {seconds:.0f} s: lower these, choose a "
            "smaller network or more minutes"
        )


def first_guess(s: Settings, runtime: Runtime, network: Network, text: Text, seconds: float) -> int:
    """The number of the size that is timed first."""
    flops = ASSUMED_FLOPS[runtime.device.type] * seconds * runtime.world_size
    for i, size in enumerate(SIZES):
        with torch.device("meta"):
            model = GPT(network(sized(s, size, text)))
        weights = sum(p.numel() for p in model.transformer.h.parameters())
        if flops / model.flops_per_token() / weights < TOKENS_PER_WEIGHT:
            return max(0, i - 1)
    return len(SIZES) - 1


# -----------------------------------------------------------------------------
# How it is trained


# Without QK-norm queries and keys grow by Muon's rate, and half of it is best.
MUON_RATE_WITHOUT_QK_NORM = 0.55


# Of a new network's rates, best for the new text whether it is near what the weights know or far
# from it. Half as much keeps more of the old one, and costs 1 to 2%.
SHARE_FOR_GIVEN_WEIGHTS = 0.5
# Of AdamW's rate, for corrections of low rank: as good as twice as much, and keeps more; four times
# as much ruins them.
SHARE_FOR_LORA = 0.25
# Of AdamW's rate, where it moves the matrices of blocks, too
SHARE_WITHOUT_MUON = 0.25


@dataclass(frozen=True)
class Share:
    """Of the rates that a new network with Muon takes."""

    value: float = 1.0
    reason: str = ""


def share_of_rates(s: Settings, network_is_given: bool) -> Share:
    """By what is moved, and from where. bench/LOG.md has the runs."""
    if s.lora_rank:
        return Share(SHARE_FOR_LORA, f", {SHARE_FOR_LORA:g} of it for LoRA")
    share = Share()
    if network_is_given:
        value = SHARE_FOR_GIVEN_WEIGHTS
        share = Share(value, f", {value:g} of it for given weights")
    if s.optimizer == "adamw":
        value = share.value * SHARE_WITHOUT_MUON
        return Share(value, f"{share.reason}, {SHARE_WITHOUT_MUON:g} of it without Muon")
    return share


def rates(n_steps: int, config: GPTConfig, share: float = 1.0) -> dict[str, float]:
    """Peak rates: ~ steps^-0.3, AdamW's ~ width^-0.5, too; this share of them."""
    slower = share * (300 / max(n_steps, 100)) ** 0.3
    muon = 0.04 if config.qk_norm else 0.04 * MUON_RATE_WITHOUT_QK_NORM
    return {
        "learning_rate": float(f"{0.03 * slower * math.sqrt(64 / config.n_embd):.3g}"),
        "muon_learning_rate": float(f"{muon * slower:.3g}"),
    }


def momentum(n_steps: int) -> float:
    """Of Muon: a longer average never catches up in a short run."""
    if n_steps < 250:
        return 0.8
    return 0.9 if n_steps < 4000 else 0.95


REREAD = 2.0  # epochs from which on a text could be learned by heart
DECAY_OF_GIVEN = 0.1  # more would take from given weights what they know
LONGEST_MEMORY = 3.0  # times the run: so that a text that is hardly begun has some decay, too
# A network that could hold the text, and reads it often, has to forget faster than in a reading;
# but not within a few steps, of which each is noise.
COULD_HOLD = 16.0  # weights of blocks for each token of the text, times readings, from which on
SHORTENED_TO = 25  # steps at least, where a reading is more


def decay_of(one: Candidate, rate: float) -> float:
    """Of new weights, where matrices have this peak rate."""
    return decay_by_reading(rate, memory_of(one))


def memory_of(one: Candidate) -> float:
    """The steps within which weights had best forget."""
    reading = one.n_steps / one.n_epochs
    held = one.block_weights / one.text_tokens * one.n_epochs
    shorter = reading / max(1.0, held / COULD_HOLD) ** 0.8
    memory = max(shorter, min(reading, SHORTENED_TO))
    return min(memory, LONGEST_MEMORY * one.n_steps)


AVERAGED = 0.1  # the tail of a run of several epochs over which weights are averaged, too

N_EVALUATIONS = {0.0: 2, 2.0: 4, 15.0: 8}  # from so many minutes on
EVALUATION_SHARE = 0.01  # of the budget, for the losses of one, on each of two texts


def evaluations(minutes: float) -> int:
    return max(n for least, n in N_EVALUATIONS.items() if minutes >= least)


def spaced(n_steps: int, minutes: float) -> int:
    """The eval_interval of a run of so many steps."""
    # 1.06: no evaluation just before the last one, also where there are a few steps more.
    return math.ceil(1.06 * n_steps / evaluations(minutes))


@dataclass(frozen=True)
class Choice:
    """Of a setting's value."""

    value: int | float | bool
    reason: str = ""  # none where another setting's says it


def network_choices(one: Candidate) -> dict[str, Choice]:
    config = one.config
    return {
        "n_layer": Choice(config.n_layer),
        "n_embd": Choice(config.n_embd),
        "n_head": Choice(config.n_head),
        "qk_norm": Choice(config.qk_norm, "on from a width of 256 on"),
    }


def table_choices(one: Candidate, s: Settings, runtime: Runtime) -> dict[str, Choice]:
    """None is taken unless it is asked for: few programs open such a network."""
    config = one.config
    if config.ngram_rows:
        return {
            "ngram_rows": Choice(config.ngram_rows),
            "ngram_order": Choice(config.ngram_order, "suits the vocabulary"),
            "ngram_dropout": Choice(
                0.0 if one.n_epochs < 1 else NGRAM_DROPOUT,
                f"the text is read {one.n_epochs:.3g} times",
            ),
        }
    why = "every program opens such a network"
    if table_pays(one, s, runtime):
        rows = table_for(config.vocab_size).rows
        why += f"; --ngram_rows={rows} would do better, and opens in transformers alone"
    return {"ngram_rows": Choice(0, why)}


def training_choices(one: Candidate, world_size: int, share: Share) -> dict[str, Choice]:
    n_steps = one.n_steps
    by_steps = f"for {n_steps:,} steps"
    by_epochs = f"the text is read {one.n_epochs:.3g} times"
    step_seconds = one.timing.step(one.n_tokens // n_steps // world_size, one.captured)
    as_timed = f"{1e3 * step_seconds:.3g} ms a step, timed here; the clock corrects it"
    rate = rates(n_steps, one.config, share.value)
    rates_for = f"{by_steps}{share.reason}"
    qk_norm = "with" if one.config.qk_norm else "without"
    is_long = n_steps >= 4000
    graphs = {}
    if one.captured:
        graphs["cuda_graphs"] = Choice(True, "launching kernels takes longer than they do")
    return graphs | {
        "block_size": Choice(one.config.block_size, "the context that suits the width"),
        "batch_size": Choice(one.batch_size, "~ tokens^0.383"),
        "max_steps": Choice(n_steps, as_timed),
        "learning_rate": Choice(rate["learning_rate"], f"~ steps^-0.3 / sqrt(width), {rates_for}"),
        "muon_learning_rate": Choice(
            rate["muon_learning_rate"], f"~ steps^-0.3 {qk_norm} QK-norm, {rates_for}"
        ),
        "muon_momentum": Choice(momentum(n_steps), by_steps),
        "beta1": Choice(0.9 if is_long else 0.8, by_steps),
        "warmup_steps": Choice(n_steps // 200 if is_long else 0, by_steps),
        "average_fraction": Choice(AVERAGED if one.n_epochs >= REREAD else 0.0, by_epochs),
        "log_interval": Choice(max(1, n_steps // 40)),
    }


def regularization_choices(
    one: Candidate, rate: float, network_is_given: bool
) -> dict[str, Choice]:
    """rate: the peak rate of the matrices."""
    by_epochs = f"the text is read {one.n_epochs:.3g} times"
    if network_is_given:
        return {
            "weight_decay": Choice(DECAY_OF_GIVEN, "for given weights"),
            "dropout": Choice(0.1 if one.n_epochs >= REREAD else 0.0, by_epochs),
        }
    of_reading = memory_of(one) * one.n_epochs / one.n_steps
    memory = "a reading" if of_reading >= 0.995 else f"{of_reading:.0%} of a reading"
    return {
        "weight_decay": Choice(decay_of(one, rate), f"{by_epochs}; weights forget within {memory}"),
        "dropout": Choice(0.0, "decay does better"),
    }


def evaluation_choices(
    one: Candidate, minutes: float, n_val_tokens: int, world_size: int
) -> dict[str, Choice]:
    n_evaluations = evaluations(minutes)
    seconds = EVALUATION_SHARE * 60 * minutes
    n_tokens = int(2 * seconds / one.timing.token * world_size)  # a pass without gradients is short
    if n_tokens >= n_val_tokens:
        n_tokens = 0  # all
    return {
        "eval_interval": Choice(spaced(one.n_steps, minutes), f"{n_evaluations} evaluations"),
        "eval_tokens": Choice(n_tokens, f"{EVALUATION_SHARE:.0%} of the time each"),
    }


@dataclass(frozen=True)
class Dialled:
    """What the dial has chosen."""

    settings: Settings
    config: GPTConfig
    lines: list[str]  # a line about each choice, with its reason
    timing: Timing


def turn_dial(
    s: Settings,
    runtime: Runtime,
    network: Network,
    text: Text,
    spent: float,
    network_is_given: bool,
) -> Dialled:
    """Choose all that the user has not.

    spent: seconds since the process began; network_is_given: by weights that the run begins with.
    Every rank calls it and gets the same. Raises ValueError where a step would outlast the run.
    """
    budget = 60 * s.minutes
    # Losses, samples, saves, start-up so far, timing the networks, the end of the process
    beside = evaluations(s.minutes) * (2 * EVALUATION_SHARE * budget + 0.3) + spent + 1.5
    seconds = max(0.3 * budget, budget - beside)
    n_ranks = runtime.world_size
    lines = [f"minutes {s.minutes:g}: {seconds:.0f} s of training beside start-up and evaluations"]

    if network_is_given:
        config = network(s)
        refuse_longer_than_the_run(config, runtime, seconds)
        speed = timing_of(config, s, runtime)
        one = candidate(config, s, speed, text.n_tokens, seconds, n_ranks)
        lines.append(f"network {one}: of the weights that it begins with")
        lines.append("rates are best for the new text: half of them forget less of the old")
        choices = {}
    else:
        refuse_longer_than_the_run(network(sized(s, SIZES[0], text)), runtime, seconds)
        one, why = choose_network(s, runtime, network, text, seconds)
        lines.append(f"network {one}: {why}")
        choices = network_choices(one) | table_choices(one, s, runtime)
    refuse_a_step_longer_than_the_run(one, runtime, seconds)
    choices |= training_choices(one, n_ranks, share_of_rates(s, network_is_given))
    has_muon = not s.lora_rank and s.optimizer == "muon"
    of_matrices = "muon_learning_rate" if has_muon else "learning_rate"
    rate = choices[of_matrices].value if is_free(s, of_matrices) else getattr(s, of_matrices)
    choices |= regularization_choices(one, rate, network_is_given)
    if not has_muon:
        choices = {name: c for name, c in choices.items() if not name.startswith("muon_")}
    choices |= evaluation_choices(one, s.minutes, text.n_val_tokens, n_ranks)

    values = {}
    for name, choice in choices.items():
        if not is_free(s, name) and name != "max_steps":
            lines.append(f"{name} {getattr(s, name)}: as given")
            continue
        values[name] = choice.value
        if choice.reason:
            lines.append(f"{name} {choice.value}: {choice.reason}")
    return Dialled(s.but(**values), one.config, lines, one.timing)
