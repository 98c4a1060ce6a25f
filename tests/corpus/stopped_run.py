"""prepare/text.py, stopped by a signal:  python stopped_run.py SIGNAL STEP [OPTION ...]

Steps are the calls that change what is on the disk. Before step STEP (from 1 on) all processes of
the session get the signal, as by Ctrl-C; of SIGKILL only this one, so that its workers must see for
themselves that it is gone. Units are small, so that a small input has many.
"""

import os
import signal
import sys

from lathe import cli
from lathe.corpus import units
from lathe.corpus.duplicates import Duplicates
from lathe.corpus.journal import Journal
from lathe.data.shards import ShardWriter
from prepare import text

STEPS = [
    (Duplicates, "kept"),
    (ShardWriter, "append"),
    (ShardWriter, "sync"),
    (Journal, "begin"),
    (Journal, "append"),
    (ShardWriter, "finish"),
]


def stop_before(step: int, signal_number: int):
    n_steps = 0

    def counted(method):
        def call(*arguments):
            nonlocal n_steps
            n_steps += 1
            if n_steps == step:
                if signal_number == signal.SIGKILL:
                    os.kill(os.getpid(), signal_number)
                else:
                    os.killpg(0, signal_number)
            return method(*arguments)

        return call

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


if __name__ == "__main__":
    signal_number, step, *words = sys.argv[1:]
    units.UNIT_BYTES = 20_000
    stop_before(int(step), int(signal_number))
    cli.run(lambda: text.main(words))
