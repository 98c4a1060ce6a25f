"""Whether the Hugging Face Hub answers: asked once, in seconds, before its libraries try for 45."""

import os
import sys
import threading
import urllib.error
import urllib.request
from functools import cache

PATIENCE = 2.5  # seconds


@cache
def why_unreachable() -> str:
    """Why the Hub cannot be reached; "" where it answers, whatever it says.

    Where it cannot, this process is taken offline: the Hub's libraries then look into their cache
    alone, at once. With HF_HUB_OFFLINE set, to 1 or to 0, nothing is asked.
    """
    if "HF_HUB_OFFLINE" in os.environ:
        return ""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    faults = [f"no answer from {address} within {PATIENCE:g} s"]

    def ask():
        try:
            urllib.request.urlopen(address, timeout=PATIENCE).close()
            faults.clear()
        except urllib.error.HTTPError:  # an answer
            faults.clear()
        except (OSError, ValueError) as error:
            faults[0] = f"{address} cannot be reached: {getattr(error, 'reason', error)}"

    # In a thread of its own: how long names are looked up obeys no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    fault = faults[0] if faults else ""
    if fault:
        go_offline()
    return fault


def go_offline():
    """As HF_HUB_OFFLINE=1 does, also where the libraries have been imported already."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True
