"""TensorBoardX event files, written in step with the run.

TensorBoardX's own SummaryWriter hands events to a thread, which dies silently where the disk is
full and then blocks the run for ever. Here an event is in the file when the call returns.
"""

import contextlib
import math
import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from settings import UserError


class EventFile:
    """One new event file in a folder, which is made where it is missing.

    Raises:
        UserError: from every method, where the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Two runs that begin within a second must not share a file.
            self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        except OSError as error:
            raise self._failure(error) from None

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add scalars; those that are infinite or no number have no place on a curve."""
        found = {name: value for name, value in values.items() if math.isfinite(value)}
        self._write([summary.scalar(name, value) for name, value in found.items()], step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a picture, (H,W,3) uint8 BGR."""
        self._write([summary.image(name, image[..., ::-1], dataformats="HWC")], step)

    def _write(self, summaries: list, step: int) -> None:
        try:
            for one in summaries:
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=one))
            self._writer.flush()
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"{self.folder}: events cannot be written: {error.strerror}")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # told already, by the write that failed
            self._writer.close()
