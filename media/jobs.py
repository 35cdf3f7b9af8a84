"""What to derain: the files that `-i` names, and where `-o` puts what is made of them."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from media.folders import describe_skipped, natural_order, split_by_suffix, walk_folder
from media.image_file import is_picture
from media.pictures import FORMATS
from media.video_reader import VideoReader
from media.video_writer import ENCODERS
from settings import UserError, as_tuple, first_few
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
    """One file to derain; its name is where it lies in the folder of input, or of results."""

    source: Path
    target: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.target.suffix.lower() in ENCODERS


def plan_jobs(
    source_names: str | Iterable[str], target_name: str
) -> tuple[list[Job], Path | None, str, list[str]]:
    """The files to derain, the folder of results if there is one, a note and error messages.

    The files of a folder keep their places in it. Of several inputs, each folder goes to a folder
    of its name, and all that the inputs name to one folder of results.

    Raises:
        UserError: nothing to derain, or a result would overwrite what one is made from.
    """
    sources = [Path(name) for name in as_tuple(source_names) if name]
    if not sources:
        raise UserError("-i: expected a picture, a video or a folder of them")
    if not target_name:
        raise UserError("-o: expected a file or a folder to write")
    target, is_several = Path(target_name), len(sources) > 1
    is_file = _names_file(target_name)
    jobs: list[Job] = []
    skipped: Counter[str] = Counter()
    errors: list[OSError] = []
    for source in sources:
        is_folder = source.is_dir()
        if (is_folder or is_several) and (is_file or (target.exists() and not target.is_dir())):
            reason = f"{source} is one" if not is_several else "-i names several inputs"
            raise UserError(
                f"-o: {target} is the name of a file; expected a folder, as {reason} "
                f"({target}{os.sep} makes a folder of that name)"
            )
        if not is_folder:
            jobs.append(_plan_file(source, target, is_file))
            continue
        if target.exists() and target.samefile(source):
            raise UserError(f"-o: {target} is the input; expected another folder")
        place = source.resolve().name if is_several else ""
        jobs += _plan_folder(source, target, place, skipped, errors)
    messages = [f"{error.filename}: cannot be read: {error.strerror}" for error in errors]
    if not jobs:
        none = f"none of its {skipped.total()} files is a picture or a video"
        reason = f"{first_few(sources)}: {none}; expected {SUPPORTED_TEXT}"
        raise UserError(messages[0] if messages else reason)
    folder = target if is_several or jobs[0].target != target else None
    check_no_overlap((job.source for job in jobs), (job.target for job in jobs), "-o")
    return jobs, folder, describe_skipped(skipped) if skipped else "", messages


def _names_file(name: str) -> bool:
    """Whether `-o` names a file: not an existing folder, and no separator at the end."""
    suffix = Path(name).suffix.lower()
    return (
        (suffix in SUPPORTED or FILE_SUFFIX.fullmatch(suffix) is not None)
        and name[-1] not in (os.sep, os.altsep)
        and not Path(name).is_dir()
    )


def _plan_folder(
    source: Path, target: Path, place: str, skipped: Counter[str], errors: list[OSError]
) -> list[Job]:
    """The files in a folder, but for those in the target, in natural order.

    Args:
        place: the folder of its results within the target.
        skipped: counts the suffixes of other files.
        errors: gets that of each folder in it that cannot be read.
    """
    jobs = []
    for inner, _, files in walk_folder(source, target, errors.append):
        names, others = split_by_suffix(files, SUPPORTED)
        skipped += others
        for name in (Path(inner, file) for file in names):
            result = target / place / _result_name(name, name.suffix.lower() in VIDEOS)
            jobs.append(Job(source / name, result, format_path(place / name)))
    return sorted(jobs, key=lambda job: [natural_order(part) for part in os.path.split(job.name)])


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
