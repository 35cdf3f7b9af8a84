"""Videos: read from any start, in bands, and what is odd about them noticed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from test_clean_image import all_frames, plain

from rain import backgrounds, streaks, synthetic_rain
from rain import frames as video_module
from rain.clean_image import clean_image, read_video
from settings import UserError


def test_video_is_read_from_start(rain_video):
    ticks = []
    video = read_video(str(rain_video), 5, 12, ticks.append)
    assert video.shape == (12, 80, 96, 3)
    assert (video.warnings, ticks) == ([], [1] * 12)
    frames = all_frames(rain_video)[5:17]
    assert np.array_equal(np.stack(list(video.frames())), frames)
    assert np.array_equal(clean_image(video).image, clean_image(frames).image)


@pytest.mark.parametrize("rows", [1, 17, 79])
def test_bands_of_a_video_too_large_for_memory(rain_video, monkeypatch, rows):
    whole = clean_image(read_video(str(rain_video), 0, 6))
    monkeypatch.setattr(video_module, "MAX_HELD_BYTES", 6 * 96 * 3 * rows)
    video = read_video(str(rain_video), 0, 6)
    tops = [(top, band.shape[1]) for top, band in video.bands(6)]
    assert tops == [(top, min(rows, 80 - top)) for top in range(0, 80, rows)]
    ticks = []
    result = clean_image(video, tick=ticks.append)
    assert np.array_equal(result.image, whole.image)
    assert (result.residual_rain, result.ghosting) == (whole.residual_rain, whole.ghosting)
    assert sum(ticks) == 2 * 80


def test_fewer_frames_than_asked_for_is_said(rain_video):
    video = read_video(str(rain_video), 20, 100)
    assert video.shape[0] == 4
    assert "frames from 20 on: 4, asked for: 100" in video.warnings[0]


def test_a_still_camera_under_heavy_rain_is_no_motion(rain_video):
    assert read_video(str(rain_video), 0, 24).warnings == []


def test_a_moving_camera_is_noticed(tmp_path):
    photograph, path = backgrounds.photograph("coffee"), tmp_path / "pan.mkv"
    frames = (np.ascontiguousarray(photograph[40:160, t : t + 160]) for t in range(24))
    synthetic_rain.write_video(path, frames, (160, 120))
    (warning,) = read_video(str(path), 0, 24).warnings
    assert "is shifted by" in warning
    assert "a clean image needs a still camera" in warning


@pytest.mark.parametrize("frames", [100, 2000, 65535])
def test_it_is_noticed_however_many_frames_are_asked_for(tmp_path, frames):
    photograph, path = backgrounds.photograph("coffee"), tmp_path / "pan.mkv"
    shown = (np.ascontiguousarray(photograph[40:160, 2 * t : 2 * t + 160]) for t in range(40))
    synthetic_rain.write_video(path, shown, (160, 120))
    assert "the camera moves" in read_video(str(path), 0, frames).warnings[0]


@pytest.mark.parametrize("noise", [0, 3])
def test_a_scene_without_texture_is_no_cut(tmp_path, noise):
    path, wall = tmp_path / "wall.mkv", np.full((120, 160, 3), 100, np.uint8)
    rain = [streaks.Rain(2, 10, 15, 1, 100, 0.5)] if noise else []
    frames = streaks.rain_frames(wall, rain, 20, noise, np.random.default_rng(0))
    synthetic_rain.write_video(path, frames, (160, 120))
    assert read_video(str(path), 0, 20).warnings == []


def test_a_cut_is_noticed(tmp_path):
    path = tmp_path / "cut.mkv"
    scenes = [backgrounds.photograph(name)[:120, :160] for name in ("coffee", "chelsea")]
    frames = (np.ascontiguousarray(scenes[t // 12]) for t in range(24))
    synthetic_rain.write_video(path, frames, (160, 120))
    (warning,) = read_video(str(path), 0, 24).warnings
    assert "frame 12 does not show what frame 0 does" in warning


def test_frames_of_another_size_are_noticed(tmp_path):
    """They are scaled to the first one's size: the comparison sees it too."""
    path, photograph = tmp_path / "sizes.mjpeg", backgrounds.photograph("coffee")
    pictures = [photograph[: 200 if t < 6 else 130, :260] for t in range(12)]
    path.write_bytes(b"".join(cv2.imencode(".jpg", p)[1].tobytes() for p in pictures))
    video = read_video(str(path), 0, 12)
    assert video.shape == (12, 200, 260, 3)
    scaled, moved = video.warnings
    assert scaled.endswith("scaled to the size of the first frame: 6 frames")
    assert "frame 6" in moved


def test_bad_videos_are_named(tmp_path, rain_video):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    for path, start, message in [
        (tmp_path / "none.mp4", 0, "cannot be read: No such file or directory"),
        (text, 0, "not a video that can be read"),
        (rain_video, 24, "no frames from frame 24 on, of 24"),
    ]:
        with pytest.raises(UserError, match=message):
            read_video(str(path), start, 5)


def test_names_that_ffmpeg_would_take_for_something_else(rain_video, monkeypatch):
    for name in ("12:30.mkv", "concat:rain.mkv", "%03d.mkv", "-i.mkv"):
        rain_video.rename(name)
        assert read_video(name, 0, 3).shape[0] == 3
        Path(name).rename(rain_video)


@pytest.mark.parametrize("size", [(2, 2), (800, 2), (2, 800), (1282, 4)])
def test_odd_sizes(tmp_path, size):
    path, rng = tmp_path / "odd.mkv", np.random.default_rng(0)
    shown = [rng.integers(0, 255, (size[1], size[0], 3), np.uint8) for _ in range(5)]
    synthetic_rain.write_video(path, iter(shown), size)
    result = clean_image(read_video(str(path), 0, 5))
    assert np.array_equal(result.image, plain(np.stack(shown)[..., ::-1])[1])
