"""When the frames of a derained video are shown: whatever single times are wrong."""

from pathlib import Path

import numpy as np
import pytest
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
    assert "without a time, or out of order: 1 frame; placed by the frames around" in line
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
