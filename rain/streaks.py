"""Streaks of rain, drawn as light that is added to a clean image.

As in the real dataset, rain only brightens: rainy >= clean everywhere, and equal off the streaks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

SUBPIXEL = 4  # bits of the fraction of a pixel in OpenCV's coordinates

GRAINS = (2, 4, 8, 24)  # pixels; drops before a lens or a light are speckled, fine rain has gusts
STEPS = np.linspace(0, 1, 12)  # points of a curve

Numbers = np.ndarray | list
Colour = np.ndarray | float  # BGR, or a grey level
Shape = Literal["line", "spindle", "rope", "arc"]


@dataclass(frozen=True)
class Rain:
    """One look of rain.

    Attributes:
        density: streaks on 1000 pixels; of arcs, strands on 100 pixels of the edge.
        angle: mean tilt from the vertical, degrees; single streaks differ by a few.
        length: mean length, pixels; of arcs, how far they fall before they are quick.
        width: thickness, pixels, 1 or more.
        brightness: what the brightest streak adds, in grey levels of 255.
        blur: standard deviation of the Gaussian blur, pixels; 0 is none.
        cover: how far streaks hide what is behind them: 0 adds the same light everywhere, 1 draws
            nearer to white, and so adds less to what is bright already, channel by channel.
        uneven: how much of a streak's brightness varies along it, 0..1.
        grain: how large its lighter and darker parts are, pixels.
        shape: spindles narrow towards their ends, as near drops do. Ropes are near drops as a
            camera smears them: strands side by side, with soft ends. Arcs are water that is thrown
            off an edge, as of a roof: it curves, breaks, and falls on.
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
    shape: Shape = "line"


Range = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """Ranges that the rain of one kind is drawn from; all octaves of a range are equally likely.

    Attributes:
        widths: of which one is taken.
        density: as that of streaks 1 pixel wide; wider ones are fewer.
        length, brightness, cover, shapes: as in `Rain`.
        slanting: how often the rain tilts up to 42 degrees, and not a few; 0..1.
        blur: in widths of a streak, beside 0.3 pixels.
    """

    widths: tuple[int, ...]
    density: Range
    length: Range
    brightness: Range
    cover: Range = (0, 1)
    slanting: float = 0.0
    blur: Range = (0, 0.35)
    shapes: tuple[Shape, ...] = ("line", "spindle")

    def sample(self, rng: np.random.Generator, scale: float = 1.0) -> Rain:
        """Any such rain, nearer or farther; what gets thinner than a pixel is fainter instead."""
        width = scale * float(rng.choice(self.widths))
        slanting = rng.random() < self.slanting
        return Rain(
            density=log_uniform(rng, *self.density) / (width * scale**0.5),
            angle=rng.uniform(-42, 42) if slanting else rng.normal(0, 9),
            length=max(scale * log_uniform(rng, *self.length), 3 * width),  # dots are no rain
            width=max(1, round(width)),
            brightness=log_uniform(rng, *self.brightness) * min(1, width),
            blur=0.3 + width * rng.uniform(*self.blur),
            cover=rng.uniform(*self.cover),
            uneven=rng.uniform(0, 0.9),
            grain=int(rng.choice(GRAINS)),
            shape=self.shapes[rng.integers(len(self.shapes))],
        )


# fmt: off
LOOKS = {
    "faint": Look((1, 1, 2, 2, 3, 4, 5, 7), (0.1, 2), (10, 80), (4, 28)),
    "thin": Look((1, 1, 1, 2, 2, 3), (0.2, 6), (6, 60), (20, 150), slanting=0.3),
    "near": Look((2, 2, 3, 3, 4, 5, 6, 8), (0.4, 3.2), (14, 140), (40, 250), (0.4, 1), 0.1,
                 shapes=("line", "spindle", "rope", "rope")),
    "dense": Look((1, 1, 2, 2, 3), (1, 7), (15, 70), (80, 240), slanting=0.5),
    "fine": Look((1,), (2.5, 13), (5, 26), (12, 110), slanting=0.3),  # and very many
    # Water off an edge, to one side or straight down.
    "arc": Look((1, 2, 2, 3, 4), (4, 20), (50, 260), (60, 240), (0.4, 1), 1, shapes=("arc",)),
    # Mist, and drops so near that they are broad faint beams.
    "veil": Look((7, 10, 15, 22, 32, 45), (1, 5), (30, 300), (8, 60), (0.3, 1), 0, (0.1, 0.25),
                 ("spindle",)),
}
# fmt: on


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from low to high, as likely in one octave as in any other."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def subpixels(values: Numbers) -> np.ndarray:
    """Coordinates as OpenCV takes them with a fraction, int32."""
    return np.rint(np.asarray(values) * 2**SUBPIXEL).astype(np.int32)


def draw_stroke(image: np.ndarray, points: Numbers, colour: Colour, width: int) -> None:
    """Draw a line from point to point, (x,y) each."""
    value = np.asarray(colour).tolist()
    cv2.polylines(image, [subpixels(points)], False, value, width, cv2.LINE_AA, SUBPIXEL)


def fill_ellipse(
    image: np.ndarray, centre: Numbers, axes: Numbers, turn: float, colour: Colour, end: int = 360
) -> None:
    """Fill an ellipse of half axes about (x,y), or its part from 0 to end; angles in degrees."""
    place, size, value = subpixels(centre).tolist(), subpixels(axes).tolist(), np.asarray(colour)
    cv2.ellipse(image, place, size, turn, 0, end, value.tolist(), -1, cv2.LINE_AA, SUBPIXEL)


def streaks(height: int, width: int, rain: Rain, rng: np.random.Generator) -> np.ndarray:
    """What rain adds to an image: (height,width) float32, grey levels >= 0, 0 off the streaks."""
    layer = np.zeros((height, width), np.uint8)
    (_draw_arcs if rain.shape == "arc" else _draw_streaks)(layer, rain, rng)
    added: np.ndarray = layer.astype(np.float32)
    if rain.blur > 0:
        added = cv2.GaussianBlur(added, (0, 0), rain.blur)
    if rain.uneven > 0:
        coarse = rng.random((height // rain.grain + 2, width // rain.grain + 2), np.float32)
        added *= 1 - rain.uneven * cv2.resize(coarse, (width, height))
    return added * (rain.brightness / 255)


def _draw_streaks(layer: np.ndarray, rain: Rain, rng: np.random.Generator) -> None:
    """Draw streaks all over a layer (H,W) uint8, each in a strength of its own."""
    height, width = layer.shape
    margin = int(2 * rain.length) + 2  # streaks that begin outside the image reach into it
    area = (height + 2 * margin) * (width + 2 * margin)
    for _ in range(rng.poisson(rain.density * area / 1000)):
        x = rng.uniform(-margin, width + margin)
        y = rng.uniform(-margin, height + margin)
        tilt = np.deg2rad(rain.angle + rng.normal(0, 2))
        half = rain.length * rng.uniform(0.5, 1.5) / 2
        dx, dy = half * np.sin(tilt), half * np.cos(tilt)
        strength = int(rng.uniform(0.3, 1) * 255)
        if rain.shape == "spindle":
            fill_ellipse(layer, [x, y], [rain.width / 2, half], -np.rad2deg(tilt), strength)
        elif rain.shape == "rope":
            along, bend = 2 * STEPS - 1, rng.normal(0, 0.04) * half * STEPS**2
            curve = np.stack([x + dx * along + bend, y + dy * along], 1)
            _draw_rope(layer, curve, rain.width * rng.uniform(0.4, 1.3), strength, rng)
        else:
            draw_stroke(layer, [(x - dx, y - dy), (x + dx, y + dy)], strength, rain.width)


def _draw_arcs(layer: np.ndarray, rain: Rain, rng: np.random.Generator) -> None:
    """Draw the strands of one edge: a parabola each, whole at first, then in pieces."""
    start = rng.uniform((-0.2, -0.15), (0.7, 0.5)) * layer.shape[::-1]
    slope = np.tan(np.deg2rad(rng.normal(0, 20)))
    for _ in range(rng.integers(1, 12)):
        start = start + rng.uniform(40, 160) / rain.density * np.array([1, slope])
        fall, strength = rain.length * rng.uniform(0.7, 1.3), rng.uniform(130, 255)
        reach = fall * np.tan(np.deg2rad(rain.angle)) * rng.uniform(0.6, 1.2)
        rise, time, piece = fall * rng.uniform(0, 0.4), 0.0, rng.uniform(0.3, 1.1)
        while time < 2:
            times = time + piece * STEPS
            curve = start + np.stack([reach * times, (fall * times - rise) * times], 1)
            _draw_rope(layer, curve, rain.width * rng.uniform(0.7, 1.8), strength, rng)
            time += piece + rng.exponential(0.1)
            piece, strength = rng.uniform(0.02, 0.25), strength * rng.uniform(0.7, 1)


def _draw_rope(
    layer: np.ndarray, curve: np.ndarray, width: float, strength: float, rng: np.random.Generator
) -> None:
    """Draw strands of water side by side along a curve, (n,2) x and y; both ends are soft."""
    along = curve[-1] - curve[0]
    across = np.array([along[1], -along[0]]) / (np.hypot(*along) + 1e-6)
    count = int(np.clip(width / 1.3, 1, 7))
    thick, hollow = max(1, round(1.5 * width / count)), rng.random() < 0.25
    for level in np.sort(rng.uniform(0.3, 1, count)):  # bright strands over dim ones
        aside = rng.uniform(-0.5, 0.5)
        aside = np.sign(aside) * 0.45 if hollow and count > 2 else aside  # two bright edges
        first, last = rng.integers(0, len(curve) // 3, 2) if count > 1 else (0, 0)
        strand = (curve + across * aside * (width - thick))[first : len(curve) - last]
        for cut, part in enumerate((0.4, 0.7, 1)):  # it fades towards its ends
            points, wide = strand[cut : len(strand) - cut], max(1, thick + cut // 2 - 1)
            draw_stroke(layer, points, strength * level * part, wide)


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
