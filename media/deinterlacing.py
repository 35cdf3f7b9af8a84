"""Interlaced frames made whole, by FFmpeg's own filter bwdif: as many frames, at the same times."""

from collections import deque
from collections.abc import Iterator

import av
from av.filter import Graph


class Deinterlacer:
    """Frames in, frames out, in order; those that are not interlaced stay as they are.

    Attributes:
        count: how many were interlaced.

    Raises:
        ValueError, av.error.FFmpegError: the filter cannot take frames of that size or format.
    """

    def __init__(self) -> None:
        self.count = 0
        self._graph: Graph | None = None
        self._within: deque[av.VideoFrame] = deque()  # frames that the filter still holds

    def push(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        if self._graph is None:
            if not frame.interlaced_frame:
                yield frame
                return
            self._graph = _graph(frame)
        self.count += frame.interlaced_frame
        self._within.append(frame)
        self._graph.push(frame)
        yield from self._ready()

    def flush(self) -> Iterator[av.VideoFrame]:
        if self._graph is not None:
            self._graph.push(None)
            yield from self._ready()

    def _ready(self) -> Iterator[av.VideoFrame]:
        while self._within:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            before = self._within.popleft()
            # The filter counts time in units of its own.
            frame.pts, frame.time_base = before.pts, before.time_base
            frame.duration = before.duration
            yield frame


def _graph(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    whole = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(whole)
    whole.link_to(sink)
    graph.configure()
    return graph
