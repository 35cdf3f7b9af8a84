"""Streaks of rain, drawn as light that is added to a clean image.

As in the real dataset, rain only brightens: rainy >= clean everywhere, and equal off the streaks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

SUBPIXEL = 4  # bits of the fraction of a pixel in OpenCV's coordinates

GRAINS = (2, 4, 8)  # pixels; drops before a lens or a light are speckled, others smooth


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
        grain: how large its lighter and darker parts are, pixels.
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
    grain: int = 8
    spindle: bool = False

    @staticmethod
    def sample(rng: np.random.Generator) -> "Rain":
        """Any look: most fall within some ten degrees of the vertical.

        Two looks in three are thin streaks, few or many; the others near drops: a handful, wide,
        long, bright before what is dark.
        """
        if rng.random() < 2 / 3:
            width = int(rng.choice([1, 1, 1, 2, 2, 3]))
            density = log_uniform(rng, 0.2, 6) / width**1.5
            length = log_uniform(rng, 6, 45) * width**0.5
            brightness, blur = rng.uniform(20, 150), rng.uniform(0, 0.5 + 0.4 * width)
        else:
            width = int(rng.integers(3, 9))
            density, length = log_uniform(rng, 0.06, 0.5), log_uniform(rng, 20, 120)
            brightness, blur = rng.uniform(30, 230), rng.uniform(0.3, 0.35 * width)
        angle = rng.normal(0, 10) if rng.random() < 0.7 else rng.uniform(-40, 40)
        cover = rng.random() if rng.random() < 0.7 else 0.0
        return Rain(density, angle, length, width, brightness, blur, cover, *_texture(rng, width))

    @staticmethod
    def faint(rng: np.random.Generator) -> "Rain":
        """Rain that is hardly there: 28 grey levels at most, and soft."""
        width = int(rng.choice([1, 1, 2, 2, 3, 4, 5, 7]))
        density, angle = log_uniform(rng, 0.1, 2.0) / width**1.2, rng.normal(0, 8)
        length, brightness = log_uniform(rng, 8, 60) * width**0.3, log_uniform(rng, 4, 28)
        blur, cover = rng.uniform(0.4, 0.6 + 0.5 * width), rng.random()
        return Rain(density, angle, length, width, brightness, blur, cover, *_texture(rng, width))

    @staticmethod
    def near(rng: np.random.Generator) -> "Rain":
        """Near drops: 2 to 8 pixels wide, long, and they hide most of what is behind."""
        width = int(rng.choice([2, 2, 3, 3, 4, 5, 6, 8]))
        density, angle = log_uniform(rng, 0.2, 1.6) / width**0.5, rng.normal(0, 7)
        length, brightness = log_uniform(rng, 14, 140), rng.uniform(40, 250)
        blur, cover = rng.uniform(0.4, 0.25 * width + 0.4), rng.uniform(0.6, 1.0)
        texture = _texture(rng, width, most_uneven=1, spindles=0.4)
        return Rain(density, angle, length, width, brightness, blur, cover, *texture)

    @staticmethod
    def dense(rng: np.random.Generator) -> "Rain":
        """Heavy rain: many thin, bright streaks side by side, upright or slanting."""
        width = int(rng.choice([1, 1, 2, 2, 3]))
        density = log_uniform(rng, 0.8, 6) / width**0.7
        angle = rng.normal(0, 10) if rng.random() < 0.5 else rng.uniform(-35, 35)
        length, brightness = log_uniform(rng, 15, 70), rng.uniform(70, 240)
        blur, cover = rng.uniform(0.3, 1.0), rng.random() if rng.random() < 0.5 else 0.0
        return Rain(density, angle, length, width, brightness, blur, cover, *_texture(rng, width))


def _texture(
    rng: np.random.Generator, width: int, most_uneven: float = 0.8, spindles: float = 0.5
) -> tuple[float, int, bool]:
    """How uneven streaks of this width are, their grain, and whether they are spindles."""
    uneven, grain = rng.uniform(0, most_uneven), int(rng.choice(GRAINS))
    return uneven, grain, bool(width > 1 and rng.random() < spindles)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from low to high, as likely in one octave as in any other."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def subpixels(values: np.ndarray | list[float]) -> np.ndarray:
    """Coordinates as OpenCV takes them with a fraction, int32."""
    return np.rint(np.asarray(values) * 2**SUBPIXEL).astype(np.int32)


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
            centre, axes = subpixels([x, y]).tolist(), subpixels([rain.width / 2, half]).tolist()
            cv2.ellipse(layer, centre, axes, -np.rad2deg(tilt), 0, 360, strength, -1,
                        cv2.LINE_AA, SUBPIXEL)  # fmt: skip
        else:
            start, end = subpixels([x - dx, y - dy]), subpixels([x + dx, y + dy])
            cv2.line(layer, start.tolist(), end.tolist(), strength, rain.width, cv2.LINE_AA,
                     SUBPIXEL)  # fmt: skip
    added: np.ndarray = layer.astype(np.float32)
    if rain.blur > 0:
        added = cv2.GaussianBlur(added, (0, 0), rain.blur)
    if rain.uneven > 0:
        coarse = rng.random((height // rain.grain + 2, width // rain.grain + 2), np.float32)
        added *= 1 - rain.uneven * cv2.resize(coarse, (width, height))
    return added * (rain.brightness / 255)


def add_rain(clean: np.ndarray, rain: list[Rain], rng: np.random.Generator) -> np.ndarray:
    """Rainy image of a clean one, (H,W,3) uint8 each; looks in `rain` add up."""
    added = np.zeros(clean.shape, np.float32)
    for look in rain:
        light = streaks(len(clean), clean.shape[1], look, rng)[..., None]
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
