"""`pip install -e .`: this folder on the path of an environment, with what requirements.txt names.

lathe is a folder of scripts that are run from it; there is nothing to build, and so nothing is
needed to build it (PEP 660). `import model` or `from lathe.use.find_model import find_model` then
work anywhere.
"""

import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0"
FOLDER = f"lathe-{VERSION}.dist-info"
NOTHING_TO_BUILD = (
    "lathe is a folder of scripts, and there is nothing to install but this: pip install -e ."
)


def build_editable(
    wheel_directory: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    files = {
        "lathe.pth": f"{ROOT}\n",
        f"{FOLDER}/METADATA": metadata(),
        f"{FOLDER}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{FOLDER}/RECORD"])
    name = f"lathe-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory, name), "w") as wheel:
        for path, text in (files | {f"{FOLDER}/RECORD": record}).items():
            wheel.writestr(path, text)
    return name


def metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        "Name: lathe",
        f"Version: {VERSION}",
        "Requires-Python: >=3.11",
    ]
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            lines.append(f"Requires-Dist: {requirement}")
    return "\n".join(lines) + "\n"


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    raise SystemExit(NOTHING_TO_BUILD)


def build_wheel(
    wheel_directory: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    raise SystemExit(NOTHING_TO_BUILD)


def build_sdist(sdist_directory: str, config_settings: dict | None = None) -> str:
    raise SystemExit(NOTHING_TO_BUILD)
