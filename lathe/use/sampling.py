"""How the next token is chosen: the settings, on which filters.py acts.

A filter more is a field here, with the values that it may have, and its lines in filters.py.
"""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. ValueError, naming the setting, for values out of range."""

    # --- choice
    temperature: float = 0.8  # below 1 safer, above 1 wilder; 0 = always the likeliest token
    top_k: int = 0  # choose among this many likeliest tokens; 0 = all
    # choose among the likeliest tokens that together have this probability; 1 = all
    top_p: float = 1.0
    # leave out tokens less likely than this share of the likeliest one; 0 = none
    min_p: float = 0.0
    # divides the scores of tokens that occurred, in the prompt too; 1 = off
    repetition_penalty: float = 1.0
    # lowers a generated token's score by this for each time it occurred
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0  # lowers a generated token's score by this once it occurred
    seed: int = 1337  # of the random choices
    # jsonl: log-probabilities, by the model alone, of each token and of this many likeliest ones
    logprobs: int = 0

    def __post_init__(self):
        allowed = {
            "temperature": (0 <= self.temperature < inf, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            "min_p": (0 <= self.min_p <= 1, "at least 0 (off) and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < inf, "above 0 (1 = off)"),
            "frequency_penalty": (abs(self.frequency_penalty) < inf, "a finite number (0 = off)"),
            "presence_penalty": (abs(self.presence_penalty) < inf, "a finite number (0 = off)"),
            "logprobs": (self.logprobs >= 0, "0 (off) or more"),
        }
        for name, (right, rule) in allowed.items():
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {rule}")

    @property
    def penalizes(self) -> bool:
        """Whether a choice depends on the tokens that occurred."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties != (1, 0, 0)
