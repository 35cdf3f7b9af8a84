"""The action `pairs`: paired patches, rainy and clean, and their lists, from rain videos.

Under the output folder, for scene 000, frame f of its video and a patch whose left top corner is at
x, y (Train_Dataset_README.md describes it to users):
    real_world/000/000-f/000-f_x_y.png   rainy patches     real_world_gt/000/000_x_y.png   clean
    real_test/..., real_test_gt/...      the same of held-out videos
    clean/000.png                        the clean image of the whole frame
    scenes/000.txt                       lines of the list and their number, when the scene is done
    real_world.txt, real_test.txt        the lists
    pairs.json                           what the set was made from, and by which settings
A scene that is done is not touched again, nor is a patch that is there: an interrupted run goes on.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from actions.clean import make_clean, of_frames, open_video
from actions.scenes import Scene, readable, scenes_of, videos_of
from media.pictures import read_image
from rain.frames import Video
from report.result_folder import open_result_folder
from report.visualize import encode_png
from settings import Settings, UserError
from system.files import check_still_there, write_atomically
from system.machine import count_cores
from system.progress import Progress, warn
from system.reading import open_regular, read_bytes

CURE = "; remove the scene's file in scenes/, and it is looked through again"
SAMPLE = 64  # pairs that are looked at for advice on training
NOISY = 0.6  # share of differing pixels above which the mask label says little about rain
# Settings that decide what a set holds.
DECISIVE = (
    "start", "frames", "percentile", "frame_step", "patch_size", "test_patch_size", "test_share",
    "rain_level", "rain_share",
)  # fmt: skip


def pairs(settings: Settings) -> int:
    """Make the set of video or folder `-i` in folder `-o`.

    Returns the exit status: 2 where a video of the folder cannot be read and is left out, or one is
    damaged, or cut short, within the frames that are used.

    Raises:
        UserError: bad input, or output that cannot be written. What was made before stays, whole.
    """
    if not settings.input or not settings.output:
        raise UserError(
            "-i and -o: expected a rain video or a folder of them, and a folder to fill"
        )
    folder, settings = Path(settings.output), of_frames(settings)
    videos = videos_of(settings.input)
    good = readable(videos, settings.start)  # before anything is written: a set is tied to those
    scenes = scenes_of(good, settings.test_share)
    read = [path for scene in scenes for path in (scene.video, scene.chosen) if path]
    written = [folder / f"{name}.txt" for name in ("real_world", "real_test")]
    written += [folder / "clean" / f"{scene.name}.png" for scene in scenes]
    written.append(folder / "pairs.json")
    with open_result_folder(folder, "-o", inputs=read, outputs=written, page=False):
        incomplete = _make_set(settings, folder, scenes)
    return 2 if incomplete or len(good) < len(videos) else 0


def _make_set(settings: Settings, folder: Path, scenes: list[Scene]) -> bool:
    """Make what is not there yet. Returns whether a video was damaged or cut short."""
    _settle(folder / "pairs.json", settings, scenes)
    incomplete = False
    for scene in scenes:
        part = folder / "scenes" / f"{scene.name}.txt"
        if part.is_file():
            _, whole = _read_part(part)
            print(f"{scene.name} {scene.video.name}: done before")
            if not whole:
                warn(f"warning: {scene.video}: damaged or cut short; what could be read is used")
        else:
            lines, whole = _make_scene(folder, scene, settings)
            write_atomically(part, "".join([*lines, _ending(len(lines), whole)]).encode())
        incomplete |= not whole
    for kind in ("real_world", "real_test"):
        parts = [folder / "scenes" / f"{scene.name}.txt" for scene in scenes if scene.kind == kind]
        _write_list(folder / f"{kind}.txt", [_read_part(part)[0] for part in parts])
    _advise(folder / "real_world.txt", settings.rain_level)
    return incomplete


def _digest(path: Path | None) -> str | None:
    """SHA-256 of a file, in hexadecimal."""
    if path is None:
        return None
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _settle(path: Path, settings: Settings, scenes: list[Scene]) -> None:
    """Record what the set is made from; refuse to go on with a set that was made otherwise."""
    wanted = {name: getattr(settings, name) for name in DECISIVE}
    wanted["videos"] = [
        {
            "name": scene.video.name,
            "sha256": _digest(scene.video),
            "clean_sha256": _digest(scene.chosen),
            "held_out": scene.held_out,
        }
        for scene in scenes
    ]
    if path.exists():
        found = _read_record(path)
        different = [name for name in wanted if found.get(name) != wanted[name]]
        if "videos" in different:
            raise UserError(
                f"{path}: the set was made from other videos, or other clean images beside them; "
                "choose another -o"
            )
        if different:
            name = different[0]
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{path}: the set was made with {flag} {found.get(name)}, this run has "
                f"{wanted[name]}; choose another -o"
            )
    else:
        # The published set has files of the same names: never among those of another set.
        for name in ("real_world", "real_test", "clean", "scenes"):
            for found in (name, f"{name}.txt", f"{name}_gt"):
                if (path.parent / found).exists():
                    raise UserError(f"{path.parent / found}: is there already; choose another -o")
        write_atomically(path, (json.dumps(wanted, indent=2) + "\n").encode())


def _read_record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # the latter: lists in lists in lists
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged; choose another -o")
    return found


def _make_scene(folder: Path, scene: Scene, settings: Settings) -> tuple[list[str], bool]:
    """Write a scene's patches; returns the lines of its pairs, and whether its video is whole."""
    video = open_video(str(scene.video), settings.start, settings.frames)
    clean = _clean_frame(folder, scene, settings, video)
    side = settings.test_patch_size if scene.held_out else settings.patch_size
    places = _grid(*clean.shape[:2], side)
    kept, seen = [], 0
    with (
        ThreadPoolExecutor(count_cores()) as pool,
        Progress("frame", 0, video.shape[0], []) as progress,
    ):
        for index, frame in enumerate(video.frames()):
            progress.update(index, {})
            if index % settings.frame_step:
                continue
            seen += len(places)
            rainy = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            found = [
                place
                for place in places
                if _holds_rain(rainy[place.cut], clean[place.cut], settings)
            ]
            names = [_names(scene, settings.start + index, place) for place in found]
            wanted = {
                folder / name: image[place.cut]
                for place, pair in zip(found, names, strict=True)
                for name, image in zip(pair, (rainy, clean), strict=True)
                if not (folder / name).is_file()
            }
            for path, data in zip(wanted, pool.map(_encode, wanted.items()), strict=True):
                write_atomically(path, data)
            kept += [f"./{rainy_name} ./{clean_name}\n" for rainy_name, clean_name in names]
    print(
        f"{scene.name} {scene.video.name}: {len(kept)} of {seen} patches hold rain, "
        f"for {'testing' if scene.held_out else 'training'}"
    )
    return kept, not video.incomplete


def _ending(count: int, whole: bool) -> str:
    return f"# pairs: {count}{'' if whole else ', of a damaged video'}\n"


def _read_part(path: Path) -> tuple[str, bool]:
    """The lines of a scene's pairs, all of them, and whether its video is whole."""
    text = read_bytes(path).decode(errors="replace")
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    endings = [_ending(len(lines) - 1, whole) for whole in (False, True)]
    if not lines or lines[-1] not in endings:
        raise UserError(f"{path}: damaged; remove it, and the scene is looked through again")
    return "".join(lines[:-1]), lines[-1] == endings[True]


def _clean_frame(folder: Path, scene: Scene, settings: Settings, video: Video) -> np.ndarray:
    """The clean image (H,W,3) BGR of a scene: made before, chosen by a person, or made now."""
    saved = folder / "clean" / f"{scene.name}.png"
    path = saved if saved.is_file() else scene.chosen
    if path:
        clean = read_image(path, str(scene.video))
        if clean.shape != video.shape[1:]:
            raise UserError(
                f"{path}: {clean.shape[1]}x{clean.shape[0]} pixels, its video has "
                f"{video.shape[2]}x{video.shape[1]}"
            )
    else:
        clean = cv2.cvtColor(make_clean(video, settings).image, cv2.COLOR_RGB2BGR)
    if path != saved:
        if path:
            print(f"{scene.name} {scene.video.name}: with the clean image {path}")
        write_atomically(saved, encode_png(clean, str(saved)))
    return clean


@dataclass(frozen=True)
class _Place:
    x: int
    y: int
    cut: tuple[slice, slice]


def _grid(height: int, width: int, side: int) -> list[_Place]:
    """Squares of that side that cover an image, evenly spaced; smaller where the image is."""
    h, w = min(side, height), min(side, width)
    tops, lefts = _starts(height, h), _starts(width, w)
    return [_Place(x, y, (slice(y, y + h), slice(x, x + w))) for y in tops for x in lefts]


def _starts(length: int, side: int) -> list[int]:
    count = -(-length // side)
    return [round(index * (length - side) / max(1, count - 1)) for index in range(count)]


def _holds_rain(rainy: np.ndarray, clean: np.ndarray, settings: Settings) -> bool:
    """Whether enough pixels are brighter than the clean image in every channel, as rain is."""
    brighter = cv2.subtract(rainy, clean).min(-1) > settings.rain_level
    return bool(brighter.mean() >= settings.rain_share)


def _names(scene: Scene, frame: int, place: _Place) -> tuple[str, str]:
    """Of a rainy patch and of its clean one, which all frames share, under the set's folder."""
    own, at = f"{scene.name}-{frame}", f"{place.x}_{place.y}.png"
    return (
        f"{scene.kind}/{scene.name}/{own}/{own}_{at}",
        f"{scene.kind}_gt/{scene.name}/{scene.name}_{at}",
    )


def _encode(item: tuple[Path, np.ndarray]) -> bytes:
    path, image = item
    return encode_png(np.ascontiguousarray(image), str(path))


def _write_list(path: Path, parts: list[str]) -> None:
    text = "".join(parts)
    count = text.count("\n")
    if not count:
        print(f"{path}: not written, there are no pairs for it")
        return
    named = dict.fromkeys(name for line in text.splitlines() for name in line.split())
    check_still_there([path.parent / name for name in named], "patches", CURE)
    if not path.is_file() or read_bytes(path) != text.encode():
        write_atomically(path, text.encode())
    print(f"{path}: {count} pairs")


def _advise(path: Path, level: int) -> None:
    """Say how to train on the list where camera noise would pass for rain in the mask label."""
    lines = read_bytes(path).decode().splitlines() if path.is_file() else []
    shares = []  # of the pixels that differ at all, and by more than `level`
    for line in lines[:: -(-len(lines) // SAMPLE) or 1]:
        rainy, clean = (read_image(path.parent / name, str(path)) for name in line.split())
        apart = cv2.absdiff(rainy, clean).max(-1)
        shares.append([(apart > least).mean() for least in (0, level)])
    if not shares:
        return
    differ, rain = np.mean(shares, 0)
    if differ > NOISY:
        print(
            f"train with --mask-threshold {level}: in a sample of {len(shares)} pairs, rainy and "
            f"clean differ on {differ:.0%} of the pixels, by more than {level} grey levels on "
            f"{rain:.0%}; the rest is noise of the camera or of its compression, which the "
            "attention would take for rain"
        )
