"""Checkpoints: one file saved so that it is whole or not there, and loaded without trust.

A file holds `net` (the network's tensors), `clock` (index of the last completed step) and `opt`
(the optimiser's state), as the published ones do, and beside them `format`, `settings`, `best` (the
best score so far), `data` (a fingerprint of the training list), `init` (the weights it began with),
`loss` (its terms) and, of a run with --ema, `ema` (the moving average of `net`).
Run as a program, it copies a checkpoint without its optimiser, or writes the mean of several:
    python -m engine.checkpoint FROM [FROM ...] TO
"""

import codecs
import hashlib
import io
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model import SPANet
from settings import Settings, UserError, first_few
from system.files import read_bytes, write_atomically
from system.program import report_errors, run_program

FORMAT = 1
# Under which keys programs save weights, and their moving average.
WEIGHT_KEYS = {"net": ("net", "params", "state_dict"), "ema": ("ema", "params_ema")}
# What a NumPy number is saved by: it runs no code when it is loaded.
_scalar = np.float64(0).__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}, codecs.encode,
    (_scalar, "numpy.core.multiarray.scalar"), (_scalar, "numpy._core.multiarray.scalar"),
]  # fmt: skip
HINTS = {  # how to get the checkpoints that the first commands of a user name
    "latest": "-a train makes it; -m demo takes the demo's weights, and -m published the published "
    "ones, once `make weights` has fetched them",
    "published": "`make weights` fetches it",
}


def checkpoint_path(settings: Settings) -> Path:
    """The file of checkpoint `-m`: a path as it stands, a name within the model folder."""
    name = settings.model
    is_path = any(separator in name for separator in (os.sep, os.altsep) if separator)
    return Path(name) if is_path else Path(settings.model_dir) / name


def save(path: Path, content: dict[str, Any]) -> None:
    """Save content (plain values and tensors) as a checkpoint. Raises UserError, path untouched."""
    buffer = io.BytesIO()
    torch.save({**content, "format": FORMAT}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU, keys of weights without wrappers' prefixes.

    Nothing in the file is executed. A file of the published kind holds only `net`, `clock`, `opt`;
    one of another program can hold weights alone, which are returned as `net` (and `ema`, if it
    has their moving average), without `clock`.
    What is returned has `digest` too, the SHA-256 of the file.

    Raises:
        UserError: there is no such file, or it is not a checkpoint of this program's format.
    """
    with translate_load_errors(path):
        data = read_bytes(path)  # once: a run in progress may replace the file
        file = io.BytesIO(data)
        # torch itself does not check the checksums.
        if zipfile.is_zipfile(file) and (damaged := zipfile.ZipFile(file).testzip()):
            raise UserError(f"{path}: damaged: the checksum of {damaged} in it is wrong")
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # errors are reported, and no more
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                content = torch.load(file, map_location="cpu", weights_only=True)
        if content.get("format", FORMAT) > FORMAT:
            raise UserError(f"{path}: format {content['format']} is newer than this program's")
        known = content if "net" in content else {}
        clock = {"clock": int(known["clock"])} if "clock" in known else {}
        found = {
            kind: content[key]
            for kind, keys in WEIGHT_KEYS.items()
            for key in reversed(keys)  # the first counts
            if key in content
        }
        found.setdefault("net", found.get("ema", content))
        states = {
            kind: {re.sub(r"^((module|_orig_mod)\.)+", "", key): weights[key] for key in weights}
            for kind, weights in found.items()
        }
        return {**known, **clock, **states, "digest": hashlib.sha256(data).hexdigest()}


@contextmanager
def translate_load_errors(path: Path) -> Iterator[None]:
    """Raise whatever goes wrong with a checkpoint as a UserError of one line that names its file.

    A damaged file fails in as many ways as it has bytes.
    """
    try:
        yield
    except FileNotFoundError:
        hint = f". {HINTS[path.name]}" if path.name in HINTS else ""
        try:
            names = sorted(name for name in os.listdir(path.parent) if name[0] != ".")
            listed = f"{path.parent} holds {first_few(names, 8) or 'nothing'}"
        except OSError as closed:
            listed = f"{path.parent} cannot be listed: {closed.strerror}"
        raise UserError(f"{path}: no such checkpoint; {listed}{hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, pickle.UnpicklingError):  # torch's words advise to load it unsafely
            reason = "it is cut short, or holds objects that could run code"
        raise UserError(f"{path}: not a checkpoint of this network, or damaged: {reason}") from None


def has_direction_attention(content: dict[str, Any]) -> bool:
    """Whether a checkpoint was trained with the paper's direction attention.

    A published one, which holds no settings, was trained without.
    """
    return bool((content.get("settings") or {}).get("direction_attention", False))


def load_weights(net: nn.Module, path: Path, content: dict[str, Any], ema: bool = True) -> None:
    """Load a checkpoint's weights into the network. Raises UserError.

    They must have the network's keys and shapes, and be finite in its type, which computes.

    Args:
        ema: load the moving average of the weights, if the checkpoint has one.
    """
    with translate_load_errors(path):
        net.load_state_dict(content["ema"] if ema and "ema" in content else content["net"])
        for key, tensor in net.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(f"{key} holds values that are not finite")


def average_checkpoints(paths: list[Path]) -> dict[str, Any]:
    """The weights of one checkpoint, or the mean of several; one that is named twice counts twice.

    Of a run with --ema they are the moving average.

    The mean of steps of one run, or of runs that began with the same weights, is often better than
    each of them: their errors cancel out (Wortsman et al., Model Soups, ICML 2022).

    Returns:
        The content of the last, with these weights and without the state of its run.

    Raises:
        UserError: one cannot be loaded, is not of this network, or not of the kind of the first.
    """
    states, kinds = [], set()
    for path in paths:
        content = load(path)
        kinds.add(has_direction_attention(content))
        if len(kinds) > 1:
            raise UserError(f"{path}: is unlike {paths[0]}: one has --direction-attention")
        net = SPANet(*kinds)
        load_weights(net, path, content)
        states.append(net.state_dict())
    means = {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(tensor.dtype)
        for key, tensor in states[0].items()
    }
    return {key: content[key] for key in ("clock", "settings") if key in content} | {"net": means}


def main(argv: list[str] | None = None) -> int:
    """Write the mean of checkpoints. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) < 2 or argv[0].startswith("-"):
        print("usage: python -m engine.checkpoint FROM [FROM ...] TO", file=sys.stderr)
        return 2

    def write_mean() -> None:
        *sources, target = map(Path, argv)
        if target.exists():
            raise UserError(f"{target}: is there already; expected a new file to write to")
        save(target, average_checkpoints(sources))

    return report_errors("engine.checkpoint", write_mean)


if __name__ == "__main__":
    sys.exit(run_program(main))
