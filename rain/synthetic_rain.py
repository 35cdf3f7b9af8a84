"""Sets of synthetic rain, for the demo, the tests and for training without other data.

Run as a program, it writes pairs and their list, or videos:
    python -m rain.synthetic_rain test -o DIR             the demo's test set, from photographs
    python -m rain.synthetic_rain dry -o DIR              pictures without rain, to be left alone
    python -m rain.synthetic_rain train -o DIR -n COUNT   training patches, from other backgrounds
    python -m rain.synthetic_rain val -o DIR --photographs DIR    patches to choose weights by
    python -m rain.synthetic_rain sheet -o DIR            what training patches look like
    python -m rain.synthetic_rain videos -o DIR           short rain videos of a still camera
"""

import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from media.lists import write_list
from rain.backgrounds import DRY_SCENES, dead_leaves, draw_scenes, photograph, read_photographs
from rain.streaks import LOOKS, Rain, add_rain, log_uniform, rain_frames
from settings import UserError, check_field, option
from system.commandline import Parser, add_option
from system.files import format_path, require_writable, write_atomically
from system.overlap import map_processes
from system.program import report_errors, run_program

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # we report errors ourselves

# Test and training backgrounds share no scene.
TEST_PHOTOGRAPHS = ("chelsea", "coffee", "rocket")
DRY_PHOTOGRAPHS = (*TEST_PHOTOGRAPHS, "moon", "clock", "page")
TRAINING_PHOTOGRAPHS = (
    "astronaut", "stereo_motorcycle", "camera", "coins", "hubble_deep_field", "retina",
    "immunohistochemistry", "grass", "gravel", "brick",
)  # fmt: skip
SMALLER = 0.6  # the scale of the test photographs, and of every other dry one
LARGEST = 2.0  # the scale of a training photograph: frames of videos are as soft
DRAWN_SIDE = 256  # pixels
VIDEO_PHOTOGRAPHS = ("astronaut", "stereo_motorcycle", "camera")
VIDEO_SIZE, VIDEO_FRAMES = (288, 272), 40  # width and height, and length
# Kinds of rain to train on: how often, and the looks of each with their probabilities.
KINDS: tuple[tuple[float, dict[str, float]], ...] = (
    (0.15, {}),
    (0.16, {"faint": 1}),
    (0.26, {"near": 1, "faint": 0.5}),
    (0.12, {"dense": 1, "near": 0.2}),
    (0.07, {"fine": 1, "near": 0.3}),
    (0.12, {"arc": 1, "near": 0.6, "faint": 0.3}),
    (0.05, {"veil": 1, "thin": 0.5}),
    (0.07, {"thin": 1, "near": 0.3}),
)
SETS = {
    "test": "the demo's test set, from photographs",
    "dry": "pictures without rain, to be left alone",
    "train": "training patches, from other backgrounds",
    "val": "patches to choose weights by, from backgrounds that are not trained on",
    "sheet": "a picture of the first training patches",
    "videos": "short rain videos of a still camera",
}
SHEET_ROWS, SHEET_COLUMNS = 6, 8  # each place holds a rainy patch and a clean one
EVERY, PATCHES = tuple(SETS), ("train", "val", "sheet")  # what an option serves
Pair = tuple[np.ndarray, np.ndarray]  # a rainy image and its clean one, (H,W,3) uint8 BGR


@dataclass(frozen=True)
class SetSettings:
    """All settings of one set. Raises UserError for a value of the wrong type or range."""

    # fmt: off
    set: str = option(MISSING, (), "set to write, one of SETS")
    output: str = option("", EVERY, "folder to write it into")
    seed: int = option(2019, EVERY, "random seed of the rain", low=0, high=2**63 - 1)
    count: int = option(3000, ("train", "val"), "number of pairs", low=1, high=10**7)
    side: int = option(128, PATCHES, "side of a patch, in pixels", low=1, high=300)
    photographs: str = option("", PATCHES, {
        "": "folder of pictures to cut patches from too",
        "val": "folder of pictures to cut patches from, none of which is trained on",
    })
    num_workers: int = option(2, PATCHES,
        "processes that draw; the patches do not change", low=0, high=1024)
    # fmt: on

    def __post_init__(self) -> None:
        for f in fields(self):
            check_field(f, f.type, getattr(self, f.name))
        folder = Path(self.output)
        if not self.output or folder.is_file() or (folder / "rain" / Path(__file__).name).exists():
            raise UserError(f"-o/--output: expected a folder for pictures, not {self.output!r}")
        if self.set == "val" and not self.photographs:
            raise UserError("--photographs: expected a folder of pictures that are not trained on")


def write_video(path: Path, frames: Iterator[np.ndarray], size: tuple[int, int]) -> None:
    """Write frames (H,W,3) uint8 BGR of size (W,H) as an MKV file without loss.

    Raises:
        UserError: it cannot be written; then there is no file of that name.
    """
    content = io.BytesIO()
    with av.open(content, "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    write_atomically(path, content.getvalue(), durable=False)


def write_pair(folder: Path, name: str, rainy: np.ndarray, clean: np.ndarray) -> str:
    """Write rain/NAME.png and clean/NAME.png under folder; returns their line of a list."""
    for kind, image in (("rain", rainy), ("clean", clean)):
        _write_picture(folder / kind / f"{name}.png", image)
    return f"./rain/{name}.png ./clean/{name}.png\n"


def write_pairs(path: Path, pairs: Iterable[tuple[str, Pair]]) -> Path:
    """Write named pairs, and their list to path, which is there when all are. Returns path."""
    for kind in ("rain", "clean"):
        require_writable(path.parent / kind)
    path.unlink(missing_ok=True)  # a set that is interrupted has no list
    return write_list(path, [write_pair(path.parent, name, *pair) for name, pair in pairs])


def iterate_test_pairs(seed: int) -> Iterator[tuple[str, Pair]]:
    """Each test photograph under light and under heavy rain."""
    looks = {
        "light": [Rain(0.8, -12, 22, 1, 90, 0.6)],
        "heavy": [Rain(1.6, 15, 26, 1, 110, 0.7), Rain(0.25, 18, 45, 2, 90, 1.0)],
    }
    for number, name in enumerate(TEST_PHOTOGRAPHS):
        clean = _scaled(photograph(name), SMALLER)
        for look, (title, rain) in enumerate(looks.items()):
            rng = np.random.default_rng([seed, number, look])
            yield f"{name}_{title}", (add_rain(clean, rain, rng), clean)


def write_videos(folder: Path, seed: int) -> Path:
    """A rain video NAME.mkv of each scene and truth/NAME.png, the same without rain."""
    for number, name in enumerate(VIDEO_PHOTOGRAPHS):
        rng = np.random.default_rng([seed, 2, number])
        clean = cv2.resize(photograph(name), VIDEO_SIZE, interpolation=cv2.INTER_AREA)
        frames = rain_frames(clean, [Rain(1.5, 12, 24, 1, 120, 0.5)], VIDEO_FRAMES, 1.5, rng)
        write_video(folder / f"{name}.mkv", frames, VIDEO_SIZE)
        _write_picture(folder / "truth" / f"{name}.png", clean)
    return folder


def iterate_dry_photographs() -> Iterator[tuple[str, Pair]]:
    """Six photographs at two scales, none of them trained on: pairs of two equal images.

    What such a pair scores is the harm done.
    """
    for name in DRY_PHOTOGRAPHS:
        for title, scale in ((name, 1), (f"{name}_smaller", SMALLER)):
            image = _scaled(photograph(name), scale)
            yield title, (image, image)


def iterate_drawings(seed: int) -> Iterator[tuple[str, Pair]]:
    """Twelve pairs of two equal drawings, of kinds that are trained on, by other seeds."""
    for number, scene in enumerate(DRY_SCENES):
        for which in (1, 2):
            rng = np.random.default_rng([seed, 4, number, which])
            image = draw_scenes(DRAWN_SIDE, rng, scene=scene)
            yield f"{scene.__name__}_{which}", (image, image)


def draw_patches(settings: SetSettings) -> Iterator[tuple[str, Pair]]:
    """Named pairs of patches of a set, in the order of their numbers.

    Those to choose weights by all have rain: a dry one that is left as it is would score inf.
    """
    is_val = settings.set == "val"
    photographs = [] if is_val else [photograph(name) for name in TRAINING_PHOTOGRAPHS]
    if settings.photographs:
        photographs += read_photographs(Path(settings.photographs))
    count = SHEET_ROWS * SHEET_COLUMNS if settings.set == "sheet" else settings.count
    cv2.setNumThreads(0)  # after a fork its threads would be missing, and waited for
    seeds = settings.seed, 5 if is_val else 3
    draw = partial(draw_patch, photographs, settings.side, seeds)
    pairs = map_processes(range(count), draw, settings.num_workers)
    return ((name, pair) for name, pair in pairs if not is_val or (pair[0] != pair[1]).any())


def draw_patch(
    photographs: list[np.ndarray], side: int, seeds: tuple[int, int], number: int
) -> tuple[str, Pair]:
    """The name and the pair of a patch, rainy and clean, (side,side,3) uint8.

    Where there is no rain, the target is the input; few streaks may all miss a small patch. One in
    three is compressed like frames of a video.
    """
    rng = np.random.default_rng([*seeds, number])
    clean = _background(photographs, side, rng)
    rainy = add_rain(clean, draw_looks(rng), rng)
    if rng.random() < 1 / 3:
        rainy, clean = _compressed(rainy, clean, rng)
    return f"{number:05d}", (rainy, clean)


def draw_looks(rng: np.random.Generator) -> list[Rain]:
    """Looks of rain of one of KINDS, six times in ten nearer or farther."""
    looks = KINDS[rng.choice(len(KINDS), p=[share for share, _ in KINDS])][1]
    scale = log_uniform(rng, 0.5, 2) if rng.random() < 0.6 else 1.0
    return [LOOKS[look].sample(rng, scale) for look in looks if rng.random() < looks[look]]


def _background(photographs: list[np.ndarray], side: int, rng: np.random.Generator) -> np.ndarray:
    kind, image = rng.random(), _random_patch(photographs, side, rng)
    if kind < 0.08:
        image = dead_leaves(side, side, rng)
    elif kind < 0.4:
        image = draw_scenes(side, rng, image if kind < 0.25 else None)
    if rng.random() < 0.3:  # soft, as videos are
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.4))
    if rng.random() < 0.7:  # in other light
        image = _rounded(image * (log_uniform(rng, 0.3, 1.15) * rng.uniform(0.9, 1.1, 3)))
    if rng.random() < 0.15:  # a camera's noise
        image = _rounded(image + rng.normal(0, rng.uniform(0.5, 4), image.shape))
    return image


def _random_patch(photographs: list[np.ndarray], side: int, rng: np.random.Generator) -> np.ndarray:
    """A square patch of one of them at a random scale, turned and mirrored, in any colours."""
    image = photographs[rng.integers(len(photographs))]
    scale = log_uniform(rng, side / min(image.shape[:2]), LARGEST)
    reach = min(int(np.ceil(side / scale)) + 2, *image.shape[:2])  # what is seen of it
    top, left = (rng.integers(length - reach + 1) for length in image.shape[:2])
    patch = _scaled(image[top : top + reach, left : left + reach], scale)[:side, :side]
    patch = np.rot90(patch, int(rng.choice([0, 0, 0, 1, 2, 3])))
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    if rng.random() < 0.25:
        patch = patch[..., rng.permutation(3)]
    return np.ascontiguousarray(patch)


def _compressed(rainy: np.ndarray, clean: np.ndarray, rng: np.random.Generator) -> Pair:
    """Both with a JPEG's traces, which differ only where rain was: the mask label stays true."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 96))]
    jpegs = [cv2.imencode(".jpg", image, quality)[1] for image in (rainy, clean)]
    decoded, target = (np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)) for jpeg in jpegs)
    has_rain = (rainy != clean).any(2, keepdims=True)
    return np.where(has_rain, np.maximum(decoded, target), target), target


def write_sheet(folder: Path, pairs: Iterable[tuple[str, Pair]]) -> Path:
    """A picture of the first pairs of the training set, rainy above clean. Returns its path."""
    tiles = [np.vstack(pair) for _, pair in pairs]
    starts = range(0, len(tiles), SHEET_COLUMNS)
    sheet = np.vstack([np.hstack(tiles[start : start + SHEET_COLUMNS]) for start in starts])
    return _write_picture(folder / "sheet.png", sheet)


def _scaled(image: np.ndarray, scale: float) -> np.ndarray:
    how = cv2.INTER_AREA if scale <= 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)


def _rounded(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _write_picture(path: Path, image: np.ndarray) -> Path:
    # Not by OpenCV, which knows no names but UTF-8.
    write_atomically(path, cv2.imencode(".png", image)[1].tobytes(), durable=False)
    return path


def main(argv: list[str] | None = None) -> int:
    """Write a set, and print the paths of what to use. Returns the exit status."""
    description = "Write synthetic rain: pairs and their list, or videos."
    parser = Parser(prog="python -m rain.synthetic_rain", description=description)
    sets = parser.add_subparsers(dest="set", metavar="SET", required=True)
    for name, purpose in SETS.items():
        options = sets.add_parser(name, help=purpose, description=f"Write {purpose}.")
        for f in fields(SetSettings):
            if name in f.metadata["serves"]:
                add_option(options, f, name)

    def write() -> None:
        values = vars(parser.parse_args(argv))
        given = {name: value for name, value in values.items() if value is not None}
        for path in write_set(SetSettings(**given)):
            print(format_path(path), flush=True)

    return report_errors("synthetic_rain", write)


def write_set(settings: SetSettings) -> list[Path]:
    """Write the set that is asked for; the paths of what to use."""
    name, seed, folder = settings.set, settings.seed, Path(settings.output)
    if name == "test":
        return [write_pairs(folder / "test.txt", iterate_test_pairs(seed))]
    if name == "dry":
        return [
            write_pairs(folder / "photographs.txt", iterate_dry_photographs()),
            write_pairs(folder / "drawings.txt", iterate_drawings(seed)),
        ]
    if name == "videos":
        return [write_videos(folder, seed)]
    patches = draw_patches(settings)
    if name == "sheet":
        return [write_sheet(folder, patches)]
    return [write_pairs(folder / f"{name}.txt", patches)]


if __name__ == "__main__":
    sys.exit(run_program(main))
