"""Clean images: exact against the golden arrays and a plain transcription; the command."""

import re
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import golden

from benchmarks import clean
from rain import backgrounds, streaks
from rain.clean_image import clean_image, luminance, mode_percentile
from rain.streaks import Rain


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


def all_frames(path: Path) -> np.ndarray:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])
    return np.stack(frames)


@pytest.mark.parametrize("released", [False, True])
def test_golden(released):
    arrays = golden("clean_image")
    suffix = "_released" if released else ""
    frames = arrays["video_rgb"]
    luma = luminance(frames, released)
    assert np.array_equal(luma, arrays["luma" + suffix])
    assert mode_percentile(luma) == arrays["percentile" + suffix]
    result = clean_image(frames, released_luma=released)
    assert result.percentile == arrays["percentile" + suffix]
    assert np.array_equal(result.image, arrays["clean_rgb" + suffix])


@pytest.mark.parametrize("spread", [1, 5, 60])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 50, 100, 256, 300])
def test_every_pixel_equals_the_plain_method(frames, spread):
    """Few frames and a small spread make ties of modes and of percentiles."""
    values = noisy(frames, spread)
    percentile, image = plain(values)
    result = clean_image(values)
    assert result.percentile == percentile
    assert np.array_equal(result.image, image)
    assert result.frames == frames


@pytest.mark.parametrize("percentile", [0, 12.5, 33, 50, 99.9, 100])
@pytest.mark.parametrize("frames", [1, 2, 100, 255])
def test_given_percentile_equals_numpy(frames, percentile):
    values = noisy(frames, 40)
    result = clean_image(values, percentile)
    assert result.percentile == percentile
    assert np.array_equal(result.image, plain(values, percentile)[1])


def test_constant_frames_are_their_own_clean_image():
    frames = np.repeat(noisy(1, 60), 12, 0)
    result = clean_image(frames)
    assert np.array_equal(result.image, frames[0])
    assert (result.percentile, result.residual_rain, result.ghosting) == (0, 0, 0)


def test_any_memory_layout():
    values = noisy(20, 30)
    assert np.array_equal(clean_image(np.asfortranarray(values)).image, clean_image(values).image)
    assert mode_percentile(luminance(values)[:, ::2]) == mode_percentile(
        np.ascontiguousarray(luminance(values)[:, ::2])
    )


def test_residual_rain_is_the_mean_excess_over_the_clean_image():
    values = noisy(30, 20)
    result = clean_image(values)
    excess = np.maximum(values.astype(int) - result.image, 0).mean()
    assert result.residual_rain == pytest.approx(excess, rel=1e-12)


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
    truth = backgrounds.dead_leaves(60, 80, rng)
    rain = [Rain(3, 10, 15, 1, 120, 0.5)]
    frames = np.stack(list(streaks.rain_frames(truth, rain, 40, 1.0, rng)))
    result = clean_image(frames)
    assert cv2.PSNR(result.image, truth) > 40
    assert cv2.PSNR(result.image, truth) > cv2.PSNR(frames[0], truth) + 15


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


# The command


def test_clean_writes_the_image_and_its_figures(run, rain_video):
    status, out, err = run("-a", "clean", "-i", rain_video, "-o", "out/clean.png", "--frames", 20)
    assert (status, err) == (0, "")
    result = clean_image(all_frames(rain_video)[:20])
    assert np.array_equal(cv2.imread("out/clean.png")[..., ::-1], result.image)
    assert out == (
        f"out/clean.png: 20 frames, percentile {result.percentile}, residual rain "
        f"{result.residual_rain:.3f}, ghosting {result.ghosting:.2%}\n"
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
    assert "frames from 0 on: 24, asked for: 60" in err
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
        ("-i rain.mkv -o rain.mkv/clean.png", "rain.mkv: cannot be written"),
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
        2, "main.py: -o: still.png is an input; expected another folder or name\n"
    )  # fmt: skip
    assert Path("still.png").read_bytes() == before


@pytest.mark.parametrize("name", ["c.png", "c-5.png", "c-candidates.png"])
def test_a_folder_in_the_way_is_reported_before_the_work(run, rain_video, name):
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


def test_the_benchmark_compares_both_readers(tmp_path, capsys):
    path = tmp_path / "rain.mp4"
    clean.write_rain_video(path, 48, 64)
    clean.measure_video(str(path), turns=1)
    out = capsys.readouterr().out
    assert re.fullmatch(r"ours: first reading .*; OpenCV: first reading .* times OpenCV's\n", out)
