"""TensorBoard event files, written in step with the run.

The SummaryWriter of tensorboardX hands events to a thread, which dies silently if the disk is full
and then blocks the run for ever. Here an event is on the disk when the call returns.
"""

import contextlib
import math
import platform
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from settings import UserError
from system.progress import warn

LAYOUT = "custom_scalars__config__"  # TensorBoard's name for the layout of charts
EVENTS = "events.out.tfevents."  # how the name of an event file begins, before the seconds of Unix


class EventFile:
    """A new event file in a folder, which is created if it is missing.

    Args:
        purge_step: the first step that will be written. Readers drop what earlier files of the
            folder hold of this step and later ones. None: they drop nothing.

    Raises:
        UserError, OSError: from every method, if the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder = folder
        self._open()
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write([Event(wall_time=time.time(), step=purge_step, session_log=start)])

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Readers sort files by name: this one comes last even if the clock was set back.
        names = [path.name.removeprefix(EVENTS) for path in self.folder.glob(f"{EVENTS}*")]
        stamps = [int(match[0]) + 1 for name in names if (match := re.match(r"\d+", name))]
        seconds = max([int(time.time()), *stamps])
        # Two runs that begin within a second must not share a file.
        ending = f"{seconds:010}.{platform.node()}.{secrets.token_hex(4)}"
        self.path = self.folder / f"{EVENTS}{ending}"
        self._writer = RecordWriter(str(self.path))
        self._write([Event(wall_time=time.time(), file_version="brain.Event:2")])

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add scalars; those that are infinite or not a number have no place on a curve."""
        finite = [item for item in values.items() if math.isfinite(item[1])]
        self._add([summary.scalar(name, value) for name, value in finite], step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a picture, (H,W,3) uint8 BGR."""
        self._add([summary.image(name, image[..., ::-1], dataformats="HWC")], step)

    def histogram(self, name: str, values: Iterable[float], step: int) -> None:
        """Add the distribution of the finite ones among the values, if there are any."""
        finite = np.array([value for value in values if math.isfinite(value)])
        self._add([summary.histogram(name, finite, 30)] if finite.size else [], step)

    def hparams(self, values: dict[str, float | str | bool], step: int) -> None:
        """Add the record of a run's settings, from which TensorBoard makes its table of runs."""
        experiment, start, _ = summary.hparams(values, {"loss/total": 0.0})
        self._add([experiment, start], step)

    def layout(self, groups: dict[str, list[str]], step: int) -> None:
        """Add the charts of TensorBoard's custom scalars: for each group, its curves.

        A chart shows its curve of all runs.
        """
        charts = {
            group: {curve: ["Multiline", [f"{re.escape(curve)}$"]] for curve in curves}
            for group, curves in groups.items()
        }
        self._add([summary.custom_scalars(charts)], step)

    def _add(self, summaries: Iterable[Summary], step: int) -> None:
        if not self.path.exists():
            warn(f"{self.path} was removed, and its events are lost; going on in a new file")
            self.close()
            self._open()
        now = time.time()
        self._write([Event(wall_time=now, step=step, summary=one) for one in summaries])

    def _write(self, events: list[Event]) -> None:
        """Write events to the disk: they outlast a power failure."""
        try:
            for event in events:
                self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            reason = f"events cannot be written: {error.strerror}"
            raise UserError(f"{self.folder}: {reason}") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the write that failed has reported it
            self._writer.close()
