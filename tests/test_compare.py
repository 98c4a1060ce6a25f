"""Is B better than A: the interval that may be looked at after each pair, and the command."""

import json
import math
import random
import subprocess
from contextlib import ExitStack
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ROOT, SMALL, command, finished, make_dataset

from bench import compare
from bench.arms import Arm, Outcome, completed, open_revision, read_words, run_arm, with_dashes
from bench.compare import OPTION_NAMES, Options, Runs
from bench.sequential import EXPECTED_EFFECT, interval, largest_t
from lathe.settings import Settings

# -----------------------------------------------------------------------------
# The interval


def likelihood_ratio(t: float, n: int) -> float:
    """Of the t-statistic of n differences, with an effect to without: the formula in one piece."""
    v = n - 1
    r = 1 + n * EXPECTED_EFFECT
    return r**-0.5 * ((1 + t**2 / v) / (1 + t**2 / (v * r))) ** (n / 2)


@given(n=st.integers(2, 200), error=st.sampled_from((0.001, 0.01, 0.05, 0.3)))
def test_the_interval_ends_where_the_likelihood_ratio_has_reached_one_over_the_error(n, error):
    t = largest_t(n, error)
    if math.isinf(t):
        assert likelihood_ratio(1e9, n) < 1 / error
    else:
        assert likelihood_ratio(t, n) == pytest.approx(1 / error)


def test_the_true_mean_is_ever_missed_in_fewer_sequences_than_the_error_says():
    rng = random.Random(0)
    missed = 0
    for _ in range(300):
        differences = []
        for _ in range(20):
            differences.append(rng.gauss(0.003, 0.01))
            between = interval(differences, 0.1)
            if not between.low <= 0.003 <= between.high:
                missed += 1
                break
    assert missed <= 30
    assert missed >= 10, "an interval that is never wrong is wider than it need be"


def test_what_is_large_against_its_noise_is_seen_after_few_pairs():
    rng = random.Random(1)
    differences = [rng.gauss(-5, 1) for _ in range(7)]
    signs = [interval(differences[:n], 0.01).sign for n in range(1, 8)]
    assert signs[0] == 0 and signs[-1] == -1
    assert not interval(differences, 0.01).within(3.0)
    assert interval(differences, 0.01).within(20.0)


def test_differences_that_are_all_zero_are_within_any_margin():
    assert not interval([0.0] * 2, 0.01).within(1.0), "two may be chance"
    assert interval([0.0] * 4, 0.01).within(1e-9)


# -----------------------------------------------------------------------------
# The verdict, over runs whose losses are drawn and not trained


def drawn_arm(name: str, flops: float = 100.0, **settings) -> Arm:
    every = {"seed": 1337, "dataset": "data/x", **settings}
    return Arm(name, name, ROOT, "", [], every, 300, 1024, flops, vocab_size=66)


def verdict(means: dict[str, float], a: Arm, b: Arm, diverges: str = "", **options):
    """What compare says of arms whose losses have these means and a seed's noise in common."""
    trained = []

    def train(arm: Arm, steps: int, seed: int) -> Outcome:
        trained.append((arm.name, steps, seed))
        shared = random.Random(seed).gauss(0, 0.01)
        own = random.Random(f"{seed}{arm.name}").gauss(0, 0.002)
        loss = None if arm.name == diverges else means[arm.name] + shared + own
        return Outcome(seed, steps, loss, loss, seconds=2 + steps / 100, train_seconds=steps / 100)

    options = Options(["a", "b"], **options)
    return compare.compare(Runs(a, [b], options, train), b, options), trained


@pytest.mark.parametrize(
    "loss, said, why",
    [
        (1.89, "better", "clear"),
        (1.91, "worse", "clear"),
        (1.90, "too close", "seeds spent"),
    ],
)
def test_a_difference_below_the_noise_of_seeds_is_seen_by_pairs(loss, said, why):
    v, trained = verdict({"A": 1.9, "B": loss}, drawn_arm("A"), drawn_arm("B"), seeds=10, margin=0)
    assert (v.verdict, v.why) == (said, why)
    assert v.a.seed_sd > 0.005 > v.difference.error
    assert v.repeat == 0.0
    assert len(set(trained)) == 2 * v.difference.n == len(trained) - 1, "A's first seed twice"
    about = json.loads(json.dumps(v.as_json()))
    assert about["verdict"] == said and about["pairs"] == v.difference.n == len(
        about["A"]["losses"]
    )
    assert about["low"] <= about["difference"] <= about["high"]
    assert v.sentence().startswith("B")


def test_a_difference_that_does_not_matter_is_too_close_though_it_is_sure():
    v, _ = verdict({"A": 1.9, "B": 1.901}, drawn_arm("A"), drawn_arm("B"), margin=1.0)
    assert (v.verdict, v.why) == ("too close", "within margin")


def test_a_run_that_diverges_has_learned_nothing():
    v, _ = verdict({"A": 1.9, "B": 1.8}, drawn_arm("A"), drawn_arm("B"), diverges="B")
    assert v.verdict == "worse"
    assert v.b.loss == pytest.approx(math.log(66)) and v.b.diverged == v.difference.n
    with pytest.raises(ValueError, match="B diverged, and losses of two datasets"):
        verdict({"A": 1.9}, drawn_arm("A"), drawn_arm("B", dataset="data/y"), diverges="B")


def test_arms_get_equal_steps_flops_or_minutes():
    a = drawn_arm("A")
    b = drawn_arm("B", flops=150.0)
    means = {"A": 1.9, "B": 1.8}
    for equal, steps_of_b in (("steps", 300), ("flops", 200)):
        v, _ = verdict(means, a, b, equal=equal)
        assert set(v.a.steps) == {300} and set(v.b.steps) == {steps_of_b}
    v, trained = verdict(means, a, b, equal="minutes", run_minutes=0.5)
    assert trained[:2] == [("A", 20, 1337), ("B", 20, 1337)], "what a step takes"
    assert v.a.seconds == pytest.approx(30, rel=0.02)
    with pytest.raises(ValueError, match="run_minutes is 0.01: A takes"):
        verdict(means, a, b, equal="minutes", run_minutes=0.01)
    with pytest.raises(ValueError, match="B .* diverges within 20 steps"):
        verdict(means, a, b, equal="minutes", diverges="B")


def test_an_arm_that_goes_by_minutes_has_its_own_clock_and_no_steps_to_be_equal_to():
    by_minutes = drawn_arm("A", minutes=2.0)
    means = {"A": 1.9, "B": 1.8}
    v, trained = verdict(means, by_minutes, drawn_arm("B"), equal="minutes", run_minutes=0.5)
    assert {steps for name, steps, _ in trained if name == "A"} == {0}
    assert min(v.b.steps) > 0
    with pytest.raises(ValueError, match="goes by minutes, .* give it max_steps=N"):
        verdict(means, by_minutes, drawn_arm("B"))
    by_steps = drawn_arm("A", minutes=2.0)
    by_steps.command = ["quickstart", "--max_steps=300"]
    assert verdict(means, by_steps, drawn_arm("B"))[0].verdict == "better"


def test_runs_side_by_side_make_the_same_pairs():
    means = {"A": 1.9, "B": 1.9}
    alone, _ = verdict(means, drawn_arm("A"), drawn_arm("B"), seeds=8)
    together, _ = verdict(means, drawn_arm("A"), drawn_arm("B"), seeds=8, at_once=6)
    assert together.a.losses == alone.a.losses and together.b.losses == alone.b.losses
    assert together.difference == alone.difference


def test_minutes_end_a_comparison():
    v, trained = verdict({"A": 1.9, "B": 1.9}, drawn_arm("A"), drawn_arm("B"), minutes=1e-9)
    assert (v.verdict, v.why, v.difference.n) == ("too close", "minutes spent", 1)


# -----------------------------------------------------------------------------
# Arms


def test_an_arm_is_a_preset_settings_and_a_revision():
    a = read_words("speedrun --n_layer=3 'dataset=/a b' @HEAD~1")
    assert a.presets == ["speedrun"] and a.revision == "HEAD~1"
    assert a.settings == ["--n_layer=3", "--dataset=/a b"]
    b = completed(read_words("muon_momentum=0.9"), a)
    assert (b.presets, b.revision) == (["speedrun"], "")
    assert b.settings == [*a.settings, "--muon_momentum=0.9"]
    assert completed(read_words("quickstart"), a).settings == []


def test_settings_on_the_command_line_are_arms_and_options_are_not():
    words = ["speedrun", "--n_layer=3", "--n_head=2 --seed=1", "--minutes=2", "--dataset=data/x"]
    bare = ["speedrun", "n_layer=3", "n_head=2 --seed=1", "--minutes=2", "--dataset=data/x"]
    assert with_dashes(words, OPTION_NAMES) == bare


@pytest.mark.parametrize(
    "words, said",
    [
        (["speedrun"], "name two arms"),
        (["speedrun", "speedrun"], "are the same run"),
        (["speedrun", "@a @b"], "names 2 revisions"),
        (["speedrun", "out_dir=x"], "sets out_dir"),
        (["speedrun", "n_layer='3"], "No closing quotation"),
        (["speedrun", "n_layer=3", "--common=quickstart"], "settings alone"),
        (["speedrun", "n_layer=3", "--minutes=0"], "minutes is 0"),
        (["speedrun", "n_layer=3", "--error=1"], "error is 1"),
    ],
)
def test_arms_that_cannot_be_are_refused_at_once(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(words)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "words, said",
    [
        (["speeedrun", "n_layer=3"], "A (speeedrun): no preset 'speeedrun'"),
        (["speedrun", "n_layer=3", "--dataset=nowhere"], "A (speedrun): dataset nowhere does not"),
        (["speedrun @no-such-branch", "@"], "A (speedrun @no-such-branch): git knows no revision"),
    ],
)
def test_what_an_arms_code_refuses_is_said_in_a_line_that_names_the_arm(words, said):
    with pytest.raises(ValueError) as refused:
        compare.main(words)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(not git("rev-parse", "HEAD"), reason="this is no git repository")
def test_a_revision_lies_in_a_folder_of_its_own_until_the_end():
    before = git("worktree", "list")
    with ExitStack() as contexts:
        folder, commit = open_revision("HEAD", contexts)
        assert git("rev-parse", "HEAD").startswith(commit) and len(commit) >= 12
        assert folder != ROOT
        shown = subprocess.run(["git", "show", "HEAD:model.py"], cwd=ROOT, capture_output=True)
        assert (folder / "model.py").read_bytes() == shown.stdout
    assert not folder.exists() and git("worktree", "list") == before


# -----------------------------------------------------------------------------
# The command


def tiny(dataset: str) -> list[str]:
    settings = {**SMALL, "n_layer": 1, "dataset": dataset}
    return [f"--{name}={value}" for name, value in settings.items() if name != "eval_interval"]


@pytest.mark.slow
def test_compare_trains_both_and_ends_in_a_line_of_json(tmp_path):
    dataset = make_dataset(tmp_path / "texts")
    common = " ".join(tiny(dataset))
    script = ROOT / "bench" / "compare.py"
    slow = "optimizer=adamw learning_rate=0.00001"
    words = ["quickstart", slow, f"--common={common}", "--seeds=1"]
    code, out, err = finished(command(script, *words, folder=tmp_path))
    assert code == 0, err
    about = json.loads(out.splitlines()[-1])
    assert (about["verdict"], about["why"], about["pairs"]) == ("too close", "seeds spent", 1)
    assert about["difference"] > 0.1 and about["low"] is None, "one pair says nothing for sure"
    assert about["B"]["losses"][0] - about["A"]["losses"][0] == pytest.approx(about["difference"])
    assert about["B"]["steps"] == [20] and about["B"]["arm"] == slow
    assert [path.name for path in tmp_path.iterdir()] == ["texts"], "runs leave nothing"


@pytest.mark.slow
def test_a_run_that_diverges_is_an_outcome_and_one_that_fails_an_error(tmp_path):
    dataset = make_dataset(tmp_path / "texts")
    settings = asdict(Settings(dataset=dataset))
    wild = ["--learning_rate=1e18", "--muon_learning_rate=1e18", "--max_skipped_steps=3"]
    arm = Arm("A", "wild", ROOT, "", [*tiny(dataset), *wild], settings, 20, 128, 1.0, 256)
    outcome = run_arm(arm, 20, 1, [], {"OMP_NUM_THREADS": "1"})
    assert outcome.loss is None and outcome.gave_up
    arm.command = [*tiny(dataset), "--n_embd=33"]
    with pytest.raises(ValueError, match=r"^A \(wild\): n_embd is 33"):
        run_arm(arm, 20, 1, [], {"OMP_NUM_THREADS": "1"})


@pytest.mark.exhaustive
@pytest.mark.slow
def test_compare_finds_the_same_run_equal_and_a_bad_one_worse(tmp_path):
    dataset = make_dataset(tmp_path / "texts")
    script = ROOT / "bench" / "compare.py"
    arms = ["log_interval=3", "learning_rate=0.00001 optimizer=adamw"]
    words = ["quickstart", *arms, f"--common={' '.join(tiny(dataset))}", "--seeds=5"]
    code, out, err = finished(command(script, *words, folder=tmp_path), timeout=300)
    assert code == 0, err
    same, worse = map(json.loads, out.splitlines()[-2:])
    assert (same["verdict"], same["why"], same["difference"]) == ("too close", "within margin", 0)
    assert worse["verdict"] == "worse" and worse["noise"]["repeat"] == 0
    assert worse["A"]["losses"][:3] == same["A"]["losses"], "A's runs are shared"
