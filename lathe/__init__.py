"""What the commands are made of: a folder for each stage of the work.

Imports run in this direction only: text -> data, optim, run -> corpus, use -> the commands.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository
