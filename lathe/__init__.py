"""What the commands are made of: a folder for each stage of the work.

Imports run in this direction only: text -> data, optim, run -> corpus, use -> the commands.
"""

import os
from pathlib import Path

# How often a thread of torch's looks whether the others are done, before it sleeps: 0.1 ms. libgomp
# reads it as torch is imported. By its own 4 ms, two threads beside two busy processes hold each
# other up, and training takes 1.3 to 2 times as long (bench/LOG.md, "Threads that wait").
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

ROOT = Path(__file__).resolve().parent.parent  # of the repository
