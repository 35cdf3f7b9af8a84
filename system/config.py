"""Settings in a file: TOML, whose keys are the names of the options.

Only modules of Python itself are imported before a file is read, so that help comes at once.
"""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from settings import Settings, UserError, flag, nearest, one_or_several
from system.files import read_bytes, write_atomically

VERSION = "1.0"  # see CHANGELOG.md
FILE = "settings.toml"  # in the folder of the checkpoints
RECORD = "record"  # the table of what is known of a run and is no option


def describe_code() -> str:
    """What `git describe` says of this program; empty if its folder is no repository."""
    root = Path(__file__).resolve().parent.parent
    words = ["git", "-C", str(root), f"--git-dir={root / '.git'}"]
    words += ["describe", "--always", "--dirty", "--tags"]
    try:
        return subprocess.check_output(words, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def read_config(path: str) -> dict[str, Any]:
    """The settings of a file, by the names of their fields.

    Raises:
        OSError: it cannot be read.
        UserError: it is not TOML, or holds an unknown option or a bad value.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = tomllib.loads(read_bytes(path).decode())
    except ValueError as error:
        line = "expected lines such as `batch-size = 8`"
        raise UserError(f"{path}: is not TOML: {error}; {line}") from None
    content.pop(RECORD, None)
    names = {flag(f.name)[2:]: f.name for f in fields(Settings) if f.name != "config"}
    for key in content.keys() - names.keys():
        raise UserError(f"{path}: unknown option {key}{nearest(key, list(names))}")
    values = {names[key]: one_or_several(value) for key, value in content.items()}
    if type(values.get("tile")) is int:  # of which a command line also takes a word
        values["tile"] = str(values["tile"])
    try:
        Settings(**{"action": "train"} | values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return values


def write_config(path: Path, settings: Settings, record: dict[str, str]) -> None:
    """Write all settings of an action, and a record of its run, for read_config.

    Raises UserError.
    """
    options = {
        flag(f.name)[2:]: getattr(settings, f.name)
        for f in fields(Settings)
        if settings.action in f.metadata["serves"] and f.name != "config"
    }
    lines = [f"# python main.py --config {path.name} --run NAME repeats this run as NAME.", ""]
    lines += [_format_line(key, value) for key, value in options.items()]
    lines += ["", f"[{RECORD}]", *(_format_line(key, value) for key, value in record.items())]
    write_atomically(path, "\n".join([*lines, ""]).encode())


def _format_line(key: str, value: Any) -> str:
    # JSON's text, numbers and lists are TOML's, but for one character that TOML wants escaped.
    return f"{key} = " + json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
