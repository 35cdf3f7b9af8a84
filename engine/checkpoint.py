"""Checkpoints: one file saved so that it is whole or not there, and loaded without trust.

A file holds `net` (the network's tensors), `clock` (index of the last completed step) and `opt`
(the optimiser's state), as the published ones do, and beside them `format`, `settings`, `rng`,
`best` (the best score so far), `data` (a fingerprint of the training list) and `run` (its name).
Run as a program, it copies a checkpoint without its optimiser, or writes the mean of several:
    python -m engine.checkpoint FROM [FROM ...] TO
"""

import io
import os
import pickletools
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from model import SPANet
from settings import Settings, UserError
from system.files import write_atomically
from system.program import report_errors, run_program
from system.reading import open_regular

FORMAT = 1
# How a file of today's kind begins; those of the published kind have no checksums.
ZIPPED = b"PK\3\4"
# How torch tells of what it does not load as it could run code, and names of pickle for the same.
WORDS_OF_CODE = (
    "Unsupported global", "unsupported GLOBAL", "Unsupported class", "for unrecognized function",
    "Can only create new object", "Can only build", "must be imported to load",
    "TorchScript archives",
)  # fmt: skip
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAST_STEP = 10**12  # more than --num-steps can be
ATTENTION = "direction_attention"
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"}
USUAL = {  # names that a first command has, and how to come by such a file
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
    """The content of a checkpoint, tensors on the CPU, keys of `net` without `module.`.

    Nothing in the file is executed. Files of the published kind load too: `net` and `clock` alone
    are sure to be there.

    Raises:
        UserError: there is no such file, it is cut short, holds objects that would have to be
            executed, or is not a checkpoint of SPANet.
    """
    try:
        with open_regular(path) as file:
            return _checked(path, _loaded(path, file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint{_neighbours(path.parent)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _loaded(path: Path, file: BinaryIO) -> Any:
    """What a file holds, of whatever types. Raises UserError."""
    try:
        if file.read(len(ZIPPED)) == ZIPPED:
            _require_whole(path, file)
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file is told below
            return torch.load(file, map_location="cpu", weights_only=True)
    except (UserError, MemoryError, OSError):  # the latter are told by whoever asked
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        if _holds_code(error, file):
            raise UserError(
                f"{path}: refused: it holds objects other than tensors and plain values, "
                "which could run code when loaded"
            ) from None
        raise UserError(f"{path}: not a checkpoint, or cut short") from None


def _require_whole(path: Path, file: BinaryIO) -> None:
    """Hold a file of today's kind, a zip, against its own checksums, which torch does not look at.

    Its parts are not compressed. If they claim to hold more than the file, they are not unpacked.
    """
    with zipfile.ZipFile(file) as archive:
        claimed = sum(part.file_size for part in archive.infolist())
        size = os.fstat(file.fileno()).st_size
        if claimed > size:
            raise UserError(
                f"{path}: not a checkpoint: its parts claim {claimed} bytes, the file has {size}"
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path}: damaged: {damaged} in it does not have the checksum it should")


def _holds_code(error: Exception, file: BinaryIO) -> bool:
    """Whether loading failed at what could run code."""
    words = str(error)
    if any(told in words for told in WORDS_OF_CODE):
        return True
    if "Unsupported operand" not in words:
        return False
    # A pickle of a kind that torch does not write, which may call what it likes.
    try:
        return any(one.name in CALLS for one, _, _ in pickletools.genops(_pickle(file)))
    except Exception:  # damaged: it ends somewhere else than a pickle does
        return False


def _pickle(file: BinaryIO) -> BinaryIO:
    """The part of a checkpoint that says what the others are."""
    file.seek(0)
    if file.read(len(ZIPPED)) == ZIPPED:
        archive = zipfile.ZipFile(file)
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return io.BytesIO(archive.read(name))
    file.seek(0)
    return file


def require_checkpoint(path: Path) -> None:
    """Raise UserError where there is no such file, with what to do about the usual ones."""
    if path.name in USUAL and not path.exists():
        told = f"{path}: no such checkpoint{_neighbours(path.parent)}"
        raise UserError(f"{told}. {USUAL[path.name]}")


def _neighbours(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        return f" (nor a folder {folder})"
    except OSError as error:
        return f"; {folder} cannot be looked into: {error.strerror}"
    return f"; {folder} holds {', '.join(names[:8])}" if names else f"; {folder} is empty"


def _checked(path: Path, content: Any) -> dict[str, Any]:
    """The content, the types and ranges of all that does not belong to the optimiser looked at."""
    if not isinstance(content, dict) or not isinstance(content.get("net"), dict):
        raise UserError(f"{path}: not a checkpoint of SPANet: expected a dictionary with 'net'")
    net = content["net"]
    if not all(isinstance(key, str) and is_plain(value) for key, value in net.items()):
        raise UserError(f"{path}: not a checkpoint of SPANet: 'net' holds more than plain tensors")
    if not is_number(content.get("clock"), -1, LAST_STEP):
        told = described(content.get("clock"))
        raise UserError(f"{path}: 'clock' is {told}; expected the index of a step")
    version = content.get("format", FORMAT)
    if not is_number(version, 0, FORMAT):
        told = described(version)
        raise UserError(f"{path}: format {told} is newer than this program's, {FORMAT}")
    settings = content.get("settings")
    if not (
        settings is None or (isinstance(settings, dict) and all(map(_is_setting, settings.items())))
    ):
        raise UserError(
            f"{path}: 'settings' are {described(settings)}; expected plain values by name"
        )
    for key in ("data", "run"):
        if not isinstance(content.get(key), str | None):
            told = described(content[key])
            raise UserError(f"{path}: {key!r} is {told}; expected letters and digits")
    return {**content, "net": {key.removeprefix("module."): value for key, value in net.items()}}


def is_plain(value: Any, kinds: tuple[torch.dtype, ...] = FLOATS) -> bool:
    """Whether value is a dense tensor in memory, of one of those types."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_nested
        and value.device.type == "cpu"
        and value.dtype in kinds
    )


def is_number(value: Any, low: int, high: int) -> bool:
    """Whether value is a whole number from low to high; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_setting(item: tuple[Any, Any]) -> bool:
    key, value = item
    plain = isinstance(value, str | float | bool) or is_number(value, -(2**63), 2**63)
    return isinstance(key, str) and plain and (key != ATTENTION or isinstance(value, bool))


def described(value: Any) -> str:
    """A value for a message, where that is short and safe to print; else its type."""
    short = isinstance(value, str | float | bool) or is_number(value, -(2**63), 2**63)
    return repr(value) if short or value is None else f"a value of type {type(value).__name__}"


def direction_attention(content: dict[str, Any]) -> bool:
    """Whether a checkpoint was trained with the paper's direction attention.

    A published one, which holds no settings, was trained without.
    """
    return (content.get("settings") or {}).get(ATTENTION, False)


def check_tensors(
    path: Path, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    """Raise UserError unless found has the keys and shapes of expected, with finite values.

    They are finite if they are so in the type of expected, which is what computes.
    """
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
        if not found[key].to(tensor.dtype).isfinite().all():
            raise UserError(f"{path}: {key} holds values that are not finite")


def _listed(word: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{word} {', '.join(keys[:3])}{more}"


def mean_of(paths: list[Path]) -> dict[str, Any]:
    """The weights of one checkpoint, or the mean of several; one that stands there twice counts so.

    The mean of steps of one run, or of runs that began with the same weights, is often better than
    each of them: their errors cancel out (Wortsman et al., Model Soups, ICML 2022).

    Returns:
        The content of the last, with these weights and without the state of its run.

    Raises:
        UserError: one cannot be loaded, is not of this network, or not of the kind of the first.
    """
    contents = [load(path) for path in paths]
    last, attention = contents[-1], direction_attention(contents[0])
    expected = SPANet(attention).state_dict()
    for path, content in zip(paths, contents, strict=True):
        if direction_attention(content) != attention:
            how = "without" if attention else "with"
            raise UserError(f"{path}: trained {how} direction attention, unlike {paths[0]}")
        check_tensors(path, content["net"], expected)
    nets = [content["net"] for content in contents]
    means = {
        key: torch.stack([net[key].double() for net in nets]).mean(0).to(value.dtype)
        for key, value in expected.items()
    }
    state = {"opt", "rng", "best", "data", "run"}
    return {key: value for key, value in last.items() if key not in state} | {"net": means}


def main(argv: list[str] | None = None) -> int:
    """Write the mean of checkpoints. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) < 2 or argv[0].startswith("-"):
        print("usage: python -m engine.checkpoint FROM [FROM ...] TO", file=sys.stderr)
        return 2

    def write_mean() -> None:
        *sources, target = map(Path, argv)
        if not target.name:
            raise UserError(f"{argv[-1]!r}: expected a file to write to")
        if target.exists():
            raise UserError(f"{target}: is there already; expected a new file to write to")
        save(target, mean_of(sources))

    return report_errors("engine.checkpoint", write_mean)


if __name__ == "__main__":
    sys.exit(run_program(main))
