"""Synthetic rain: streaks of light added to clean images, for the demo and the tests.

As in the real dataset, rain only brightens: rainy >= clean everywhere, and equal off the streaks.
Run as a program, it writes pairs and their list:
    python -m rain.synthetic_rain test -o DIR             the demo's test set, from photographs
    python -m rain.synthetic_rain train -o DIR -n COUNT   training patches, from other backgrounds
    python -m rain.synthetic_rain videos -o DIR           short rain videos of a still camera
The backgrounds are photographs that ship with scikit-image and, for training, dead leaves: random
shapes that cover one another, whose edges and scales are like those of natural images.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data

from media.container import address
from settings import UserError
from system.files import begin

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are told by us

# Test and training backgrounds share no scene.
TEST_PHOTOGRAPHS = ("chelsea", "coffee", "rocket")
TRAINING_PHOTOGRAPHS = (
    "astronaut", "stereo_motorcycle", "camera", "coins", "hubble_deep_field", "retina",
    "immunohistochemistry", "grass", "gravel", "brick",
)  # fmt: skip
VIDEO_PHOTOGRAPHS = ("astronaut", "stereo_motorcycle", "camera")
VIDEO_SIZE, VIDEO_FRAMES = (288, 272), 40  # width and height, and length
LEAVES = 300  # shapes in a dead-leaves image
SUBPIXEL = 4  # bits of the fraction of a pixel in OpenCV's line ends


@dataclass(frozen=True)
class Rain:
    """One look of rain.

    Attributes:
        density: streaks on 1000 pixels.
        angle: mean tilt from the vertical, degrees; single streaks differ by a few.
        length: mean length, pixels.
        width: thickness, pixels, 1 or more.
        brightness: what the brightest streak adds, in grey levels of 255.
        blur: standard deviation of the Gaussian blur, pixels; 0 is none.
        cover: how far streaks hide what is behind them: 0 adds the same light everywhere, 1 draws
            nearer to white, and so adds less to what is bright already, channel by channel.
        uneven: how much of a streak's brightness varies along it, 0..1.
        spindle: streaks narrow towards their ends, as near drops do.
    """

    density: float
    angle: float
    length: float
    width: int
    brightness: float
    blur: float
    cover: float = 0.0
    uneven: float = 0.0
    spindle: bool = False

    @staticmethod
    def sample(rng: np.random.Generator) -> "Rain":
        """A look drawn from what pairs of real rain show.

        Two looks in three are thin streaks, few or many; the others near drops: a handful, wide,
        long, bright before what is dark. Most fall within some ten degrees of the vertical.
        """
        if rng.random() < 2 / 3:
            width = int(rng.choice([1, 1, 1, 2, 2, 3]))
            density = _log_uniform(rng, 0.2, 6) / width**1.5
            length = _log_uniform(rng, 6, 45) * width**0.5
            brightness, blur = rng.uniform(20, 150), rng.uniform(0, 0.5 + 0.4 * width)
        else:
            width = int(rng.integers(3, 9))
            density, length = _log_uniform(rng, 0.03, 0.3), _log_uniform(rng, 20, 120)
            brightness, blur = rng.uniform(30, 230), rng.uniform(0.3, 0.35 * width)
        return Rain(
            density=density,
            angle=float(rng.normal(0, 10) if rng.random() < 0.7 else rng.uniform(-40, 40)),
            length=length,
            width=width,
            brightness=float(brightness),
            blur=float(blur),
            cover=float(rng.random()) if rng.random() < 0.7 else 0.0,
            uneven=float(rng.uniform(0, 0.8)),
            spindle=bool(width > 1 and rng.random() < 0.5),
        )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def streaks(height: int, width: int, rain: Rain, rng: np.random.Generator) -> np.ndarray:
    """What rain adds to an image: (height,width) float32, grey levels >= 0, 0 off the streaks."""
    margin = int(2 * rain.length) + 2  # streaks that begin outside the image reach into it
    area = (height + 2 * margin) * (width + 2 * margin)
    layer = np.zeros((height, width), np.uint8)
    for _ in range(rng.poisson(rain.density * area / 1000)):
        x = rng.uniform(-margin, width + margin)
        y = rng.uniform(-margin, height + margin)
        tilt = np.deg2rad(rain.angle + rng.normal(0, 2))
        half = rain.length * rng.uniform(0.5, 1.5) / 2
        dx, dy = half * np.sin(tilt), half * np.cos(tilt)
        strength = int(rng.uniform(0.3, 1) * 255)
        if rain.spindle:
            centre, axes = _subpixels([x, y]), _subpixels([rain.width / 2, half])
            cv2.ellipse(layer, centre, axes, -np.rad2deg(tilt), 0, 360, strength, -1,
                        cv2.LINE_AA, SUBPIXEL)  # fmt: skip
        else:
            start, end = _subpixels([x - dx, y - dy]), _subpixels([x + dx, y + dy])
            cv2.line(layer, start, end, strength, rain.width, cv2.LINE_AA, SUBPIXEL)
    added = layer.astype(np.float32)
    if rain.blur > 0:
        added = cv2.GaussianBlur(added, (0, 0), rain.blur)
    if rain.uneven > 0:
        coarse = rng.random((height // 8 + 2, width // 8 + 2), np.float32)
        added *= 1 - rain.uneven * cv2.resize(coarse, (width, height))
    return added * (rain.brightness / 255)


def _subpixels(values: list[float]) -> list[int]:
    """As OpenCV takes numbers with a fraction."""
    return np.rint(np.array(values) * 2**SUBPIXEL).astype(int).tolist()


def add_rain(clean: np.ndarray, rain: list[Rain], rng: np.random.Generator) -> np.ndarray:
    """Rainy image of a clean one, (H,W,3) uint8 each; looks in `rain` add up.

    Raises:
        ValueError: clean is not (H,W,3) uint8.
    """
    if clean.dtype != np.uint8 or clean.ndim != 3 or clean.shape[2] != 3:
        raise ValueError(f"add_rain: expected (H,W,3) uint8, got {clean.shape} {clean.dtype}")
    added = np.zeros(clean.shape, np.float32)
    for look in rain:
        light = streaks(*clean.shape[:2], look, rng)[..., None]
        added += light * (1 - look.cover / 255 * clean)
    return np.minimum(clean + np.rint(added).astype(np.int32), 255).astype(np.uint8)


def rain_frames(
    clean: np.ndarray, rain: list[Rain], frames: int, noise: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Frames (H,W,3) uint8 of falling rain before a clean image, as a still camera records it.

    Args:
        noise: standard deviation of the camera's own noise, grey levels.
    """
    for _ in range(frames):
        grain = rng.standard_normal(clean.shape, np.float32) * noise
        noisy = np.clip(np.rint(clean + grain), 0, 255).astype(np.uint8)
        yield add_rain(noisy, rain, rng)


def write_video(path: Path, frames: Iterator[np.ndarray], size: tuple[int, int]) -> None:
    """Write frames (H,W,3) uint8 BGR of size (W,H) without loss.

    Raises:
        UserError: it cannot be written; then there is no file of that name.
    """
    unfinished = begin(path, path.suffix)
    try:
        with av.open(address(unfinished), "w") as file:
            stream = file.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
            for index, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
                frame.pts = index
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        unfinished.replace(path)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image by name, (H,W,3) uint8 BGR, from the installed package."""
    image = getattr(skimage.data, name)()
    image = image[0] if isinstance(image, tuple) else image
    code = cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR
    return cv2.cvtColor(image, code)


def dead_leaves(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A dead-leaves image (height,width,3) uint8: ellipses and polygons, sizes by a power law."""
    base = rng.uniform(30, 220) + rng.normal(0, 20, 3)  # colours of one scene keep together
    spread = rng.uniform(10, 70)
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = base
    smallest, largest = rng.uniform(2, 12), float(max(height, width))
    for _ in range(LEAVES):
        u = rng.random()  # density of radii ~ r**-3 gives the scale invariance of natural images
        radius = (smallest**-2 + u * (largest**-2 - smallest**-2)) ** -0.5
        centre = rng.uniform((0, 0), (width, height))
        mask = np.zeros((height, width), np.uint8)
        if rng.random() < 0.5:
            axes = np.rint(radius * rng.uniform(0.4, 1, 2)).astype(int) + 1
            turn = rng.uniform(0, 180)
            cv2.ellipse(
                mask, np.rint(centre).astype(int).tolist(), axes.tolist(), turn, 0, 360, 1, -1
            )
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
            corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1)
        left, top, w, h = cv2.boundingRect(mask)
        if h == 0:
            continue
        shade = np.linspace(-1, 1, w) * rng.normal(0, 12)
        shade = shade + (np.linspace(-1, 1, h) * rng.normal(0, 12))[:, None]
        grain = rng.normal(0, 1, (h, w)) * rng.choice([0, 0, 3, 8])
        colour = base + rng.normal(0, spread) + rng.normal(0, spread / 3, 3)
        leaf = colour + (shade + grain)[..., None]
        inside = mask[top : top + h, left : left + w] > 0
        canvas[top : top + h, left : left + w][inside] = leaf[inside]
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9))
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def write_pair(folder: Path, name: str, rainy: np.ndarray, clean: np.ndarray) -> str:
    """Write rain/NAME.png and clean/NAME.png under folder; returns their line of a list."""
    for kind, image in (("rain", rainy), ("clean", clean)):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), image):
            raise UserError(f"{path}: cannot be written")
    return f"./rain/{name}.png ./clean/{name}.png\n"


def write_test_set(folder: Path, seed: int) -> Path:
    """Each test photograph under light and under heavy rain. Returns the list's path."""
    looks = {
        "light": [Rain(0.8, -12, 22, 1, 90, 0.6)],
        "heavy": [Rain(1.6, 15, 26, 1, 110, 0.7), Rain(0.25, 18, 45, 2, 90, 1.0)],
    }
    lines = []
    for number, name in enumerate(TEST_PHOTOGRAPHS):
        clean = photograph(name)
        clean = cv2.resize(clean, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        for look, (title, rain) in enumerate(looks.items()):
            rng = np.random.default_rng([seed, number, look])
            rainy = add_rain(clean, rain, rng)
            lines.append(write_pair(folder, f"{name}_{title}", rainy, clean))
    return _write_list(folder / "test.txt", lines)


def write_videos(folder: Path, seed: int) -> Path:
    """A rain video NAME.mkv of each scene and truth/NAME.png, the same without rain."""
    for number, name in enumerate(VIDEO_PHOTOGRAPHS):
        rng = np.random.default_rng([seed, 2, number])
        clean = cv2.resize(photograph(name), VIDEO_SIZE, interpolation=cv2.INTER_AREA)
        frames = rain_frames(clean, [Rain(1.5, 12, 24, 1, 120, 0.5)], VIDEO_FRAMES, 1.5, rng)
        write_video(folder / f"{name}.mkv", frames, VIDEO_SIZE)
        truth = folder / "truth" / f"{name}.png"
        truth.parent.mkdir(exist_ok=True)
        if not cv2.imwrite(str(truth), clean):
            raise UserError(f"{truth}: cannot be written")
    return folder


def write_training_set(folder: Path, count: int, side: int, seed: int) -> Path:
    """count square patches, half on photographs, half on dead leaves. Returns the list's path."""
    photographs = [photograph(name) for name in TRAINING_PHOTOGRAPHS]
    lines = []
    for index in range(count):
        rng = np.random.default_rng([seed, 1, index])
        if index % 2:
            clean = _random_patch(photographs[rng.integers(len(photographs))], side, rng)
        else:
            clean = dead_leaves(side, side, rng)
        rain = [Rain.sample(rng) for _ in range(rng.integers(1, 3))]
        lines.append(write_pair(folder, f"{index:05d}", add_rain(clean, rain, rng), clean))
    return _write_list(folder / "train.txt", lines)


def _random_patch(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A square patch of an image at a random scale, mirrored and with other light and colours."""
    scale = rng.uniform(max(0.4, side / min(image.shape[:2])), 1)
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top = rng.integers(image.shape[0] - side + 1)
    left = rng.integers(image.shape[1] - side + 1)
    patch = image[top : top + side, left : left + side]
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    if rng.random() < 0.3:  # soft, as videos are
        patch = cv2.GaussianBlur(patch, (0, 0), rng.uniform(0.3, 1.2))
    gain = _log_uniform(rng, 0.2, 1.15) * rng.uniform(0.85, 1.15, 3)
    return np.clip(np.rint(patch * gain), 0, 255).astype(np.uint8)


def _write_list(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write synthetic rain: pairs and their list, or videos."
    )
    parser.add_argument("set", choices=["test", "train", "videos"])
    parser.add_argument("-o", "--output", required=True, metavar="DIR")
    parser.add_argument("-n", "--count", type=int, default=3000, help="training patches")
    parser.add_argument("--side", type=int, default=128, help="side of a training patch, pixels")
    parser.add_argument("--seed", type=int, default=2019)
    arguments = parser.parse_args(argv)
    folder = Path(arguments.output)
    try:
        if arguments.count < 1 or not 1 <= arguments.side <= 300 or arguments.seed < 0:
            raise UserError("expected --count from 1 up, --side 1 to 300, --seed from 0 up")
        if arguments.set == "videos":
            print(write_videos(folder, arguments.seed))
            return 0
        list_file = folder / f"{arguments.set}.txt"
        list_file.unlink(missing_ok=True)  # a set that is interrupted has no list
        if arguments.set == "test":
            path = write_test_set(folder, arguments.seed)
        else:
            path = write_training_set(folder, arguments.count, arguments.side, arguments.seed)
    except (UserError, OSError) as error:
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        print(f"synthetic_rain: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
