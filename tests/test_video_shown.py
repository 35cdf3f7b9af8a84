"""Frames as they are shown: the right way up, not combed, and the same in every action."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from video_cases import SIZE, case, derain, far, make, picture, read, with_matrix

from rain.frames import read_video

# Orientation


EIGHT = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (-1, 0, 0, -1): lambda image: image[::-1, ::-1],
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, 1, 0): lambda image: np.rot90(image),
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
    (0, -1, -1, 0): lambda image: np.rot90(image, 2).swapaxes(0, 1),
}


def test_a_mirrored_video_is_not_turned(run, unchanged):
    path = case("mirror.mp4")
    stored = [item.to_ndarray(format="bgr24") for item in av.open(str(path)).decode(video=0)]
    assert derain(run, path, "out.mp4") == (0, [])
    after, _ = read("out.mp4")
    assert 4 * far(after[0], stored[0][:, ::-1]) < far(after[0], stored[0])


@pytest.mark.parametrize("numbers", EIGHT)
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mov", "mpeg4")])
def test_all_eight_orientations(run, unchanged, name, codec, numbers):
    path = with_matrix(make(name, codec, 2), numbers)
    expected = EIGHT[numbers](picture(0))
    assert derain(run, path, "out.mkv") == (0, [])
    assert far(read("out.mkv")[0][0], expected) < 6
    (image, *_) = read_video(str(path), 0, 2).frames()
    assert far(image[..., ::-1], expected) < 6
    others = [turn(picture(0)) for one, turn in EIGHT.items() if one != numbers]
    assert min(far(image[..., ::-1], other) for other in others) > 15


@pytest.mark.parametrize("numbers", [(0.7, 0.7, -0.7, 0.7), (2, 0, 0, 2), (1, 0.5, 0, 1)])
def test_another_matrix_is_reported(run, unchanged, numbers):
    path = with_matrix(make("a.mp4", count=2), numbers)
    status, (line,) = derain(run, path, "out.mp4")
    assert status == 0
    assert "is no quarter turn or mirroring; not applied" in line
    assert far(read("out.mp4")[0][0], picture(0)) < 6


# Interlaced


def combed(image: np.ndarray) -> float:
    """How much rows differ from their neighbours more than those do from one another."""
    rows = image.astype(int)
    return float(
        (np.abs(2 * rows[1:-1] - rows[:-2] - rows[2:]) - np.abs(rows[:-2] - rows[2:])).mean()
    )


INTERLACED = [
    ("a.mkv", "libx264", {"x264-params": "tff=1"}),
    ("a.ts", "mpeg2video", {"flags": "+ildct+ilme"}),
    ("a.avi", "mpeg4", {"flags": "+ildct+ilme"}),
]


@pytest.mark.parametrize("variant", [None, *INTERLACED])
def test_interlaced_frames_are_deinterlaced(run, unchanged, monkeypatch, variant):
    if variant:
        monkeypatch.setattr("video_cases.picture", comb)
        path = make(*variant[:2], count=8, options=variant[2])
    else:
        path = case("inter.mp4")
    stored = [frame.to_ndarray(format="bgr24") for frame in av.open(str(path)).decode(video=0)]
    status, lines = derain(run, path, "out.mkv")
    assert status == 0
    assert any(line.endswith("deinterlaced: 8 frames") for line in lines)
    before, after = read(path), read("out.mkv")
    assert len(after[0]) == 8
    assert np.diff(after[1]) == pytest.approx(np.diff(before[1]), abs=1e-3)
    assert combed(np.stack(stored)[3]) > 2 * combed(after[0][3])
    shown = list(read_video(str(path), 0, 8).frames())
    assert combed(np.stack(stored)[3]) > 2 * combed(shown[3])
    assert not any(frame.interlaced_frame for frame in av.open("out.mkv").decode(video=0))


def comb(index: int) -> np.ndarray:
    """A bar that moves between the fields, (H,W,3) uint8 BGR."""
    image = np.full((SIZE[1], SIZE[0], 3), 40, np.uint8)
    for field in range(2):
        left = 4 + 6 * index + 3 * field
        image[field::2, left : left + 12] = 200
    return image


def test_interlaced_frames_that_cannot_be_deinterlaced_are_refused(run, unchanged):
    with av.open("a.mkv", "w") as file:
        stream = file.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme"})
        stream.width, stream.height, stream.pix_fmt = 64, 2, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((2, 64, 3), np.uint8), format="bgr24")
        file.mux([*stream.encode(frame), *stream.encode(None)])
    status, (line,) = derain(run, Path("a.mkv"), "out.mkv")
    assert status == 2
    assert "FFmpeg cannot deinterlace; expected progressive ones" in line
    assert not Path("out.mkv").exists()


def test_frames_of_one_number_are_the_same_in_every_action(run, unchanged):
    path = case("mid_damaged.mp4")
    whole, _ = read(path)
    quick = list(read_video(str(path), 0, 32).frames())
    for start in (0, 5, 20):
        part, times = read(path, start=start, frames=3)
        assert len(part) == 3
        assert [far(a, b) for a, b in zip(part, whole[start:], strict=False)] == [0, 0, 0]
        assert times[0] == 0
        (first, *_) = read_video(str(path), start, 3).frames()
        assert np.array_equal(first, quick[start])
        assert np.argmin([far(first[..., ::-1], image) for image in whole]) == start


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"bf": "3"}), ("a.mkv", {"bf": "0"})])
def test_as_many_frames_come_as_are_asked_for(name, options, quick):
    path = make(name, options=options)
    for start in (0, 5):
        for count in range(1, 14):
            images, _ = read(path, start=start, frames=count, quick=quick)
            assert len(images) == min(count, 12 - start)


def test_a_clean_image_has_the_frames_that_opencv_gives():
    path = make("a.mp4", "mpeg4")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = list(read_video(str(path), 0, 100).frames())
    assert len(frames) == 12
    for image in frames:
        assert np.array_equal(image[..., ::-1], capture.read()[1])
    assert not capture.read()[0]


CARRYING = [
    ("a.mp4", "libx264", "yuv420p", {"x264-params": "frame-packing=3"}, "arrangement of two views"),
    (
        "a.mkv",
        "libx265",
        "yuv420p",
        {
            "x265-params": "log-level=none:max-cll=1000,400:master-display="
            "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
        },
        "light levels, mastering display",
    ),
]


@pytest.mark.parametrize(("name", "codec", "pixels", "options", "message"), CARRYING)
def test_what_frames_carry_and_lose_is_reported(
    run, unchanged, name, codec, pixels, options, message
):
    path = make(name, codec, 3, options=options, pixels=pixels)
    line = f"warning: {name}: left out of what its frames carry: {message}"
    assert derain(run, path, "out.mp4") == (0, [line])


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("a.mkv", "ffv1", "bgra"), ("a.mov", "prores_ks", "yuva444p10le")]
)
def test_transparency_is_reported(run, unchanged, name, codec, pixels):
    path = make(name, codec, 3, pixels=pixels)
    status, lines = derain(run, path, "out.mp4")
    assert status == 0
    assert lines[-1] == f"warning: {name}: its frames have transparency, which is left out"
    assert far(read("out.mp4")[0][0], picture(0)) < 6
