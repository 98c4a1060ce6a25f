"""Without a network, whoever asks the Hub for something hears so in seconds, from every command."""

import os
import socket
import sys

import pytest
from tiny_run import command, finished

from lathe import hub


@pytest.fixture
def asked(monkeypatch):
    """As in a new process, whose libraries of the Hub are the real ones."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            module = sys.modules[name]
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", module.HF_HUB_OFFLINE)
    hub.why_unreachable.cache_clear()
    yield
    hub.why_unreachable.cache_clear()
    os.environ.pop("HF_HUB_OFFLINE", None)


def test_what_refuses_and_what_never_answers_are_both_found(asked, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert address in hub.why_unreachable()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    del os.environ["HF_HUB_OFFLINE"]
    hub.why_unreachable.cache_clear()
    assert "cannot be reached" in hub.why_unreachable(), "the port is closed by now"


def test_whoever_has_decided_is_not_asked(asked, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    for decided in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", decided)
        hub.why_unreachable.cache_clear()
        assert hub.why_unreachable() == ""
        assert os.environ["HF_HUB_OFFLINE"] == decided


def test_a_model_that_cannot_be_fetched_is_said_to_be_unreachable_and_what_to_do(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # as another test may have found it out
    env = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    code, _, err = finished(command("evaluate.py", "--model=hf:a/b", "--tasks", "lambada", env=env))
    assert code == 1
    assert "http://127.0.0.1:1 cannot be reached" in err.splitlines()[-1], err
    assert "Retrying" not in err and "Traceback" not in err
