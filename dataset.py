"""From a list file to batches: lists, images, and the deterministic stream of training crops.

A list line names a rainy image and its clean one. The stream makes the batch of step s from
(seed, s) alone, so neither the number of workers nor an interruption changes what is trained on.
"""

import contextlib
import signal
import struct
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from settings import Settings, UserError

# More workers than cores is the user's choice, and two by default on a machine of one core.
warnings.filterwarnings("ignore", message="This DataLoader will create")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are told by us

# Branches of the random stream: training and validation never share a draw.
TRAINING, VALIDATION = 0, 1
CROP_TRIES = 10
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Pair:
    """One line of a list; clean is None where the list has no ground truth."""

    rainy: Path
    clean: Path | None
    where: str  # "list file:line number", for messages


def read_list(path: str, need_clean: bool = False) -> list[Pair]:
    """The pairs of a list file, every file checked to exist.

    A line holds `rainy clean`, or `rainy` alone; TABs separate where a name holds spaces.
    Names are tried as given, against the list's folder, and without a leading `./` or `/`
    against both; what finds the first image is used for the whole list.

    Raises:
        UserError: the list or an image is missing, the list is empty, not UTF-8, or a line has
            more names or fewer than the first; or need_clean is set and there are no clean images.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the list: {error.strerror}; "
            "Train_Dataset_README.md describes lists"
        ) from None
    entries = [
        (number, _names(line, f"{path}:{number}"))
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not entries:
        raise UserError(f"{path}: the list is empty; expected a line `rainy clean` for each pair")
    width = len(entries[0][1])
    if need_clean and width == 1:
        raise UserError(
            f"{path}:{entries[0][0]}: expected `rainy clean`, got one name: {entries[0][1][0]}"
        )
    resolve = _resolver(path, entries[0])
    pairs = []
    for number, names in entries:
        where = f"{path}:{number}"
        if len(names) != width:
            raise UserError(
                f"{where}: {_count(names)}, where the first line has {width}; "
                "a list holds pairs or rainy images, not both"
            )
        files = [resolve(name) for name in names]
        for name, file in zip(names, files, strict=True):
            if not _is_file(file):
                raise UserError(f"{where}: no such image: {name} (looked for {file})")
        pairs.append(Pair(files[0], files[1] if width == 2 else None, where))
    return pairs


def _count(names: list[str]) -> str:
    return f"{len(names)} name{'s' if len(names) > 1 else ''}"


def _names(line: str, where: str) -> list[str]:
    names = [name.strip() for name in line.split("\t")] if "\t" in line else line.split()
    names = [name for name in names if name]
    if len(names) > 2 or "\0" in line:
        raise UserError(
            f"{where}: {_count(names)}; expected `rainy clean` "
            "(separate the two by a TAB where a name holds spaces)"
        )
    return names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def _resolver(path: str, first_entry: tuple[int, list[str]]) -> Any:
    """The function from name to file that finds the first image of a list."""
    folder = Path(path).parent

    def bare(name: str) -> str:
        return name.removeprefix(".").lstrip("/") if name.startswith(("./", "/")) else name

    ways = [
        lambda name: Path(name),
        lambda name: folder / name,
        lambda name: Path(bare(name)),
        lambda name: folder / bare(name),
    ]
    number, names = first_entry
    for way in ways:
        if _is_file(way(names[0])):
            return way
    tried = ", ".join(dict.fromkeys(str(way(names[0])) for way in ways))
    raise UserError(f"{path}:{number}: no such image: {names[0]} (looked for {tried})")


def read_image(path: Path, where: str) -> np.ndarray:
    """An image file as (H,W,3) uint8, BGR; greyscale is spread over the channels.

    Raises:
        UserError: the file is missing, not a whole image, has more than 8 bits a channel, or has
            transparent pixels. `where` begins the message.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {path}: {error.strerror}") from None
    image = None
    # libpng would print lines of its own about a damaged file.
    if data and not (data.startswith(PNG_SIGNATURE) and not _is_whole_png(data)):
        jpeg = data.startswith(b"\xff\xd8")  # the only kind whose orientation tag is common
        flags = cv2.IMREAD_COLOR if jpeg else cv2.IMREAD_UNCHANGED
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise UserError(f"{where}: {path}: not an image, or cut short ({len(data)} bytes)")
    if image.dtype != np.uint8:
        raise UserError(
            f"{where}: {path}: {image.dtype} values; expected 8 bits a channel: convert it first"
        )
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 4:
        if (image[..., 3] != 255).any():
            raise UserError(f"{where}: {path}: has transparent pixels; expected an opaque image")
        return np.ascontiguousarray(image[..., :3])
    return image


def _is_whole_png(data: bytes) -> bool:
    """Whether the chunks of a PNG file are all there, with their checksums, to the last."""
    view, at = memoryview(data), len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if (
            end > len(data)
            or zlib.crc32(view[at + 4 : end - 4]).to_bytes(4, "big") != data[end - 4 : end]
        ):
            return False
        if kind == b"IEND":
            return True
        at = end
    return False


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray | None]:
    """Both images of a pair, (H,W,3) uint8 BGR. Raises UserError, also where their sizes differ."""
    rainy = read_image(pair.rainy, pair.where)
    if pair.clean is None:
        return rainy, None
    clean = read_image(pair.clean, pair.where)
    if rainy.shape != clean.shape:
        raise UserError(
            f"{pair.where}: the images of a pair differ in size: {pair.rainy} is "
            f"{rainy.shape[1]}x{rainy.shape[0]}, {pair.clean} is {clean.shape[1]}x{clean.shape[0]}"
        )
    return rainy, clean


def to_float(image: Tensor) -> Tensor:
    """(N,H,W,3) uint8 to (N,3,H,W) float32 in 0..1, channels_last in memory without a shuffle."""
    return image.permute(0, 3, 1, 2).float().div_(255)


def mask_label(rainy: Tensor, clean: Tensor) -> Tensor:
    """(N,H,W) float32: 1 where rainy and clean, (N,H,W,3) uint8, differ in any channel, else 0."""
    return (rainy != clean).any(-1).float()


@dataclass
class Batch:
    """A training batch: images (N,H,W,3) uint8 BGR, and the rainy files they were cut from."""

    rainy: np.ndarray
    clean: np.ndarray
    files: list[str]

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """rainy, clean (N,3,H,W) float32 in 0..1 and mask label (N,H,W), on the device."""
        rainy = torch.from_numpy(self.rainy).to(device)
        clean = torch.from_numpy(self.clean).to(device)
        return to_float(rainy), to_float(clean), mask_label(rainy, clean)


class CropStream(Dataset):
    """Crop `slot` of step `step`, a function of (seed, branch, step, slot) alone.

    Images come in shuffled passes over the list, one after another without end.
    """

    def __init__(self, pairs: list[Pair], settings: Settings, branch: int) -> None:
        self.pairs = pairs
        self.settings = settings
        self.branch = branch

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str] | UserError:
        step, slot = key
        settings = self.settings
        turn, place = divmod(step * settings.batch_size + slot, len(self.pairs))
        order = _shuffled(len(self.pairs), settings.seed, self.branch, turn)
        pair = self.pairs[order[place]]
        rng = np.random.default_rng([settings.seed, self.branch, step, slot])
        try:
            rainy, clean = read_pair(pair)
        except UserError as error:
            return error  # raised by Stream: a worker's exception would arrive as a traceback
        top, left, height, width = random_crop(rng, *rainy.shape[:2], settings)
        crops = [
            _resize(image[top : top + height, left : left + width], settings.patch_size)
            for image in (rainy, clean)
        ]
        return crops[0], crops[1], str(pair.rainy)


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, branch: int, turn: int) -> np.ndarray:
    return np.random.default_rng([seed, branch, turn]).permutation(count)


def random_crop(
    rng: np.random.Generator, height: int, width: int, settings: Settings
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the recipe's random crop, in an image of height x width."""
    aspect_max = settings.crop_aspect_max
    for _ in range(CROP_TRIES):
        area = rng.uniform(settings.crop_area_min, 1) * height * width
        aspect = rng.uniform(1 / aspect_max, aspect_max)
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if rng.random() < 0.5:
            w, h = h, w
        if 1 <= w <= width and 1 <= h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    # OpenCV's bicubic filter does not widen when it shrinks and would alias; averaging does not.
    shrinks = image.shape[0] * image.shape[1] > side * side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (side, side), interpolation=method)


def _collate(samples: list) -> Batch | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    rainy, clean, files = zip(*samples, strict=True)
    return Batch(np.stack(rainy), np.stack(clean), list(files))


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    # A signal to the whole process group is for the main process, which finishes its step and then
    # ends the workers by Stream.close. One that is sent a second SIGTERM does end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class Stream:
    """An iterator over what a DataLoader reads. Close it, whatever happened, to end the workers."""

    def __init__(self, loader: DataLoader) -> None:
        # The workers start at once: forking them later, beside running thread pools, is not safe.
        self._items = iter(loader)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Any:
        item = next(self._items)
        if isinstance(item, UserError):
            self.close()
            raise item
        return item

    def close(self) -> None:
        # Left to the garbage collector, workers may outlive the exception that refers to them.
        shut_down = getattr(self._items, "_shutdown_workers", None)
        if shut_down:
            shut_down()


def batches(
    pairs: list[Pair], settings: Settings, branch: int, steps: Iterable[int], num_workers: int
) -> Stream:
    """A stream of the Batches of the given steps, in order. It raises UserError for a bad image.

    Workers hand over NumPy arrays, by a pipe: tensors would need as much shared memory, which
    containers are short of.
    """
    loader = DataLoader(
        CropStream(pairs, settings, branch),
        batch_sampler=([(step, slot) for slot in range(settings.batch_size)] for step in steps),
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
    )
    return Stream(loader)


class _Pairs(Dataset):
    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None] | UserError:
        try:
            return read_pair(self.pairs[index])
        except UserError as error:
            return error


def whole_images(pairs: list[Pair], num_workers: int) -> Stream:
    """A stream of read_pair of each pair in turn. It raises UserError for a bad image."""
    loader = DataLoader(
        _Pairs(pairs),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=min(num_workers, len(pairs)),
        worker_init_fn=_start_worker,
    )
    return Stream(loader)
