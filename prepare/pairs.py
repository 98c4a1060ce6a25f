"""Prompts and completions, or chat messages, to a dataset for fine-tuning: only the completions are
scored.

    python prepare/pairs.py --input pairs.jsonl --out data/pairs --tokenizer gpt2
    python prepare/pairs.py --input chats.jsonl --out data/chats --tokenizer out/base

Rows, in JSON lines, JSON, CSV or parquet, are {"prompt": TEXT, "completion": TEXT} or
{"messages": [{"role": "user", "content": TEXT}, ...]}. To fine-tune, take the tokenizer of the
model that you begin with: a run's folder, say. After a completion comes end-of-text, which is
scored, so that the model learns to stop. Messages need --template=turns (User: ..., Assistant: and
the answer on the next line), instruction, or chat (the answer on the same line), which sample.py
then speaks; a row of them becomes one document per answer, with all that was said before as its
prompt. The rest is as in prepare/text.py.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lathe import cli
from lathe.corpus import options
from lathe.corpus.rules import Rules
from prepare import text


@dataclass
class Options(options.Options):
    prompt_field: str = "prompt"  # field or column with what is given
    completion_field: str = "completion"  # field or column with what the model learns to answer
    field: str = "messages"  # field with chat messages; rows with it need no prompt and completion
    template: Literal["plain", "turns", "instruction", "chat"] = "plain"  # plain: texts as they are

    def rules(self, needs_hashes: bool) -> Rules:
        return replace(
            super().rules(needs_hashes),
            template=self.template,
            prompt_field=self.prompt_field,
            completion_field=self.completion_field,
        )


def main(argv: list[str] | None = None):
    text.main(argv, "pairs", __doc__, Options)


if __name__ == "__main__":
    cli.run(main)
