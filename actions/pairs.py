"""The action `pairs`: paired patches, rainy and clean, and their lists, from rain videos.

Under the output folder, for scene 000, frame f of its video and a patch whose left top corner is at
x, y (Train_Dataset_README.md describes it to users):
    real_world/000/000-f/000-f_x_y.png   rainy patches     real_world_gt/000/000_x_y.png   clean
    real_test/..., real_test_gt/...      the same of held-out videos
    clean/000.png                        the clean image of the whole frame
    scenes/000.txt                       lines of the list and their number, when the scene is done
    real_world.txt, real_test.txt        the lists
    pairs.json                           the manifest: videos and settings that the set is made from
A scene that is done is not touched again, nor is a patch that exists: an interrupted run goes on.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from actions.clean import DEFAULT_FRAMES, compute_clean_image, load_video, write_image
from media.folders import split_by_suffix, walk_folder
from media.inspection import HIGH_MASK_SHARE, inspect_pixels
from media.jobs import VIDEOS
from media.pictures import read_image
from rain.frames import Video, read_video
from report.result_folder import open_result_folder
from report.visualize import encode_png
from settings import Settings, UserError, flag
from system.files import check_still_there, open_regular, read_bytes, write_atomically
from system.overlap import count_threads, map_threads
from system.progress import Progress, warn

SAMPLED_PAIRS = 64  # that the advice on training is computed from
# Settings that decide what a set holds.
MANIFEST_SETTINGS = (
    "start", "frames", "percentile", "frame_step", "patch_size", "test_patch_size", "test_share",
    "rain_level", "rain_share",
)  # fmt: skip
DAMAGED = ", of a damaged video"  # at the end of a scene's lines
Patch = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Scene:
    """A video of the set, under its number there."""

    name: str
    video: Path
    held_out: bool

    @property
    def kind(self) -> str:
        return "real_test" if self.held_out else "real_world"

    @property
    def chosen_image(self) -> Path | None:
        """A clean image that a person chose, beside the video."""
        path = self.video.with_suffix(".png")
        return path if path.is_file() and path != self.video else None


def pairs(settings: Settings) -> int:
    """Make the set of video or folder `-i` in folder `-o`.

    Returns the exit status: 2 if a video of the folder cannot be read and is left out, or one is
    damaged, or cut short, within the frames that are used.

    Raises:
        UserError: bad input, or output that cannot be written. Files written before stay, whole.
    """
    if not settings.input or not settings.output:
        raise UserError("-i and -o: expected a rain video or a folder of them, and a folder")
    folder = Path(settings.output)
    settings = replace(settings, frames=settings.frames or DEFAULT_FRAMES)
    videos = list_videos(Path(settings.only_input))
    # Tried before anything is written, as a set is tied to its videos.
    scenes = split_scenes(select_readable(videos, settings.start), settings.test_share)
    inputs = [path for scene in scenes for path in (scene.video, scene.chosen_image) if path]
    outputs = [folder / name for name in ("real_world.txt", "real_test.txt", "pairs.json")]
    outputs += [folder / "clean" / f"{scene.name}.png" for scene in scenes]
    incomplete = len(scenes) < len(videos)
    lines: dict[str, list[str]] = {"real_world": [], "real_test": []}
    with open_result_folder(folder, "-o", inputs=inputs, outputs=outputs, page=False):
        check_or_write_manifest(folder / "pairs.json", settings, scenes)
        for scene in scenes:
            path = folder / "scenes" / f"{scene.name}.txt"
            if path.is_file():
                scene_lines, complete = read_scene(path)
                print(f"{scene.name} {scene.video.name}: done before")
                if not complete:
                    warn(f"warning: {scene.video}: damaged or cut short; what can be read is used")
            else:
                scene_lines, complete = make_scene(folder, scene, settings)
                ending = f"# pairs: {len(scene_lines)}" + DAMAGED * (not complete)
                write_atomically(path, "".join([*scene_lines, f"{ending}\n"]).encode())
            lines[scene.kind] += scene_lines
            incomplete |= not complete
        for kind, kind_lines in lines.items():
            write_pair_list(folder / f"{kind}.txt", kind_lines)
        print_threshold_advice(folder, lines["real_world"], settings.rain_level)
    return 2 if incomplete else 0


def list_videos(path: Path) -> list[Path]:
    """A video, or those of a folder, by name. Raises UserError."""
    if path.is_file():
        return [path]
    _, _, names = next(walk_folder(path))  # the first are those of the folder itself
    videos = [path / name for name in split_by_suffix(names, VIDEOS)[0]]
    if not videos:
        raise UserError(f"{path}: holds no videos; expected {', '.join(sorted(VIDEOS))}")
    return videos


def select_readable(videos: list[Path], start: int) -> list[Path]:
    """The videos that have a frame at start, with a warning for each other.

    Raises:
        UserError: none has.
    """
    readable = []
    for video in videos:
        try:
            read_video(str(video), start, 1)
            readable.append(video)
        except UserError as error:
            if len(videos) == 1:
                raise
            warn(f"{error}; left out")
    if not readable:
        raise UserError(f"{videos[0].parent}: none of its {len(videos)} videos can be used")
    return readable


def split_scenes(videos: list[Path], test_share: float) -> list[Scene]:
    """The videos, numbered; those whose names have the lowest digests are held out."""
    count = round(test_share * len(videos))
    if 0 < test_share < 1 and len(videos) > 1:
        count = min(max(count, 1), len(videos) - 1)
    by_digest = sorted(videos, key=lambda file: hashlib.sha256(os.fsencode(file.name)).digest())
    held_out = set(by_digest[:count])
    scenes = [Scene(f"{i:03d}", video, video in held_out) for i, video in enumerate(videos)]
    images = [scene.chosen_image for scene in scenes if scene.chosen_image]
    for image in images:
        if images.count(image) > 1:
            raise UserError(f"{image}: of which video? Expected videos of different names")
    return scenes


def check_or_write_manifest(path: Path, settings: Settings, scenes: list[Scene]) -> None:
    """Record what the set is made from; refuse to go on with a set of other videos or settings."""
    manifest: dict[str, Any] = {name: getattr(settings, name) for name in MANIFEST_SETTINGS}
    manifest["videos"] = [
        {
            "name": scene.video.name,
            "sha256": digest_file(scene.video),
            "clean_sha256": digest_file(scene.chosen_image) if scene.chosen_image else None,
            "held_out": scene.held_out,
        }
        for scene in scenes
    ]
    if not path.exists():
        # The published set has files of the same names: never write among those of another set.
        for kind in ("real_world", "real_test", "clean", "scenes"):
            for other in (path.with_name(kind + suffix) for suffix in ("", ".txt", "_gt")):
                if other.exists():
                    raise UserError(f"{other}: is there already; choose another -o")
        write_atomically(path, (json.dumps(manifest, indent=2) + "\n").encode())
    try:
        recorded = dict(json.loads(read_bytes(path)))
    except (ValueError, TypeError):
        raise UserError(f"{path}: damaged; choose another -o") from None
    for name, value in manifest.items():
        if recorded.get(name) != value:
            difference = f"with {flag(name)} {recorded.get(name)}, this run has {value}"
            if name == "videos":
                difference = "from other videos, or other clean images beside them"
            raise UserError(f"{path}: the set was made {difference}; choose another -o")


def digest_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def make_scene(folder: Path, scene: Scene, settings: Settings) -> tuple[list[str], bool]:
    """Write a scene's patches; returns the lines of its pairs, and whether its video is whole."""
    video = load_video(str(scene.video), settings.start, settings.frames)
    clean = read_or_make_clean_image(folder, scene, settings, video)
    side = settings.test_patch_size if scene.held_out else settings.patch_size
    height, width, _ = clean.shape
    grid = [(rows, cols) for rows in cut_spans(height, side) for cols in cut_spans(width, side)]
    lines: list[str] = []

    def list_missing_patches() -> Iterator[tuple[Path, np.ndarray]]:
        listed = set()
        with Progress("frame", 0, video.shape[0], []) as progress:
            for index, frame in enumerate(video.frames()):
                progress.update(index, {})
                if index % settings.frame_step:
                    continue
                rainy = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
                for patch in grid:
                    if not has_rain(rainy[patch], clean[patch], settings):
                        continue
                    names = name_patches(scene, settings.start + index, patch)
                    lines.append("./{} ./{}\n".format(*names))
                    for name, image in zip(names, (rainy, clean), strict=True):
                        if name not in listed and not (folder / name).is_file():
                            listed.add(name)
                            yield folder / name, image[patch]

    def encode_patch(item: tuple[Path, np.ndarray]) -> tuple[Path, bytes]:
        return item[0], encode_png(np.ascontiguousarray(item[1]), str(item[0]))

    for path, png in map_threads(list_missing_patches(), encode_patch, count_threads()):
        write_atomically(path, png)
    total = len(grid) * len(range(0, video.shape[0], settings.frame_step))
    result = f"{len(lines)} of {total} patches hold rain"
    purpose = "testing" if scene.held_out else "training"
    print(f"{scene.name} {scene.video.name}: {result}, for {purpose}")
    return lines, not video.incomplete


def read_or_make_clean_image(
    folder: Path, scene: Scene, settings: Settings, video: Video
) -> np.ndarray:
    """The clean image (H,W,3) BGR of a scene: of a run before, chosen by a person, or computed."""
    saved = folder / "clean" / f"{scene.name}.png"
    path = saved if saved.is_file() else scene.chosen_image
    if not path:
        write_image(saved, compute_clean_image(video, settings).image)
    clean = read_image(path or saved, str(scene.video))
    if clean.shape != video.shape[1:]:
        size, video_size = (f"{shape[1]}x{shape[0]}" for shape in (clean.shape, video.shape[1:]))
        raise UserError(f"{path}: {size} pixels, its video has {video_size}")
    if path and path != saved:
        print(f"{scene.name} {scene.video.name}: with the clean image {path}")
        write_atomically(saved, encode_png(clean, str(saved)))
    return clean


def cut_spans(length: int, side: int) -> list[slice]:
    """Spans of `side` that cover `length`, evenly spaced; one span of all if that is shorter."""
    side = min(side, length)
    count = -(-length // side)
    starts = [round(index * (length - side) / max(1, count - 1)) for index in range(count)]
    return [slice(start, start + side) for start in starts]


def has_rain(rainy: np.ndarray, clean: np.ndarray, settings: Settings) -> bool:
    """Whether enough pixels are brighter than the clean image in every channel, as rain is."""
    brighter = cv2.subtract(rainy, clean).min(-1) > settings.rain_level
    return bool(brighter.mean() >= settings.rain_share)


def name_patches(scene: Scene, frame: int, patch: Patch) -> tuple[str, str]:
    """Of a rainy patch and of its clean one, which all frames share, under the set's folder."""
    (rows, columns), stem = patch, f"{scene.name}-{frame}"
    place = f"{columns.start}_{rows.start}.png"
    rainy = f"{scene.kind}/{scene.name}/{stem}/{stem}_{place}"
    return rainy, f"{scene.kind}_gt/{scene.name}/{scene.name}_{place}"


def read_scene(path: Path) -> tuple[list[str], bool]:
    """The lines of a scene's pairs, and whether its video is whole. Raises UserError."""
    *lines, ending = read_bytes(path).decode(errors="replace").splitlines(keepends=True) or [""]
    count = f"# pairs: {len(lines)}"
    if ending not in (f"{count}\n", f"{count}{DAMAGED}\n"):
        raise UserError(f"{path}: damaged; remove it, and the scene is looked through again")
    return lines, DAMAGED not in ending


def write_pair_list(path: Path, lines: list[str]) -> None:
    if not lines:
        print(f"{path}: not written, there are no pairs for it")
        return
    names = dict.fromkeys(name for line in lines for name in line.split())
    cure = "; remove the scene's file in scenes/, and it is looked through again"
    check_still_there([path.parent / name for name in names], "patches", cure)
    data = "".join(lines).encode()
    if not path.is_file() or read_bytes(path) != data:
        write_atomically(path, data)
    print(f"{path}: {len(lines)} pairs")


def print_threshold_advice(folder: Path, lines: list[str], level: int) -> None:
    """Say how to train on the pairs if camera noise would pass for rain in the mask label."""
    if not lines:
        return
    shares = []  # of the pixels that differ at all, and by more than `level`
    for line in lines[:: -(-len(lines) // SAMPLED_PAIRS)]:
        rainy, clean = (read_image(folder / name, str(folder)) for name in line.split())
        shares.append([inspect_pixels(rainy, clean, least).mask for least in (0, level)])
    differing, rain = np.mean(shares, 0)
    if differing > HIGH_MASK_SHARE:
        print(
            f"train with --mask-threshold {level}: in {len(shares)} pairs, rainy and clean differ "
            f"on {differing:.0%} of the pixels, by more than {level} grey levels on {rain:.0%}; "
            "the rest is noise, which the attention would take for rain"
        )
