"""When the frames of a derained video are shown: whatever single times are wrong."""

from pathlib import Path

import av
import numpy as np
import pytest
from test_videos import sound, write_video
from video_cases import derain, make, read, remux

# One bad time


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("ahead", [-1, 75])
def test_one_bad_time_spoils_no_other(run, unchanged, codec, ahead):
    # Uneven, so that times made up behind the bad one would show.
    slots = [*range(20), *range(30, 40), *range(42, 62)]
    make("a.ts", codec, 50, slots, options={"bf": "0"})

    def change(number, packet):
        if number == 15:
            packet.pts += round(ahead / 25 / packet.time_base)
            packet.dts = min(packet.pts, packet.dts)

    # Only some containers are written with times out of order.
    path = remux(Path("a.ts"), "b.mkv" if ahead < 0 else "b.ts", change)
    status, lines = derain(run, path, "out.mkv")
    assert status == 0
    (line,) = lines
    assert "timestamp missing or out of order: 1 frame; placed between their neighbours" in line
    times = read("out.mkv")[1]
    assert np.subtract(times, times[0]) == pytest.approx(np.array(slots) / 25, abs=1.1e-3)


# Uneven times


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx")]
)
def test_a_rate_that_changes_is_no_loss(run, unchanged, name, codec):
    slots = [*range(0, 60, 2), *range(60, 100), *range(100, 200, 5)]  # slow, quick, slower
    path = make(name, codec, 90, slots)
    for part in ((), ("--frames", 40), ("--start", 60), ("--start", 20, "--frames", 30)):
        assert derain(run, path, f"out{path.suffix}", *part) == (0, [])
    clean = ("-a", "clean", "-i", path, "-o", "c.png", "--frames", 40)
    assert "recorded" not in run(*clean)[2]


# A late beginning


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
def test_a_file_that_begins_hours_late_is_moved_to_0(run, unchanged, target):
    write_video("plain.ts", frames=25, codec="mpeg2video", tone="mp2")

    def late(_, packet):
        packet.pts += round(26000 / packet.time_base)
        packet.dts += round(26000 / packet.time_base)

    path = remux(Path("plain.ts"), "a.ts", late, every=True)
    with av.open(str(path)) as file:
        assert file.start_time > 25000 * av.time_base
    assert derain(run, path, target) == (0, [])
    with av.open(target) as file:
        assert file.duration < 1.2 * av.time_base
        first = [float(next(file.decode(one)).time) for one in (file.streams[0], file.streams[1])]
    assert first == pytest.approx([0, 0], abs=0.05)
    assert sound(target) != b""
    assert derain(run, path, target, "--start", 5, "--frames", 10) == (0, [])
    times = read(target)[1]
    assert times == pytest.approx(np.arange(10) / 25, abs=0.04)


# The end


@pytest.mark.parametrize("target", ["out.mp4", "out.mov", "out.mkv", "out.webm"])
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "ffv1")])
def test_the_last_frame_stays_as_long(run, unchanged, name, codec, target):
    options = {"bf": "0"} if codec == "libx264" else {}
    path = make(name, codec, options=options, last=50)
    for start in (0, 4):
        assert derain(run, path, target, "--start", start) == (0, [])
        with av.open(target) as file:
            length = (11 - start + 50) / 25
            assert file.duration / av.time_base == pytest.approx(length, abs=0.01)


def test_the_sound_of_a_part_ends_with_its_last_frame(run, unchanged):
    write_video("a.mkv", frames=5, times=[0, 4, 8, 28, 32])
    for count, end in ((2, 0.08), (3, 0.28), (4, 0.32)):
        assert derain(run, Path("a.mkv"), "out.mkv", "--frames", count) == (0, [])
        heard = []
        for path in ("a.mkv", "out.mkv"):
            with av.open(path) as file:
                heard.append(
                    [float(one.pts * one.time_base) for one in file.demux(audio=0) if one.size]
                )
        assert len(heard[1]) == sum(time < end for time in heard[0])
