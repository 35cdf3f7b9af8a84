"""The videos of the action `pairs`: which are used, their numbers, and which are held out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from media.jobs import VIDEOS
from rain.frames import read_video
from settings import UserError
from system.progress import warn


@dataclass(frozen=True)
class Scene:
    """One video of the set, and where its patches go."""

    number: int
    video: Path
    held_out: bool

    @property
    def chosen(self) -> Path | None:
        """A clean image that a person chose, beside the video."""
        path = self.video.with_suffix(".png")
        return path if path.is_file() and path != self.video else None

    @property
    def name(self) -> str:
        return f"{self.number:03d}"

    @property
    def kind(self) -> str:
        return "real_test" if self.held_out else "real_world"


def videos_of(name: str) -> list[Path]:
    """A video, or those of a folder, by name."""
    path = Path(name)
    if path.is_dir():
        videos = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in VIDEOS and file.is_file() and file.name[0] != "."
        )
        if not videos:
            raise UserError(f"{path}: holds no videos; expected {', '.join(sorted(VIDEOS))}")
    elif path.is_file():
        videos = [path]
    else:
        there = "not a regular file" if path.exists() else "no such video or folder"
        raise UserError(f"{path}: {there}")
    for file in videos:
        if file.name != file.name.encode(errors="replace").decode():
            raise UserError(f"{str(file)!r}: the name is not UTF-8 text; rename it")
    return videos


def scenes_of(videos: list[Path], share: float) -> list[Scene]:
    """The videos, numbered; those whose names have the lowest digests are held out."""
    count = round(share * len(videos))
    if 0 < share < 1 and len(videos) > 1:
        count = min(max(count, 1), len(videos) - 1)
    by_digest = sorted(videos, key=lambda file: hashlib.sha256(file.name.encode()).digest())
    held_out = set(by_digest[:count])
    scenes = [Scene(number, video, video in held_out) for number, video in enumerate(videos)]
    chosen: dict[Path, Path] = {}
    for scene in scenes:
        if scene.chosen and chosen.setdefault(scene.chosen, scene.video) != scene.video:
            raise UserError(
                f"{scene.chosen}: the clean image of {chosen[scene.chosen].name} or of "
                f"{scene.video.name}? Expected videos of different names"
            )
    return scenes


def readable(videos: list[Path], start: int) -> list[Path]:
    """The videos that have a frame at start; the others are told. Raises UserError: none has."""
    good = []
    for video in videos:
        try:
            read_video(str(video), start, 1)
            good.append(video)
        except UserError as error:
            if len(videos) == 1:
                raise
            warn(f"{error}; left out")
    if not good:
        raise UserError(f"{videos[0].parent}: none of its {len(videos)} videos can be used")
    return good
