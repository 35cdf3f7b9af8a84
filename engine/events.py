"""TensorBoardX event files, written in step with the run.

TensorBoardX's own SummaryWriter hands events to a thread, which dies silently where the disk is
full and then blocks the run for ever. Here an event is in the file when the call returns.
"""

import contextlib
import math
import os
import re
import secrets
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from settings import UserError
from system.reading import open_regular, read_bytes

EVENTS = "events.out.tfevents.*"
LAYOUT = "custom_scalars__config__"  # TensorBoard's own name for it


def new_run() -> str:
    """A name for a run, which its event files bear."""
    return secrets.token_hex(4)


class EventFile:
    """One new event file of a run in a folder, which is made where it is missing.

    Raises:
        UserError: from every method, where the file cannot be written.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self._open()

    def _open(self) -> None:
        self._writer: EventsWriter | None = None
        # Two runs that begin within a second must not share a file.
        ending = f".{time.time_ns()}.{self.run}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self.folder / "events"), ending)
            self._writer.flush()
        except OSError as error:
            raise self._failure(error) from None
        # By its own name: other runs make files here at the same time. One that somebody has
        # removed already is made anew by the next write.
        self.path = next(self.folder.glob(EVENTS + ending), self.folder / ending)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add scalars; those that are infinite or no number have no place on a curve."""
        found = {name: value for name, value in values.items() if math.isfinite(value)}
        self._write([summary.scalar(name, value) for name, value in found.items()], step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a picture, (H,W,3) uint8 BGR."""
        self._write([summary.image(name, image[..., ::-1], dataformats="HWC")], step)

    def hparams(self, values: dict[str, float | str | bool]) -> None:
        """Add the record of a run's settings, from which TensorBoard makes its table of runs."""
        experiment, start, _ = summary.hparams(values, {"loss/total": 0.0})
        self._write([experiment, start], 0)

    def layout(self, groups: dict[str, list[str]]) -> None:
        """Add the charts of TensorBoard's custom scalars: for each group, its curves.

        A chart shows its curve of all runs.
        """
        charts = {
            group: {curve: ["Multiline", [f"{re.escape(curve)}$"]] for curve in curves}
            for group, curves in groups.items()
        }
        self._write([summary.custom_scalars(charts)], 0)

    def sync(self) -> None:
        """Have what was written outlast a power failure."""
        # What fails here, the next write tells.
        with contextlib.suppress(OSError), open_regular(self.path) as file:
            os.fsync(file.fileno())

    def _write(self, summaries: list, step: int) -> None:
        if not self.path.exists():
            print(
                f"{self.path} was removed, and its events are lost; going on in a new file",
                file=sys.stderr,
            )
            self.close()
            self._open()
        try:
            for one in summaries:
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=one))
            self._writer.flush()
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"{self.folder}: events cannot be written: {error.strerror}")

    def discard(self) -> None:
        """Close the file and remove it."""
        self.close()
        with contextlib.suppress(OSError):  # as where its folder is a file by now
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer:
            with contextlib.suppress(OSError):  # told already, by the write that failed
                writer.close()


def forget_after(folder: Path, run: str, clock: int) -> None:
    """Cut a run's events of later steps than clock off its files in a folder, and broken tails.

    A run that was killed has written events of steps that its last checkpoint does not hold; the
    resumed run will write them anew. Raises UserError.
    """
    for path in sorted(folder.glob(f"{EVENTS}.{run}")):
        try:
            data = read_bytes(path)
            end = 0
            for event, end_of_record in _records(data):
                if event.step > clock:
                    break
                end = end_of_record
            if end < len(data):
                os.truncate(path, end)
        except OSError as error:
            raise UserError(f"{path}: cannot be read or cut: {error.strerror}") from None


def has_layout(folder: Path, run: str) -> bool:
    """Whether a run's event files in a folder hold a layout. Raises UserError."""
    try:
        return any(LAYOUT.encode() in read_bytes(p) for p in folder.glob(f"{EVENTS}.{run}"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The curves of a folder's event files: for each name, its value at each step."""
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob(EVENTS)):
        for event, _ in _records(read_bytes(path)):
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return curves


def _records(data: bytes) -> Iterator[tuple[Event, int]]:
    """(event, offset of its end) of each whole event of a file: length, its CRC, event, its CRC."""
    start = 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 16 + length
        if end > len(data):
            return
        try:
            event = Event.FromString(data[start + 12 : end - 4])
        except DecodeError:
            return
        yield event, end
        start = end
