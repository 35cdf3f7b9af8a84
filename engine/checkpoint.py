"""Checkpoints: one file saved so that it is whole or not there, and loaded without trust.

A file holds `net` (the network's tensors), `clock` (index of the last completed step) and `opt`
(the optimiser's state), as the published ones do, and beside them `format`, `settings`, `rng`,
`best` (the best score so far), `data` (a fingerprint of the training list) and `run` (its name).
Run as a program, it copies a checkpoint without its optimiser: python -m engine.checkpoint FROM TO
"""

import io
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from settings import UserError
from system.files import write_atomically

FORMAT = 1
USUAL = {  # names that a first command has, and how to come by such a file
    "latest": "-a train makes it; -m demo takes the demo's weights, and -m published the published "
    "ones, once `make weights` has fetched them",
    "published": "`make weights` fetches it",
}


def save(path: Path, content: dict[str, Any]) -> None:
    """Save content (plain values and tensors) as a checkpoint. Raises UserError, path untouched."""
    buffer = io.BytesIO()
    torch.save({**content, "format": FORMAT}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU, keys of `net` without `module.`.

    Nothing in the file is executed. Files of the published kind load too: `net` and `clock` alone
    are sure to be there.

    Raises:
        UserError: there is no such file, it is cut short, holds objects that would have to be
            executed, or is not a checkpoint of SPANet.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file is told below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint{_neighbours(path.parent)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"{path}: refused: it holds objects other than tensors and plain values, "
                "which could run code when loaded"
            ) from None
        raise UserError(f"{path}: not a checkpoint, or cut short") from None
    except Exception:  # a damaged file fails in as many ways as there are bytes
        raise UserError(f"{path}: not a checkpoint, or cut short") from None
    return _checked(path, content)


def require(path: Path) -> None:
    """Raise UserError where there is no such file, with what to do about the usual ones."""
    if path.name in USUAL and not path.exists():
        told = f"{path}: no such checkpoint{_neighbours(path.parent)}"
        raise UserError(f"{told}. {USUAL[path.name]}")


def _neighbours(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return f" (nor a folder {folder})"
    return f"; {folder} holds {', '.join(names[:8])}" if names else f"; {folder} is empty"


def _checked(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("net"), dict):
        raise UserError(f"{path}: not a checkpoint of SPANet: expected a dictionary with 'net'")
    if not all(_is_plain(value) for value in content["net"].values()):
        raise UserError(f"{path}: not a checkpoint of SPANet: 'net' holds more than plain tensors")
    clock = content.get("clock")
    if not isinstance(clock, int) or clock < -1:
        raise UserError(f"{path}: 'clock' is {clock!r}; expected the index of a step")
    version = content.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(f"{path}: format {version!r} is newer than this program's, {FORMAT}")
    net = {str(key).removeprefix("module."): value for key, value in content["net"].items()}
    return {**content, "net": net}


def _is_plain(value: Any) -> bool:
    """Whether value is a dense tensor of real numbers in memory."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
    )


def direction_attention(content: dict[str, Any]) -> bool:
    """Whether a checkpoint was trained with the paper's direction attention.

    A published one, which holds no settings, was trained without.
    """
    settings = content.get("settings")
    return bool(settings.get("direction_attention")) if isinstance(settings, dict) else False


def check_tensors(
    path: Path, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    """Raise UserError unless found has the keys and shapes of expected, with finite values."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    if missing or extra:
        parts = [_listed("lacks", missing), _listed("has unknown", extra)]
        raise UserError(f"{path}: not of this network: {'; '.join(part for part in parts if part)}")
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            raise UserError(
                f"{path}: {key} is {tuple(found[key].shape)}; expected {tuple(tensor.shape)}"
            )
        if not found[key].isfinite().all():
            raise UserError(f"{path}: {key} holds values that are not finite")


def _listed(word: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{word} {', '.join(keys[:3])}{more}"


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m engine.checkpoint FROM TO", file=sys.stderr)
        return 2
    try:
        content = load(Path(arguments[0]))
        for key in ("opt", "rng", "best", "data", "run"):
            content.pop(key, None)
        content["net"] = {key: value.contiguous() for key, value in content["net"].items()}
        save(Path(arguments[1]), content)
    except UserError as error:
        print(f"engine.checkpoint: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
