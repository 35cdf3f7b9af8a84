"""Pictures without rain to put rain on: photographs of scikit-image or a folder, and drawn ones.

What is drawn is there to be left alone: rain is thin, bright and upright, and so are slats, window
frames, text, blades of grass, wires and the gleam along an edge.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from media.folders import walk_folder
from media.pictures import read_image
from rain.streaks import SUBPIXEL, draw_stroke, fill_ellipse, log_uniform, subpixels
from settings import UserError

LEAVES = 300  # shapes in a dead-leaves image
WORDS = "EXIT Rain 24h OPEN No.7 Hotel STOP Cafe 1984 Taxi P+R BUS Market Lane 35 km Bakery Gate"
FONTS = (0, 2, 3, 4, 6)  # of OpenCV: simplex, duplex, complex, triplex, script simplex

Rng = np.random.Generator


def photograph(name: str) -> np.ndarray:
    """A photograph of skimage.data by name, (H,W,3) uint8 BGR."""
    image = getattr(skimage.data, name)()
    image = image[0] if isinstance(image, tuple) else image
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)


def read_photographs(folder: Path) -> list[np.ndarray]:
    """All pictures of a folder, in the order of their names, (H,W,3) uint8 BGR each.

    Raises:
        UserError: it has none, or holds what is no opaque picture of 8 bits a channel.
        OSError: it cannot be listed.
    """
    paths = [folder / inner / name for inner, _, names in walk_folder(folder) for name in names]
    if not paths:
        raise UserError(f"--photographs: {folder} is empty; expected a folder of pictures")
    return [read_image(path, "--photographs") for path in paths]


def dead_leaves(height: int, width: int, rng: Rng) -> np.ndarray:
    """A dead-leaves image (height,width,3) uint8: ellipses and polygons, sizes by a power law.

    Such shapes, which cover one another, have the edges and scales of natural images.
    """
    base = rng.uniform(30, 220) + rng.normal(0, 20, 3)  # colours of one scene keep together
    spread, canvas = rng.uniform(10, 70), np.full((height, width, 3), base, np.float32)
    smallest, largest = rng.uniform(2, 12), float(max(height, width))
    for _ in range(LEAVES):
        u = rng.random()  # density of radii ~ r**-3 gives the scale invariance of natural images
        radius = (smallest**-2 + u * (largest**-2 - smallest**-2)) ** -0.5
        centre = rng.uniform((0, 0), (width, height))
        mask = np.zeros((height, width), np.uint8)
        if rng.random() < 0.5:
            axes = (np.rint(radius * rng.uniform(0.4, 1, 2)).astype(int) + 1).tolist()
            middle, turn = np.rint(centre).astype(int).tolist(), rng.uniform(0, 180)
            cv2.ellipse(mask, middle, axes, turn, 0, 360, 1, -1)
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
    soft = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9))
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def draw_scenes(
    side: int, rng: Rng, ground: np.ndarray | None = None, scene: "Scene | None" = None
) -> np.ndarray:
    """A drawing (side,side,3) uint8 of a scene, or of one or two of SCENES, on any ground."""
    canvas = _shaded(side, rng) if ground is None else ground.copy()
    scenes = np.array([scene])
    if scene is None:
        scenes = rng.choice(np.array(SCENES), rng.integers(1, 3), replace=False)
    for draw in scenes:
        draw(canvas, rng)
    soft = float(rng.choice([0, 0.4, 0.6, 1.0, 1.6]))
    return cv2.GaussianBlur(canvas, (0, 0), soft) if soft else canvas


def _shaded(side: int, rng: Rng) -> np.ndarray:
    """A smooth ground (side,side,3) uint8: a wall, a sky, a blurred distance."""
    corners = rng.uniform(0, 1, (2, 2, 1)) * rng.uniform(10, 120) + rng.uniform(5, 170)
    corners = corners + rng.normal(0, 12, (2, 2, 3))
    ground = cv2.resize(corners.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    grain = rng.normal(0, 1, (side, side, 1)) * rng.choice([0, 0, 1, 3])
    return np.clip(np.rint(ground + grain), 0, 255).astype(np.uint8)


def _colour(rng: Rng, ground: np.ndarray, bright: float = 0.7) -> np.ndarray:
    """A colour that stands out from the ground, brighter (as rain is) with that probability."""
    step = rng.uniform(15, 150) * (1 if rng.random() < bright else -1)
    return np.clip(ground.mean((0, 1)) + step + rng.normal(0, 12, 3), 0, 255)


def slats(canvas: np.ndarray, rng: Rng) -> None:
    """Upright bars, evenly apart: a fence, a blind, a front; many with an edge in another shade."""
    side, pitch = len(canvas), log_uniform(rng, 4, 60)
    width = max(1, round(pitch * rng.uniform(0.15, 0.75)))
    tilt, bend = rng.normal(0, 0.06), rng.normal(0, 0.15)
    top, bottom = (-5, side + 5) if rng.random() < 0.6 else np.sort(rng.uniform(-5, side + 5, 2))
    colour, uneven = _colour(rng, canvas), rng.choice([0, 0, 0.1])
    for x in np.arange(-side, 2 * side, pitch):
        x = x + rng.normal(0, uneven) * pitch
        lean = tilt + bend * (x - side / 2) / side
        line = [(x + lean * top, top), (x + lean * bottom, bottom)]
        shade = np.clip(colour + rng.normal(0, 6), 0, 255)
        draw_stroke(canvas, line, shade, width)
        if width > 3 and rng.random() < 0.7:
            edge = [(a + width / 2, b) for a, b in line]
            draw_stroke(canvas, edge, np.clip(shade + rng.uniform(-60, 60), 0, 255), 1)


def lattice(canvas: np.ndarray, rng: Rng) -> None:
    """Bars in two directions: window frames, mesh, tiles."""
    side, colour = len(canvas), _colour(rng, canvas, 0.6)
    width = int(log_uniform(rng, 1, 8))
    turn = 0.0 if rng.random() < 0.6 else rng.uniform(20, 70)
    for angle, pitch in ((turn, log_uniform(rng, 7, 70)), (turn + 90, log_uniform(rng, 7, 70))):
        along = np.array([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))])
        across = np.array([along[1], -along[0]])
        for shift in np.arange(-side, side, pitch) + rng.uniform(0, pitch):
            middle = side / 2 + across * shift
            draw_stroke(canvas, [middle - along * side, middle + along * side], colour, width)


def text(canvas: np.ndarray, rng: Rng) -> None:
    """Words in lines."""
    side, words = len(canvas), WORDS.split()
    font, scale = int(rng.choice(FONTS)), log_uniform(rng, 0.3, 2.5)
    colour, width = _colour(rng, canvas, 0.6), max(1, round(scale * rng.uniform(0.8, 2.5)))
    y = rng.uniform(0, 30 * scale)
    while y < side + 20:
        line = " ".join(rng.choice(words, 4))
        place = int(rng.uniform(-40, side / 3)), int(y)
        cv2.putText(canvas, line, place, font, scale, colour.tolist(), width, cv2.LINE_AA)
        y += rng.uniform(28, 45) * scale


def blades(canvas: np.ndarray, rng: Rng) -> None:
    """Grass, hair, twigs: many thin strokes that grow from below and bend."""
    side, lean, spread = len(canvas), rng.normal(0, 0.3), rng.uniform(0.05, 0.5)
    width, base = int(rng.choice([1, 1, 2, 3])), _colour(rng, canvas, 0.5)
    length = log_uniform(rng, 12, 100)
    for _ in range(int(log_uniform(rng, 20, 300))):
        x, y = rng.uniform(-20, side + 20), rng.uniform(0, side + length)
        slope, reach = lean + rng.normal(0, spread), length * rng.uniform(0.4, 1.2)
        steps = np.linspace(0, 1, 5)
        across = slope * steps + rng.normal(0, 0.2) * steps**2
        points = np.stack([x + reach * across, y - reach * steps], 1)
        colour = np.clip(base + rng.normal(0, 25) + rng.normal(0, 6, 3), 0, 255)
        draw_stroke(canvas, points, colour, width)


def wires(canvas: np.ndarray, rng: Rng) -> None:
    """A few long lines, thin and hanging, and upright ones such as poles and jets."""
    side, steps = len(canvas), np.linspace(-0.1, 1.1, 9)
    for _ in range(rng.integers(1, 7)):
        sag = rng.uniform(0, 0.2) * side
        start, end = rng.uniform(0, side, 2)
        if rng.random() < 0.5:
            height = start + (end - start) * steps + sag * 4 * steps * (1 - steps)
            points = np.stack([steps * side, height], 1)
        else:
            end = start + rng.normal(0, 0.15) * side
            points = np.stack([start + (end - start) * steps, steps * side], 1)
        draw_stroke(canvas, points, _colour(rng, canvas, 0.6), int(rng.choice([1, 1, 2, 3, 5])))


def gleams(canvas: np.ndarray, rng: Rng) -> None:
    """Pillars, pipes and panes: bands with a soft round shade and a bright thin line along them."""
    side = len(canvas)
    for _ in range(rng.integers(1, 4)):
        x, wide = rng.uniform(0, side), log_uniform(rng, 8, 60)
        across = (np.arange(side) - x) / (wide / 2)
        inside = (np.abs(across) < 1)[None, :, None]
        shade = np.sqrt(np.clip(1 - across**2, 0, 1))[None, :, None] * rng.uniform(20, 120)
        colour = _colour(rng, canvas, 0.5) * 0.6
        canvas[:] = np.where(inside, np.clip(colour + shade, 0, 255), canvas)
        where = x + rng.uniform(-0.6, 0.6) * wide / 2
        line = [(where, -5), (where + rng.normal(0, 1.5), side + 5)]
        bright = np.clip(colour + rng.uniform(60, 200), 0, 255)
        draw_stroke(canvas, line, bright, int(rng.choice([1, 1, 2, 3])))


def foliage(canvas: np.ndarray, rng: Rng) -> None:
    """Leaves with a lighter half and a bright rib, as they gleam when they are wet."""
    side, base, size = len(canvas), _colour(rng, canvas, 0.5), log_uniform(rng, 4, 30)
    slim, hang, light = rng.uniform(0.15, 0.6), rng.uniform(0, 180), rng.uniform(5, 90)
    for _ in range(int(min(2.5 * side**2 / (size**2 * slim * 3), 1500))):
        centre, half = rng.uniform(-5, side + 5, 2), size * rng.uniform(0.5, 1.5)
        turn, shade = hang + rng.normal(0, 40), base + rng.normal(0, 18) + rng.normal(0, 5, 3)
        for last, lighter in ((360, 0), (180, light * rng.random())):
            colour = np.clip(shade + lighter, 0, 255)
            fill_ellipse(canvas, centre, [half, slim * half], turn, colour, last)
        if rng.random() < 0.4:
            along = half * np.array([np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))])
            draw_stroke(canvas, [centre - along, centre + along], np.clip(shade + light, 0, 255), 1)


def fibres(canvas: np.ndarray, rng: Rng) -> None:
    """Wood, bark, cloth, stained walls: noise that is drawn out, mostly upright."""
    thin, long = log_uniform(rng, 0.5, 4), log_uniform(rng, 3, 40)
    noise = cv2.GaussianBlur(rng.normal(0, 1, canvas.shape[:2]), (0, 0), sigmaX=thin, sigmaY=long)
    noise = noise / (noise.std() + 1e-6)
    if rng.random() < 0.15:  # a few bright lines rather than as many dark ones
        noise = np.maximum(noise, 0) ** 2
    if rng.random() < 0.3:
        noise = noise.T
    strength = log_uniform(rng, 0.02, 0.35) * canvas.mean() + 2
    light = strength * noise[..., None] * rng.uniform(0.8, 1.2, 3)
    canvas[:] = np.clip(np.rint(canvas + light), 0, 255)


def fence(canvas: np.ndarray, rng: Rng) -> None:
    """Bars seen at a slant: ever narrower and closer, each with a lit and a shaded edge."""
    side, pitch = len(canvas), log_uniform(rng, 8, 50)
    x, closer, share = rng.uniform(-20, side / 3), rng.uniform(0.9, 0.99), rng.uniform(0.3, 0.8)
    colour, lit = _colour(rng, canvas, 0.6), rng.uniform(-70, 70)
    top, bottom = np.sort(rng.uniform(-0.3, 1.3, (2, 2)), 0) * side  # at the left and at the right
    while x < side and pitch > 2.5:
        for start, end, shade in ((0, 1, 0.0), (0, 0.25, lit), (0.75, 1, -lit / 2)):
            across = x + pitch * share * np.array([start, end])
            ends = [np.stack([across, np.interp(across, (0, side), y)], 1) for y in (top, bottom)]
            tone = np.clip(colour + shade, 0, 255).tolist()
            outline = subpixels(np.concatenate([ends[0], ends[1][::-1]]))
            cv2.fillPoly(canvas, [outline], tone, cv2.LINE_AA, SUBPIXEL)
        x, pitch = x + pitch, pitch * closer


def rims(canvas: np.ndarray, rng: Rng) -> None:
    """Cups, plates, wheels, handles: bright curved lines that water does not draw."""
    side = len(canvas)
    for _ in range(rng.integers(1, 5)):
        centre, colour = rng.uniform(-0.1, 1.1, 2) * side, _colour(rng, canvas)
        axes = log_uniform(rng, 0.06, 0.7) * side * np.array([1, rng.uniform(0.2, 1)])
        width, turn = int(rng.choice([1, 1, 2, 2, 3, 5])), rng.uniform(0, 6)
        for ring in range(rng.integers(1, 4)):
            round_ = turn + np.linspace(0, rng.uniform(0.5, 6.3), 32)
            points = centre + axes * 0.9**ring * np.stack([np.cos(round_), np.sin(round_)], 1)
            draw_stroke(canvas, points, np.clip(colour + rng.uniform(-30, 80), 0, 255), width)


def sparks(canvas: np.ndarray, rng: Rng) -> None:
    """Dots: stars, buds, gravel, gleams on what is wet, lamps out of focus."""
    side, size, base = len(canvas), log_uniform(rng, 0.5, 6), _colour(rng, canvas, 0.8)
    for _ in range(int(log_uniform(rng, 10, 250))):
        axes = size * rng.uniform(0.4, 1.6, 2)
        colour = np.clip(base + rng.normal(0, 30) + rng.normal(0, 8, 3), 0, 255)
        fill_ellipse(canvas, rng.uniform(0, side, 2), axes, 0, colour)


Scene = Callable[[np.ndarray, Rng], None]  # draws on a (side,side,3) uint8 image
DRY_SCENES: tuple[Scene, ...] = (slats, lattice, text, blades, wires, gleams)
# What stands there more than once is drawn as much more often, and at times over itself.
SCENES: tuple[Scene, ...] = (
    slats, lattice, lattice, *DRY_SCENES, foliage, foliage, fibres, fibres, fence, fence,
    rims, rims, sparks,
)  # fmt: skip
