"""What the commands are made of: a folder for each stage of the work.

text -> data, optim, run -> corpus, use -> the commands at the top. Imports run only in this direction."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository
