"""What a video's index lists and does not come, of frames and of sound, is reported."""

from pathlib import Path

import av
import pytest
from test_videos import write_video
from video_cases import KEYED, damage, derain, make, read, remux


def packets(path: Path, kind: str) -> list[tuple[int, int]]:
    """Place and size of those of the first stream of that kind, bytes."""
    with av.open(str(path)) as file:
        stream = next(one for one in file.streams if one.type == kind)
        return [(one.pos, one.size) for one in file.demux(stream) if one.size]


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_an_avi_is_held_to_its_index(run, unchanged, codec):
    path = make("a.avi", codec, 40)
    place, _ = packets(path, "video")[20]
    data = bytearray(path.read_bytes())
    data[place - 8 : place - 4] = b"JUNK"  # the chunk is no frame any more
    path.write_bytes(data)
    message = "damaged: 1 of 40 frames could not be decoded, left out"
    assert derain(run, path, "out.mkv") == (2, [f"warning: a.avi: {message}"])
    assert len(read("out.mkv")[0]) == 39


def test_an_empty_sample_of_an_mp4_is_no_loss(run, unchanged):
    path = make("a.mp4", count=30, options={"bf": "0"})
    sizes = [size for _, size in packets(path, "video")]
    data = bytearray(path.read_bytes())
    place = data.index(b"stsz") + 16 + 4 * 10
    assert int.from_bytes(data[place : place + 4], "big") == sizes[10]
    # The one before takes its bytes, and those behind it stay where they are.
    data[place - 4 : place] = (sizes[9] + sizes[10]).to_bytes(4, "big")
    data[place : place + 4] = bytes(4)
    path.write_bytes(data)
    status, lines = derain(run, path, "out.mkv")
    assert (status, lines) == (0, [])
    assert len(read("out.mkv")[0]) == 29


@pytest.mark.parametrize(
    ("name", "codec", "tone"),
    [("a.mp4", "libx264", "aac"), ("a.mov", "mpeg4", "pcm_s16le"), ("a.avi", "mpeg4", "mp2")],
)
def test_sound_that_is_cut_is_reported(run, unchanged, name, codec, tone):
    plain = Path(f"plain{Path(name).suffix}")
    write_video(plain, frames=4, codec=codec, tone=tone)
    if plain.suffix == ".avi":
        path = plain.rename(name)
    else:
        path = remux(plain, name, container_options={"movflags": "faststart"})
    assert derain(run, path, "out.mkv") == (0, [])
    kept = max(place + size for place, size in packets(path, "video"))
    sounds = packets(path, "audio")
    lost = sum(place + size > kept for place, size in sounds)
    assert lost > 3
    data = bytearray(path.read_bytes())
    if plain.suffix == ".avi":  # its index is at the end
        for place, _ in sounds[-lost:]:
            data[place - 8 : place - 4] = b"JUNK"
    else:
        del data[kept:]
    path.write_bytes(data)
    status, (line,) = derain(run, path, "out.mkv")
    assert status == 2
    assert line == f"warning: {name}: stream 1 (sound): {lost} of {len(sounds)} packets are missing"
    assert len(read("out.mkv")[0]) == 4
    assert run("-a", "clean", "-i", path, "-o", "c.png", "--frames", 4)[0] == 0


def test_frames_that_are_marked_as_damaged_are_counted(run, unchanged):
    path = make("a.ts", "mpeg2video", 40, options={"g": "40"})
    data = bytearray(path.read_bytes())
    place = len(data) // 2 // 188 * 188
    data[place : place + 188 * 2] = b"\xff" * 188 * 2
    path.write_bytes(data)
    status, lines = derain(run, path, "out.mkv")
    assert status == 0
    assert lines[-1].startswith("warning: a.ts: marked as damaged: 1 piece")


def test_pairs_remembers_that_a_video_was_damaged(run):
    path = damage(make("a.mp4", count=40, options=KEYED), [3])
    words = ("--frames", 30, "--patch-size", 32, "--rain-share", 0)
    for _ in range(2):
        status, out, err = run("-a", "pairs", "-i", path, "-o", "set", *words)
        assert status == 2
        assert "main.py: warning: a.mp4: damaged" in err
    assert "000 a.mp4: done before" in out
