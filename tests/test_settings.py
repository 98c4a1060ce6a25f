"""Promises of lathe/settings.py: one place for each setting, values that fit, presets that repeat."""

from dataclasses import FrozenInstanceError, fields
from typing import get_type_hints

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

import evaluate
import huggingface
import sample
from lathe import ROOT
from lathe.aliases import ALIASES, ELSEWHERE
from lathe.cli import parse, to_toml
from lathe.corpus import build
from lathe.fields import PathName, read_comments
from lathe.settings import Settings
from model import GPTConfig
from pages.options import ModelOptions, RunOptions
from prepare import examples, pairs, verify

NAMES = [field.name for field in fields(Settings)]
PRESETS = sorted((ROOT / "config").glob("*.toml"))


def train(*argv: str) -> Settings:
    return parse(Settings, list(argv), prog="train.py", presets=True)


# -----------------------------------------------------------------------------
# Where settings come from


def test_settings_of_the_network_are_gptconfigs():
    """All but what the data decides: by name, in the same order, with the same types and defaults."""
    decided_by_data = ("vocab_size", "document_token")
    network = [field for field in fields(GPTConfig) if field.name not in decided_by_data]
    first = NAMES.index(network[0].name)
    ours = fields(Settings)[first : first + len(network)]
    for setting, field in zip(ours, network, strict=True):
        assert (setting.name, setting.type) == (field.name, field.type)
        assert setting.default == field.default and type(setting.default) is type(field.default)
        assert read_comments(Settings)[setting.name] == read_comments(GPTConfig)[field.name]


def test_every_setting_has_one_line_of_help():
    for name, comment in read_comments(Settings).items():
        assert comment.help and comment.section, name
        assert len(comment.help) <= 100, name


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_by_path_and_by_name_from_anywhere(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = train(str(path))
    assert settings == train(path.stem) == train(path.name) == train(f"config/{path.name}")
    assert settings == parse(Settings, [], presets=True, default_preset=lambda given: path.stem)
    assert settings != Settings()


# -----------------------------------------------------------------------------
# Which values they may have


@pytest.mark.parametrize(
    "name, value, rule",
    [
        ("n_layer", 0, "at least 1"),
        ("eval_interval", 0, "at least 1"),
        ("max_steps", -1, "a number from 0 to 2^63"),
        ("max_steps", 2**63, "a number from 0 to 2^63"),
        ("learning_rate", float("nan"), "a number from 0 to 2^63"),
        ("learning_rate", float("inf"), "a number from 0 to 2^63"),
        ("learning_rate", -1e-3, "a number from 0 to 2^63"),
        ("weight_decay", -2.0, "a number from 0 to 2^63"),
        ("dropout", 1.0, "at least 0 and below 1"),
        ("beta2", 1.0, "at least 0 and below 1"),
        ("decay_fraction", 1.5, "between 0 and 1"),
        ("gpus", "8xH100", "for plans alone"),
        ("out_dir", " ", "empty"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value, rule):
    with pytest.raises(ValueError, match=f"^{name} is ") as error:
        Settings(**{name: value})
    assert rule in str(error.value)


def test_the_share_of_a_gpus_peak_is_a_share():
    with pytest.raises(ValueError, match="mfu is 0.0; it must be above 0 and at most 1"):
        Settings(dry_run=True, mfu=0.0)


def test_zero_or_minus_one_leave_a_value_to_a_rule():
    Settings(
        batch_size=0, max_steps=0, learning_rate=0.0, muon_learning_rate=0.0, weight_decay=-1.0
    )


def test_settings_are_not_rewritten():
    with pytest.raises(FrozenInstanceError):
        Settings().n_layer = 3


# -----------------------------------------------------------------------------
# A run's settings.toml


def texts() -> st.SearchStrategy:
    return st.text(st.characters(), max_size=20)  # half surrogates, too


def names() -> st.SearchStrategy:
    """Of files: any bytes, as Python has them; the home folder is not named any more."""
    return texts().map(lambda text: text.replace("~", "")) | st.binary(max_size=20).map(
        lambda raw: raw.replace(b"~", b"").decode("utf-8", "surrogateescape")
    )


@hypothesis.settings(max_examples=40)
@given(st.data())
def test_to_toml_is_a_preset_that_repeats_the_settings(tmp_path_factory, data):
    changed = {}
    for name, kind in get_type_hints(Settings).items():
        if name == "out_dir":  # which may not be empty
            changed[name] = "x" + data.draw(names())
        elif kind is PathName:
            changed[name] = data.draw(names())
        elif kind is str and name != "gpus":  # which is for dry runs alone
            changed[name] = data.draw(texts())
        elif kind is bool:
            changed[name] = data.draw(st.booleans())
        elif name in ("learning_rate", "rope_theta"):
            changed[name] = data.draw(st.floats(0, 1e18))
        elif name == "max_steps":
            changed[name] = data.draw(st.integers(1, 2**62))
    settings = Settings(**changed)
    path = tmp_path_factory.mktemp("run") / "settings.toml"
    path.write_text(to_toml(settings), encoding="utf-8", newline="\n")
    assert train(str(path)) == settings


def test_to_toml_has_sections_and_help():
    text = to_toml(Settings())
    assert "\n\n# --- model\nblock_size = 1024  # context length, in tokens\n" in text


# -----------------------------------------------------------------------------
# Options of other commands, and others' names


OPTIONS = {
    "prepare/text.py": build.Options,
    "prepare/pairs.py": pairs.Options,
    "prepare/examples.py": examples.Options,
    "prepare/verify.py": verify.Options,
    "sample.py": sample.Options,
    "evaluate.py": evaluate.Options,
    "huggingface.py": huggingface.Options,
    "visualize.py run": RunOptions,
    "visualize.py model": ModelOptions,
}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_of_a_command_has_help(command):
    for name, comment in read_comments(OPTIONS[command]).items():
        assert comment.help, name


def test_every_alias_leads_to_a_setting_or_a_command_that_exists():
    known = {*NAMES, *OPTIONS}
    for options in OPTIONS.values():
        known |= {field.name for field in fields(options)}
    for alias, ours in ALIASES.items():
        names = [name.partition("=")[0] for either in ours for name in either.split(" | ")]
        assert known.issuperset(names), alias
        assert alias not in NAMES or alias == "init_from"  # which only train.py has


@pytest.mark.parametrize("command", ELSEWHERE)
def test_settings_that_are_said_to_be_another_commands_are_there(command):
    assert {field.name for field in fields(OPTIONS[command])}.issuperset(ELSEWHERE[command])


def test_to_go_on_and_to_start_over_contradict_each_other():
    with pytest.raises(ValueError, match="add --init_from=scratch to start over"):
        Settings(init_from="resume", overwrite=True)
    assert Settings(init_from="auto", overwrite=True).init_from == "scratch"


def test_a_number_of_samples_that_is_none_is_refused():
    with pytest.raises(ValueError, match="num_samples is 0; it must be at least 1"):
        Settings(num_samples=0)
