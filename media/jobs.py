"""What to derain: the files that `-i` names, and where `-o` puts what is made of them."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from media.pictures import FORMATS
from media.video_writer import ENCODERS
from settings import UserError, one_line
from system.files import check_no_overlap, format_path

OTHER_VIDEOS = {
    ".3g2", ".3gp", ".asf", ".avi", ".dv", ".flv", ".h264", ".hevc", ".m2ts", ".mjpeg", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".wmv", ".y4m",
}  # fmt: skip
VIDEOS = set(ENCODERS) | OTHER_VIDEOS  # those of the second kind are written as Matroska
KNOWN = VIDEOS | set(FORMATS)
MOST_SUFFIXES = 8  # of files passed over that are named
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
        return self.source.suffix.lower() in VIDEOS


def plan_jobs(
    source_name: str, target_name: str, skip: str = ""
) -> tuple[list[Job], Path | None, str, list[str]]:
    """The files to derain, the folder of results, if there is one, a note and complaints.

    Folders called `skip` are passed over: they hold what an earlier run made for its page.

    Raises:
        UserError: nothing to derain, or a result would overwrite what one is made from.
    """
    if not source_name:
        raise UserError("-i: expected a picture, a video or a folder of them")
    if not target_name:
        raise UserError("-o: expected a file or a folder to write")
    source, target = Path(source_name), Path(target_name)
    is_file = _names_file(target_name)
    if source.is_dir():
        jobs, note, complaints = _plan_folder(source, target, is_file, skip)
        folder = target
    else:
        jobs, note, complaints = [_plan_file(source, target, is_file)], "", []
        folder = None if jobs[0].target == target else target
    check_no_overlap((job.source for job in jobs), (job.target for job in jobs), "-o")
    seen: dict[str, Job] = {}
    for job in jobs:
        real = os.path.realpath(job.target)
        if real in seen:
            raise UserError(f"-o: {job.target} would come from {seen[real].name} and {job.name}")
        seen[real] = job
    return jobs, folder, note, complaints


def _plan_folder(
    source: Path, target: Path, is_file: bool, skip: str
) -> tuple[list[Job], str, list[str]]:
    if target.exists() and not target.is_dir():
        raise UserError(f"-o: {target} is a file; expected a folder, as {source} is one")
    if target.exists() and target.samefile(source):
        raise UserError(f"-o: {target} is the input; expected another folder")
    if is_file:
        raise UserError(
            f"-o: {target} is the name of a file; expected a folder, as {source} is one "
            f"({target}{os.sep} makes a folder of that name)"
        )
    unread: list[OSError] = []
    files = list(_walk(source, target, skip, unread))
    found = [file for file in files if file.suffix.lower() in KNOWN and file.is_file()]
    complaints = [f"{error.filename}: cannot be read: {error.strerror}" for error in unread]
    if complaints and not found:
        raise UserError(complaints[0])
    if not found:
        raise UserError(
            f"{source}: none of its {len(files)} files is a picture or a video; expected "
            f"{', '.join(sorted(KNOWN))}"
        )
    others = Counter(file.suffix.lower() for file in files) - Counter(
        file.suffix.lower() for file in found
    )
    note = f"passed over, as of other kinds: {_counted(others)}" if others else ""
    names = [file.relative_to(source) for file in found]
    jobs = [
        Job(file, target / _video_name(name), format_path(name))
        for file, name in zip(found, names, strict=True)
    ]
    return jobs, note, complaints


def _counted(suffixes: Counter[str]) -> str:
    """How many files have each suffix, the most frequent first: `3 .txt, 1 .pdf`."""
    most = suffixes.most_common(MOST_SUFFIXES)
    told = [f"{count} {suffix or 'without a suffix'}" for suffix, count in most]
    rest = suffixes.total() - sum(count for _, count in most)
    return one_line(", ".join(told + [f"{rest} more"] * (rest > 0)))


def _plan_file(source: Path, target: Path, is_file: bool) -> Job:
    if not source.is_file():
        there = "not a regular file" if source.exists() else "no such file or folder"
        raise UserError(f"-i: {source}: {there}")
    suffix = source.suffix.lower()
    if suffix not in KNOWN:
        raise UserError(f"-i: {source}: expected one of {', '.join(sorted(KNOWN))}")
    writable = ENCODERS if suffix in VIDEOS else FORMATS
    if not is_file:
        target = target / _video_name(Path(source.name))
    elif target.suffix.lower() not in KNOWN:
        raise UserError(
            f"-o: {target}: cannot write {target.suffix} files; expected one of "
            f"{', '.join(writable)}, or a folder ({target}{os.sep} makes one of that name)"
        )
    if target.suffix.lower() not in writable:
        raise UserError(f"-o: {target}: expected one of {', '.join(writable)}, as {source} is")
    return Job(source, target, format_path(Path(source.name)))


def _walk(source: Path, target: Path, skip: str, unread: list[OSError]) -> Iterator[Path]:
    """Files under source in order, without hidden ones, those under target and those of a page."""
    for here, folders, files in os.walk(source, onerror=unread.append):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name != skip
            and not (target.exists() and (Path(here) / name).samefile(target))
        )
        yield from (Path(here) / name for name in sorted(files) if not name.startswith("."))


def _names_file(name: str) -> bool:
    """Whether `-o` names a file: no folder that is there, and no separator at the end."""
    suffix = Path(name).suffix.lower()
    return (
        (suffix in KNOWN or FILE_SUFFIX.fullmatch(suffix) is not None)
        and name[-1] not in (os.sep, os.altsep)
        and not Path(name).is_dir()
    )


def _video_name(path: Path) -> Path:
    return path.with_name(path.name + ".mkv") if path.suffix.lower() in OTHER_VIDEOS else path
