"""What lathe/run/background.py promises: one write at a time, and no failure that stays unknown."""

import threading
from concurrent.futures import wait

import pytest

from lathe.run.background import BackgroundWriter


def test_writing_goes_on_in_the_background_one_at_a_time():
    order, go_on = [], threading.Event()

    def first():
        assert go_on.wait(120)
        order.append("first")

    with BackgroundWriter() as writer:
        writer.start(first)
        assert order == []
        threading.Timer(0.1, go_on.set).start()
        writer.start(lambda: order.append("second"))  # waits for the first
        assert order[0] == "first"
    assert order == ["first", "second"] and not writer.failed


def test_a_failure_in_the_background_is_known_and_raised_once():
    def write():
        raise OSError("no space")

    writer = BackgroundWriter()
    writer.start(write)
    wait([writer.last])
    assert writer.failed
    with pytest.raises(OSError, match="no space"):
        writer.wait()
    writer.wait()
    with pytest.raises(OSError, match="no space"), BackgroundWriter() as writer:
        writer.start(write)


def test_a_write_that_waits_for_others_is_told_when_this_process_leaves():
    heard = []
    with pytest.raises(ValueError, match="the loss is none"), BackgroundWriter() as writer:
        writer.start(lambda: heard.append(writer.leaving.wait(120)))
        raise ValueError("the loss is none")
    assert heard == [True]
