"""A folder that one process at a time may write to."""

import os
import time
from contextlib import contextmanager


@contextmanager
def lock_folder(setting, folder):
    """Hold the folder that a setting names, inside the context or until the process ends, however it ends.

    OSError, naming the holder, if another process has it, or if it cannot be written. The file `lock` stays: if each
    holder removed its own, a second and a third could hold two different ones.
    """
    import socket

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+", encoding="utf-8")
    except OSError as error:
        text = f"{setting} {folder} cannot be written ({error.strerror}): choose another --{setting}"
        raise OSError(text) from None
    with file:
        try:
            if os.name == "nt":
                import msvcrt

                file.seek(1 << 30)  # a byte far behind the text, so that others can still read who holds it
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            text = f"{setting} {folder} is in use by {holder}: wait, stop it, or choose another --{setting}"
            raise OSError(text) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield folder
