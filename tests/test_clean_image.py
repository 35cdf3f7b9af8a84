"""Clean images: exact against the golden arrays and a plain transcription; videos; the command."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import golden

import synthetic_rain
import video as video_module
from clean_image import clean_image, luminance, mode_percentile, read_video
from settings import UserError
from synthetic_rain import Rain


def plain(frames: np.ndarray, percentile: float | None = None) -> tuple[float, np.ndarray]:
    """The method as the design states it, a pixel at a time, in NumPy."""
    count = len(frames)
    luma = (0.299 * frames[..., 0] + 0.587 * frames[..., 1] + 0.114 * frames[..., 2]).astype("u1")
    votes = np.zeros(101, int)
    for series in luma.reshape(count, -1).T:
        ordered = np.sort(series)
        values, counts = np.unique(ordered, return_counts=True)
        places = np.flatnonzero(ordered == values[np.argmax(counts)])
        votes += (places[0] / count * 100 <= np.arange(101)) & (
            np.arange(101) <= places[-1] / count * 100
        )
    chosen = int(votes.argmax()) if percentile is None else percentile
    return chosen, np.percentile(frames, chosen, axis=0).astype(np.uint8)


def noisy(frames: int, spread: float, shape: tuple[int, int] = (9, 71)) -> np.ndarray:
    rng = np.random.default_rng(frames)
    values = rng.normal(110, spread, (frames, *shape, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("released", [False, True])
def test_golden(released):
    arrays = golden("clean_image")
    suffix = "_released" if released else ""
    frames = arrays["video_rgb"]
    luma = luminance(frames, released)
    assert np.array_equal(luma, arrays["luma" + suffix])
    assert mode_percentile(luma) == arrays["percentile" + suffix]
    made = clean_image(frames, released_luma=released)
    assert made.percentile == arrays["percentile" + suffix]
    assert np.array_equal(made.image, arrays["clean_rgb" + suffix])


@pytest.mark.parametrize("spread", [1, 5, 60])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 50, 100, 256, 300])
def test_every_pixel_equals_the_plain_method(frames, spread):
    """Few frames and a small spread make ties of modes and of percentiles."""
    values = noisy(frames, spread)
    percentile, image = plain(values)
    made = clean_image(values)
    assert made.percentile == percentile
    assert np.array_equal(made.image, image)
    assert made.frames == frames


@pytest.mark.parametrize("percentile", [0, 12.5, 33, 50, 99.9, 100])
@pytest.mark.parametrize("frames", [1, 2, 100, 255])
def test_given_percentile_equals_numpy(frames, percentile):
    values = noisy(frames, 40)
    made = clean_image(values, percentile)
    assert made.percentile == percentile
    assert np.array_equal(made.image, plain(values, percentile)[1])


def test_constant_frames_are_their_own_clean_image():
    frames = np.repeat(noisy(1, 60), 12, 0)
    made = clean_image(frames)
    assert np.array_equal(made.image, frames[0])
    assert (made.percentile, made.residual_rain, made.ghosting) == (0, 0, 0)


def test_any_memory_layout():
    values = noisy(20, 30)
    assert np.array_equal(clean_image(np.asfortranarray(values)).image, clean_image(values).image)
    assert mode_percentile(luminance(values)[:, ::2]) == mode_percentile(
        np.ascontiguousarray(luminance(values)[:, ::2])
    )


def test_residual_rain_is_the_mean_excess_over_the_clean_image():
    values = noisy(30, 20)
    made = clean_image(values)
    excess = np.maximum(values.astype(int) - made.image, 0).mean()
    assert made.residual_rain == pytest.approx(excess, rel=1e-12)


def test_ghosting_is_the_share_of_weak_modes():
    frames = np.repeat(noisy(1, 60, (10, 20)), 40, 0)
    rng = np.random.default_rng(0)
    frames[:, :3] = rng.integers(0, 256, (40, 3, 20, 3))  # three rows of ten show anything
    assert clean_image(frames).ghosting == pytest.approx(0.3, abs=0.01)


def test_first_frames_only():
    values = noisy(30, 20)
    assert np.array_equal(clean_image(values, frames=11).image, clean_image(values[:11]).image)


def test_rain_is_removed():
    rng = np.random.default_rng(0)
    truth = synthetic_rain.dead_leaves(60, 80, rng)
    rain = [Rain(3, 10, 15, 1, 120, 0.5)]
    frames = np.stack(list(synthetic_rain.rain_frames(truth, rain, 40, 1.0, rng)))
    made = clean_image(frames)
    assert cv2.PSNR(made.image, truth) > 40
    assert cv2.PSNR(made.image, truth) > cv2.PSNR(frames[0], truth) + 15


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((3, 4, 5), np.uint8), r"\(T,H,W,3\) uint8.*\(3, 4, 5\)"),
        (np.zeros((3, 4, 5, 3)), "float64"),
        (np.zeros((0, 4, 5, 3), np.uint8), r"\(0, 4, 5, 3\)"),
    ],
)
def test_wrong_arrays_are_named(frames, message):
    with pytest.raises(ValueError, match=message):
        luminance(frames)
    if frames.ndim == 4:
        with pytest.raises(ValueError, match=message):
            clean_image(frames)


def test_percentile_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"0\.\.100, got 101"):
        clean_image(noisy(2, 5), 101)


# Videos


@pytest.fixture
def rain_video(tmp_path: Path) -> Path:
    return write_rain(tmp_path / "rain.mkv", 24)


def write_rain(path: Path, frames: int, seed: int = 0, size: tuple[int, int] = (96, 80)) -> Path:
    rng = np.random.default_rng(seed)
    truth = cv2.resize(synthetic_rain.photograph("coffee"), size, interpolation=cv2.INTER_AREA)
    rain = [Rain(3, 10, 15, 1, 120, 0.5)]
    made = synthetic_rain.rain_frames(truth, rain, frames, 1.0, rng)
    synthetic_rain.write_video(path, made, size)
    return path


def all_frames(path: Path) -> np.ndarray:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])
    return np.stack(frames)


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
    whole = clean_image(read_video(str(rain_video), 0, 24))
    monkeypatch.setattr(video_module, "HELD_BYTES", 24 * 96 * 3 * rows)
    video = read_video(str(rain_video), 0, 24)
    tops = [(top, band.shape[1]) for top, band in video.bands(24)]
    assert tops == [(top, min(rows, 80 - top)) for top in range(0, 80, rows)]
    ticks = []
    made = clean_image(video, tick=ticks.append)
    assert np.array_equal(made.image, whole.image)
    assert (made.residual_rain, made.ghosting) == (whole.residual_rain, whole.ghosting)
    assert sum(ticks) == 2 * 80


def test_fewer_frames_than_asked_for_is_said(rain_video):
    video = read_video(str(rain_video), 20, 100)
    assert video.shape[0] == 4
    assert "frames from 20 on: 4, asked for: 100; going on" in video.warnings[0]


def test_a_still_camera_under_heavy_rain_is_no_motion(rain_video):
    assert read_video(str(rain_video), 0, 24).warnings == []


def test_a_moving_camera_is_noticed(tmp_path):
    photograph, path = synthetic_rain.photograph("coffee"), tmp_path / "pan.mkv"
    frames = (np.ascontiguousarray(photograph[40:160, t : t + 160]) for t in range(24))
    synthetic_rain.write_video(path, frames, (160, 120))
    (warning,) = read_video(str(path), 0, 24).warnings
    assert "is shifted by" in warning
    assert "a clean image needs a still camera" in warning


@pytest.mark.parametrize("frames", [100, 2000, 65535])
def test_it_is_noticed_however_many_frames_are_asked_for(tmp_path, frames):
    photograph, path = synthetic_rain.photograph("coffee"), tmp_path / "pan.mkv"
    shown = (np.ascontiguousarray(photograph[40:160, 2 * t : 2 * t + 160]) for t in range(40))
    synthetic_rain.write_video(path, shown, (160, 120))
    assert "the camera moves" in read_video(str(path), 0, frames).warnings[0]


@pytest.mark.parametrize("noise", [0, 3])
def test_a_scene_without_texture_is_no_cut(tmp_path, noise):
    path, wall = tmp_path / "wall.mkv", np.full((120, 160, 3), 100, np.uint8)
    rain = [Rain(2, 10, 15, 1, 100, 0.5)] if noise else []
    frames = synthetic_rain.rain_frames(wall, rain, 20, noise, np.random.default_rng(0))
    synthetic_rain.write_video(path, frames, (160, 120))
    assert read_video(str(path), 0, 20).warnings == []


def test_a_cut_is_noticed(tmp_path):
    path = tmp_path / "cut.mkv"
    scenes = [synthetic_rain.photograph(name)[:120, :160] for name in ("coffee", "chelsea")]
    frames = (np.ascontiguousarray(scenes[t // 12]) for t in range(24))
    synthetic_rain.write_video(path, frames, (160, 120))
    (warning,) = read_video(str(path), 0, 24).warnings
    assert "frame 12 does not show what frame 0 does" in warning


def test_frames_of_another_size_are_noticed(tmp_path):
    """OpenCV scales them to the first one's size: the comparison sees it."""
    path, photograph = tmp_path / "sizes.mjpeg", synthetic_rain.photograph("coffee")
    pictures = [photograph[: 200 if t < 6 else 130, :260] for t in range(12)]
    path.write_bytes(b"".join(cv2.imencode(".jpg", p)[1].tobytes() for p in pictures))
    (warning,) = read_video(str(path), 0, 12).warnings
    assert "frame 6" in warning


def test_a_frame_of_another_size_stops(rain_video, monkeypatch):
    """Where OpenCV's backend hands one over as it is."""

    class Growing:
        def __init__(self, *_):
            self.sizes = iter([8, 8, 9])

        isOpened = grab = lambda self: True
        release = lambda self: None  # noqa: E731

        def read(self):
            return True, np.zeros((next(self.sizes), 8, 3), np.uint8)

    monkeypatch.setattr(cv2, "VideoCapture", Growing)
    with pytest.raises(UserError, match="frame 4 is 8x9, those before are 8x8"):
        read_video(str(rain_video), 2, 3)


def test_bad_videos_are_named(tmp_path, rain_video):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    for path, start, message in [
        (tmp_path / "none.mp4", 0, "cannot be read: No such file or directory"),
        (text, 0, "not a video that OpenCV can read"),
        (rain_video, 24, "no frames from frame 24 on"),
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
    made = clean_image(read_video(str(path), 0, 5))
    assert np.array_equal(made.image, plain(np.stack(shown)[..., ::-1])[1])


# The command


def test_clean_writes_the_image_and_its_figures(run, rain_video):
    status, out, err = run("-a", "clean", "-i", rain_video, "-o", "out/clean.png", "--frames", 20)
    assert (status, err) == (0, "")
    made = clean_image(all_frames(rain_video)[:20])
    assert np.array_equal(cv2.imread("out/clean.png")[..., ::-1], made.image)
    assert out == (
        f"out/clean.png: 20 frames, percentile {made.percentile}, residual rain "
        f"{made.residual_rain:.3f}, ghosting {made.ghosting:.2%}\n"
    )


def test_clean_takes_a_percentile_and_a_start(run, rain_video):
    options = ("--percentile", 12.5, "--start", 3, "--frames", 9)
    status, out, _ = run("-a", "clean", "-i", rain_video, "-o", "clean.png", *options)
    assert status == 0
    assert "9 frames, percentile 12.5," in out
    expected = clean_image(all_frames(rain_video)[3:12], 12.5).image
    assert np.array_equal(cv2.imread("clean.png")[..., ::-1], expected)


def test_candidates_and_their_sheet(run, rain_video):
    status, out, err = run(
        "-a", "clean", "-i", rain_video, "-o", "c/clean.png", "--candidates", "5,12,50,60"
    )
    assert status == 0
    assert "frames from 0 on: 24, asked for: 60; going on" in err
    assert sorted(path.name for path in Path("c").iterdir()) == [
        "clean-12.png", "clean-24.png", "clean-5.png", "clean-candidates.png"
    ]  # fmt: skip
    frames = all_frames(rain_video)
    for count in (5, 12, 24):
        expected = clean_image(frames[:count]).image
        assert np.array_equal(cv2.imread(f"c/clean-{count}.png")[..., ::-1], expected)
        assert f"c/clean-{count}.png: {count} frames" in out
    sheet = cv2.imread("c/clean-candidates.png")
    last = cv2.imread("c/clean-24.png")
    difference, _, (left, top), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, last, cv2.TM_SQDIFF))
    assert np.array_equal(sheet[top : top + 80, left : left + 96], last), difference


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-o clean.png", "main.py: -i: expected a rain video\n"),
        ("-i rain.mkv -o clean.jpg", "-o: 'clean.jpg': expected the name of a PNG file"),
        ("-i rain.mkv", "-o: '': expected the name of a PNG file"),
        ("-i none.mkv -o clean.png", "none.mkv: cannot be read: No such file or directory"),
        ("-i . -o clean.png", ".: cannot be read: Is a directory"),
        ("-i rain.mkv -o rain.mkv/clean.png", "rain.mkv: cannot be written to"),
        ("-i rain.mkv -o c.png --candidates 5,x", "--candidates: '5,x': expected numbers"),
        ("-i rain.mkv -o c.png --percentile 101", "--percentile: 101.0 is out of range"),
        ("-i rain.mkv -o c.png --percentile -0.5", "--percentile: -0.5 is neither -1 nor"),
        ("-i rain.mkv -o c.png --start 99", "rain.mkv: no frames from frame 99 on"),
    ],
)
def test_bad_input_is_one_line(run, rain_video, words, message):
    status, out, err = run("-a", "clean", *words.split())
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert [path.name for path in Path().iterdir()] == ["rain.mkv"]


def test_the_input_is_not_overwritten(run, tmp_path):
    cv2.imwrite("still.png", noisy(1, 9)[0])
    before = Path("still.png").read_bytes()
    status, _, err = run("-a", "clean", "-i", "still.png", "-o", "./still.png")
    assert (status, err) == (
        2, "main.py: still.png: is the input; expected another name\n"
    )  # fmt: skip
    assert Path("still.png").read_bytes() == before


@pytest.mark.parametrize("name", ["c.png", "c-5.png", "c-candidates.png"])
def test_a_folder_in_the_way_is_told_before_the_work(run, rain_video, name):
    Path(name).mkdir()
    words = ("-o", "c.png") if name == "c.png" else ("-o", "c.png", "--candidates", "5")
    status, out, err = run("-a", "clean", "-i", rain_video, *words)
    assert (status, out) == (2, "")
    assert err == f"main.py: {name}: is a folder; expected the name of a PNG file\n"


def test_bad_input_leaves_no_folder(run, rain_video):
    assert run("-a", "clean", "-i", rain_video, "-o", "new/folder/c.png", "--start", 99)[0] == 2
    assert not Path("new").exists()


def test_ctrl_c_ends_the_work_of_all_threads(monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean_image(noisy(4, 5, (400, 8)), tick=stop)
    assert not any(thread.name.startswith("ThreadPool") for thread in threading.enumerate())
