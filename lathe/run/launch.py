"""When the command was started: before Python began, and before torchrun had started its ranks.

Imports nothing that is slow, since it is asked first.
"""

import os
import time


def seconds_since_launch() -> float:
    """Since this process was started, or the torchrun that has; 0 where the system does not say."""
    ages = [age_of(os.getpid())]
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":  # later ranks are torchrun's own doing
        ages.append(age_of(os.getppid()))
    return max(ages)


def age_of(process: int) -> float:
    """Seconds since a process began; 0 where that is not known: on other systems than Linux."""
    try:
        with open(f"/proc/{process}/stat") as file:
            # The name, in brackets, may have spaces; what follows are fields 3, 4, ...
            fields = file.read().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, since the machine began
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
