"""What to derain: the files that `-i` names, and where `-o` puts what is made of them."""

import contextlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from media.folders import describe_skipped, split_by_suffix, walk_folder
from media.image_file import is_picture
from media.pictures import FORMATS
from media.video_reader import VideoReader
from media.video_writer import ENCODERS
from settings import UserError
from system.files import check_no_overlap, format_path

OTHER_VIDEOS = {
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264",
    ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".mjpeg", ".mjpg", ".mk3d", ".mpe",
    ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts",
    ".vob", ".wmv", ".y4m",
}  # fmt: skip
VIDEOS = set(ENCODERS) | OTHER_VIDEOS  # the latter are written as Matroska
SUPPORTED = VIDEOS | set(FORMATS)
SUPPORTED_TEXT = ", ".join(sorted(SUPPORTED))
# What makes a name that of a file: a letter, and one to four more letters or digits, after the last
# dot. `results-1.5` and `rain.d` are names of folders.
FILE_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{1,4}")


@dataclass(frozen=True)
class Job:
    """One file to derain; its name is the path within the folder of input."""

    source: Path
    target: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.target.suffix.lower() in ENCODERS


def plan_jobs(source_name: str, target_name: str) -> tuple[list[Job], Path | None, str, list[str]]:
    """The files to derain, the folder of results if there is one, a note and error messages.

    Raises:
        UserError: nothing to derain, or a result would overwrite what one is made from.
    """
    if not source_name:
        raise UserError("-i: expected a picture, a video or a folder of them")
    if not target_name:
        raise UserError("-o: expected a file or a folder to write")
    source, target = Path(source_name), Path(target_name)
    is_file = _names_file(target_name)
    folder: Path | None = target
    if source.is_dir():
        if is_file or (target.exists() and not target.is_dir()):
            raise UserError(
                f"-o: {target} is the name of a file; expected a folder, as {source} is one "
                f"({target}{os.sep} makes a folder of that name)"
            )
        if target.exists() and target.samefile(source):
            raise UserError(f"-o: {target} is the input; expected another folder")
        jobs, note, errors = _plan_folder(source, target)
    else:
        jobs, note, errors = [_plan_file(source, target, is_file)], "", []
        folder = target if jobs[0].target != target else None
    check_no_overlap((job.source for job in jobs), (job.target for job in jobs), "-o")
    return jobs, folder, note, errors


def _names_file(name: str) -> bool:
    """Whether `-o` names a file: not an existing folder, and no separator at the end."""
    suffix = Path(name).suffix.lower()
    return (
        (suffix in SUPPORTED or FILE_SUFFIX.fullmatch(suffix) is not None)
        and name[-1] not in (os.sep, os.altsep)
        and not Path(name).is_dir()
    )


def _plan_folder(source: Path, target: Path) -> tuple[list[Job], str, list[str]]:
    """The files in a folder, but for those in the target, a note and error messages."""
    jobs: list[Job] = []
    skipped: Counter[str] = Counter()
    errors: list[OSError] = []
    for inner, _, files in walk_folder(source, target, errors.append):
        names, others = split_by_suffix(files, SUPPORTED)
        skipped += others
        for name in (Path(inner, file) for file in names):
            result = target / _result_name(name, name.suffix.lower() in VIDEOS)
            jobs.append(Job(source / name, result, format_path(name)))
    messages = [f"{error.filename}: cannot be read: {error.strerror}" for error in errors]
    if not jobs:
        none = f"none of its {skipped.total()} files is a picture or a video"
        reason = f"{source}: {none}; expected {SUPPORTED_TEXT}"
        raise UserError(messages[0] if messages else reason)
    return jobs, describe_skipped(skipped) if skipped else "", messages


def _plan_file(source: Path, target: Path, is_file: bool) -> Job:
    if not source.is_file():
        reason = "not a regular file" if source.exists() else "no such file or folder"
        raise UserError(f"-i: {source}: {reason}")
    suffix = source.suffix.lower()
    is_video = not is_picture(source) and suffix not in FORMATS
    if is_video and suffix not in VIDEOS and not _holds_video(source):
        raise UserError(
            f"-i: {source}: neither picture nor video; expected one of {SUPPORTED_TEXT}"
        )
    writable = ENCODERS if is_video else FORMATS
    if not is_file:
        target = target / _result_name(Path(source.name), is_video)
    elif target.suffix.lower() not in writable:
        raise UserError(
            f"-o: {target}: cannot write {source} as {target.suffix}; expected one of "
            f"{', '.join(writable)}, or a folder ({target}{os.sep} makes one of that name)"
        )
    return Job(source, target, format_path(Path(source.name)))


def _holds_video(path: Path) -> bool:
    """Whether a file can be read as a video, and is none of FFmpeg's kinds of single pictures."""
    with contextlib.suppress(UserError), contextlib.closing(VideoReader(path)) as reader:
        return not reader.container.format.name.endswith("_pipe")
    return False


def _result_name(path: Path, is_video: bool) -> Path:
    writable, default = (ENCODERS, ".mkv") if is_video else (FORMATS, ".png")
    return path if path.suffix.lower() in writable else path.with_name(path.name + default)
