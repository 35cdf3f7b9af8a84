"""Tags of a video that mean something to players, and subtitles at once."""

from pathlib import Path

import av
import pytest
from video_cases import derain, make, with_subtitles


@pytest.mark.parametrize("target", ["out.webm", "out.mkv", "out.mp4"])
def test_transparency_beside_the_frames_is_reported_and_its_tag_dropped(run, unchanged, target):
    path = make("a.webm", "libvpx-vp9", stream_metadata={"alpha_mode": "1"})
    message = "its frames have transparency, which is left out"
    assert derain(run, path, target) == (0, [f"warning: a.webm: {message}"])
    with av.open(target) as file:
        assert "alpha_mode" not in map(str.lower, file.streams.video[0].metadata)


@pytest.mark.parametrize("target", ["out.mov", "out.mp4", "out.mkv"])
def test_a_timecode_stays_or_is_reported(run, unchanged, target):
    path = make("a.mov", stream_metadata={"timecode": "10:00:00:00"})
    with av.open(str(path)) as file:
        assert file.streams.data
    assert derain(run, path, target) == (0, [])
    assert timecode(target) == "10:00:00:00"
    message = "its timecode is left out: it is that of the first frame"
    assert derain(run, path, target, "--start", 3) == (0, [f"warning: a.mov: {message}"])
    assert timecode(target) is None


def timecode(path: str) -> str | None:
    with av.open(path) as file:
        message = {key.lower(): text for key, text in file.streams.video[0].metadata.items()}
    return message.get("timecode")


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "subrip"), (".mp4", "mov_text")])
def test_subtitles_at_the_same_moment_stay(run, unchanged, suffix, codec):
    path = with_subtitles(f"a{suffix}", codec, ((b"one", 80), (b"sign", 80), (b"two", 200)))
    assert derain(run, path, f"out{suffix}") == (0, [])
    assert lines(f"out{suffix}") == lines(path)
    assert all(line in b"".join(lines(path)) for line in (b"one", b"sign", b"two"))


def lines(path: str | Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(subtitles=0) if packet.size]
