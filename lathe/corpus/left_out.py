"""What an input has that is not read: counted by the reason, so that none goes without a word."""

from collections import Counter
from dataclasses import dataclass, field

from lathe.corpus.source import compression_and_suffix
from lathe.terminal import printable

SHOWN_REASONS = 8

# The reasons. A file of a kind that is not read has its suffix, such as .png, in place of one.
NO_SUFFIX = "file without a suffix"
HIDDEN_FILE = "hidden file"
HIDDEN_FOLDER = "hidden folder"
COMPILED_FOLDER = "folder of compiled code"
OUTPUT_FOLDER = "folder that is written to"
RUN_FOLDER = "folder of a run"
DATASET_FILE = "file of a prepared dataset"
FORBIDDEN_FILE = "file without permission"
FORBIDDEN_FOLDER = "folder without permission"
UNREADABLE = "name that cannot be opened"
BROKEN_LINK = "broken link"
PIPE = "pipe"
SOCKET = "socket"
DEVICE = "device"
SAME_FILE = "other name of a file that is read"
SAME_FOLDER = "other name of a folder that is read"
FOLDER_ABOVE = "link to a folder above the input"
VALIDATION_FILE = "file of --val_input, which is for validation alone"
SEVERAL = {
    NO_SUFFIX: "files without a suffix",
    HIDDEN_FILE: "hidden files",
    HIDDEN_FOLDER: "hidden folders",
    COMPILED_FOLDER: "folders of compiled code",
    OUTPUT_FOLDER: "folders that are written to",
    RUN_FOLDER: "folders of runs",
    DATASET_FILE: "files of prepared datasets",
    FORBIDDEN_FILE: "files without permission",
    FORBIDDEN_FOLDER: "folders without permission",
    UNREADABLE: "names that cannot be opened",
    BROKEN_LINK: "broken links",
    PIPE: "pipes",
    SOCKET: "sockets",
    DEVICE: "devices",
    SAME_FILE: "other names of files that are read",
    SAME_FOLDER: "other names of folders that are read",
    FOLDER_ABOVE: "links to folders above the input",
    VALIDATION_FILE: "files of --val_input, which are for validation alone",
}


@dataclass
class LeftOut:
    counts: Counter[str] = field(default_factory=Counter)  # by the reason
    first: dict[str, str] = field(default_factory=dict)  # the first path of each

    def add(self, reason: str, path: str):
        self.counts[reason] += 1
        self.first.setdefault(reason, path)

    def add_kind(self, path: str):
        """A file that is neither text nor data by its name."""
        self.add(kind_of(path) or NO_SUFFIX, path)

    def describe(self) -> str:
        """All of it in words, the most frequent first; "" for nothing."""
        parts = []
        shown = self.counts.most_common(SHOWN_REASONS)
        for reason, count in shown:
            if reason not in SEVERAL:
                parts.append(f"{count:,} {reason}")
                continue
            words = reason if count == 1 else SEVERAL[reason]
            example = printable(self.first[reason])
            if count > 1:
                example += ", ..."
            parts.append(f"{count:,} {words} ({example})")
        n_others = self.counts.total() - sum(count for _, count in shown)
        if n_others:
            parts.append(f"{n_others:,} of other kinds")
        return ", ".join(parts)


def kind_of(path: str) -> str:
    """What the end of a name says: .jsonl.zst; "" if it has none."""
    compression, suffix = compression_and_suffix(path)
    return printable(suffix + compression)
