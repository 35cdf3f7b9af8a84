"""Paired patches from rain videos: what they hold, what a second run changes, the whole circle."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import command, finish, started

from actions import pairs
from media import lists
from rain import backgrounds, streaks, synthetic_rain
from rain.clean_image import clean_image
from rain.streaks import Rain
from system import files

SIZE = (90, 70)
OPTIONS = ("--frames", 10, "--frame-step", 3, "--patch-size", 32, "--test-patch-size", 64)


def write_rain(path: Path, seed: int, density: float = 3, noise: float = 0.5) -> np.ndarray:
    """A rain video of 12 frames; returns them, (T,H,W,3) BGR."""
    rng = np.random.default_rng(seed)
    truth = backgrounds.dead_leaves(SIZE[1], SIZE[0], rng)
    rain = [Rain(density, 10, 15, 1, 120, 0.5)]
    frames = list(streaks.rain_frames(truth, rain, 12, noise, rng))
    synthetic_rain.write_video(path, iter(frames), SIZE)
    return np.stack(frames)


@pytest.fixture
def videos(tmp_path: Path) -> dict[str, np.ndarray]:
    """Frames of three videos in the folder `videos`, by name."""
    return {
        name: write_rain(tmp_path / "videos" / f"{name}.mkv", seed)
        for seed, name in enumerate(("alley", "bridge", "court"))
    }


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_patches_are_cut_from_frames_and_clean_image(run, videos):
    status, out, err = run("-a", "pairs", "-i", "videos", "-o", "set", *OPTIONS)
    assert (status, err) == (0, "")
    held_out = [v["name"] for v in json.loads(Path("set/pairs.json").read_text())["videos"]
                if v["held_out"]]  # fmt: skip
    assert len(held_out) == 1
    for kind, side in (("real_world", 32), ("real_test", 64)):
        found = lists.read_list(f"set/{kind}.txt", need_clean=True)
        assert f"set/{kind}.txt: {len(found)} pairs\n" in out
        for pair in found:
            scene = pair.rainy.parent.parent.name
            name = list(videos)[int(scene)]
            assert (f"{name}.mkv" in held_out) == (kind == "real_test")
            frames = videos[name]
            clean = clean_image(frames[:10, ..., ::-1]).image[..., ::-1]
            stem, x, y = pair.rainy.stem.rsplit("_", 2)
            frame = int(stem.removeprefix(f"{scene}-"))
            assert frame % 3 == 0
            assert pair.rainy == Path(f"set/{kind}/{scene}/{stem}/{stem}_{x}_{y}.png")
            assert pair.clean == Path(f"set/{kind}_gt/{scene}/{scene}_{x}_{y}.png")
            cut = slice(int(y), int(y) + side), slice(int(x), int(x) + side)
            rainy, truth = lists.read_pair(pair)
            assert rainy.shape == (side, side, 3)
            assert np.array_equal(rainy, frames[frame][cut])
            assert np.array_equal(truth, clean[cut])


def test_patches_cover_the_frame_and_those_without_rain_are_dropped(run, tmp_path):
    frames = write_rain(tmp_path / "v.mkv", 0, density=0.3)
    status, out, _ = run("-a", "pairs", "-i", "v.mkv", "-o", "set", "--rain-share", 0.02, *OPTIONS)
    assert status == 0
    clean = cv2.imread("set/clean/000.png")
    kept = {pair.rainy.stem for pair in lists.read_list("set/real_world.txt")}
    places = [(x, y) for y in (0, 19, 38) for x in (0, 29, 58)]
    expected = set()
    for frame in (0, 3, 6, 9):
        excess = frames[frame].astype(int) - clean
        for x, y in places:
            rain = (excess[y : y + 32, x : x + 32] > 10).all(-1)
            if rain.mean() >= 0.02:
                expected.add(f"000-{frame}_{x}_{y}")
    assert kept == expected
    assert 0 < len(kept) < 36
    assert f"000 v.mkv: {len(kept)} of 36 patches hold rain, for training" in out
    assert "set/real_test.txt: not written" in out
    assert {path.stem for path in Path("set/real_world").rglob("*.png")} == kept


def test_run_twice_changes_nothing(run, videos):
    words = ("-a", "pairs", "-i", "videos", "-o", "set", *OPTIONS)
    assert run(*words)[0] == 0
    before = snapshot(Path("set"))
    status, out, _ = run(*words)
    assert status == 0
    assert out.count("done before") == 3
    assert snapshot(Path("set")) == before


def test_interrupted_it_goes_on(run, videos, monkeypatch):
    words = ("-a", "pairs", "-i", "videos", *OPTIONS, "-o")
    assert run(*words, "whole")[0] == 0
    written = []
    write = files.write_atomically

    def stop(path: Path, data: bytes) -> None:
        if len(written) == 60:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "write_atomically", stop)
        assert run(*words, "set")[0] == 130
    before = snapshot(Path("set"))
    assert not any(name.endswith("real_world.txt") for name in before)
    assert run(*words, "set")[0] == 0
    after = snapshot(Path("set"))
    assert {name: after[name] for name in before} == before  # nothing was written again
    whole = snapshot(Path("whole"))
    assert {name: data for name, (data, _) in after.items()} == {
        name: data for name, (data, _) in whole.items()
    }


def test_killed_it_goes_on(run, videos):
    words = ("-a", "pairs", "-i", "videos", *OPTIONS, "-o")
    assert run(*words, "whole")[0] == 0
    with started(command(*words, "set"), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(list(Path("set").rglob("*.png"))) < 20 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert run(*words, "set")[0] == 0
        found, whole = (
            {name: data for name, (data, _) in snapshot(Path(folder)).items()}
            for folder in ("set", "whole")
        )
        unfinished = [
            name for name in found if ".writing-" in name
        ]  # what a kill may leave of one file
        assert len(unfinished) <= 1
        assert {name: data for name, data in found.items() if name not in unfinished} == whole


@pytest.mark.parametrize(("noise", "level"), [(4.0, 10), (4.0, 20), (0.0, 10)])
def test_the_last_line_advises_a_threshold_where_a_camera_is_noisy(run, tmp_path, noise, level):
    write_rain(tmp_path / "rain.mkv", 0, noise=noise)
    level_option = ("--rain-level", level)
    _, out, _ = run("-a", "pairs", "-i", "rain.mkv", "-o", "set", *OPTIONS, *level_option)
    last = out.splitlines()[-1]
    shares = []
    for pair in lists.read_list("set/real_world.txt"):
        rainy, clean = (image.astype(int) for image in lists.read_pair(pair))
        apart = np.abs(rainy - clean).max(-1)
        shares.append([(apart > 0).mean(), (apart > level).mean()])
    differ, rain = np.mean(shares, 0)
    assert last.startswith(f"train with --mask-threshold {level}: ") == (noise > 0)
    if noise:
        message = (
            f"differ on {differ:.0%} of the pixels, by more than {level} grey levels on {rain:.0%}"
        )
        assert message in last
    else:
        assert differ < 0.6


def test_a_chosen_clean_image_beside_the_video_is_taken(run, tmp_path):
    write_rain(tmp_path / "v.mkv", 0)
    chosen = np.full((SIZE[1], SIZE[0], 3), 40, np.uint8)
    cv2.imwrite("v.png", chosen)
    status, out, _ = run("-a", "pairs", "-i", "v.mkv", "-o", "set", "--rain-share", 0, *OPTIONS)
    assert status == 0
    assert "with the clean image v.png" in out
    assert (cv2.imread("set/real_world_gt/000/000_0_0.png") == 40).all()


@pytest.mark.parametrize(("share", "held_out"), [(0, 0), (0.01, 1), (0.5, 2), (0.99, 2), (1, 3)])
def test_share_of_videos_held_out(run, videos, share, held_out):
    words = ("-a", "pairs", "-i", "videos", "-o", "set", "--test-share", share, *OPTIONS)
    assert run(*words)[0] == 0
    found = json.loads(Path("set/pairs.json").read_text())["videos"]
    assert sum(video["held_out"] for video in found) == held_out
    assert Path("set/real_world.txt").exists() == (held_out < 3)
    assert Path("set/real_test.txt").exists() == (held_out > 0)


def test_another_setting_or_video_is_refused(run, videos):
    words = ("-a", "pairs", "-i", "videos", "-o", "set", *OPTIONS)
    assert run(*words)[0] == 0
    before = snapshot(Path("set"))
    status, _, err = run(*words, "--rain-level", 20)
    assert (status, err) == (
        2,
        "main.py: set/pairs.json: the set was made with --rain-level 10, this run has 20; "
        "choose another -o\n",
    )
    shutil.copy("videos/alley.mkv", "videos/dam.mkv")
    status, _, err = run(*words)
    assert (status, err) == (
        2,
        "main.py: set/pairs.json: the set was made from other videos, or other clean images beside "
        "them; choose another -o\n",
    )
    Path("set/pairs.json").write_text("{")
    assert run(*words)[2].startswith("main.py: set/pairs.json: damaged")
    Path("set/pairs.json").write_bytes(before["pairs.json"][0])
    Path("videos/dam.mkv").unlink()
    cv2.imwrite("videos/court.png", videos["court"][0])
    assert "or other clean images beside them" in run(*words)[2]
    Path("videos/court.png").unlink()
    shutil.copy("videos/alley.mkv", "videos/bridge.mkv")
    assert "the set was made from other videos" in run(*words)[2]
    assert {name: data for name, (data, _) in snapshot(Path("set")).items()} == {
        name: data for name, (data, _) in before.items()
    }


@pytest.mark.parametrize("damage", ["cut", "empty", "junk", "thinned", "half an ending"])
def test_a_damaged_part_is_noticed_and_made_again(run, videos, damage):
    words = ("-a", "pairs", "-i", "videos", "-o", "set", *OPTIONS)
    assert run(*words)[0] == 0
    before = snapshot(Path("set"))
    part = Path("set/scenes/000.txt")
    whole = part.read_bytes()
    *lines, ending = whole.splitlines(keepends=True)
    assert len(lines) >= 10
    damaged = {
        "cut": lines[0], "empty": b"", "junk": b"\xff",
        "thinned": b"".join([*lines[: len(lines) // 10], ending]),
        "half an ending": whole.rstrip() + b", of a dam\n",
    }  # fmt: skip
    part.write_bytes(damaged[damage])
    status, _, err = run(*words)
    assert (status, err) == (
        2,
        "main.py: set/scenes/000.txt: damaged; remove it, and the scene is looked through again\n",
    )
    part.unlink()
    Path("set/real_world.txt").write_bytes(b"\xff\n")
    assert run(*words)[0] == 0
    assert {name: data for name, (data, _) in snapshot(Path("set")).items()} == {
        name: data for name, (data, _) in before.items()
    }


@pytest.mark.parametrize(
    "name", ["real_world.txt", "real_world", "real_test_gt", "clean", "scenes"]
)
def test_another_set_is_never_touched(run, videos, name):
    Path("training").mkdir()
    Path("training", name).write_text("someone's own")
    status, _, err = run("-a", "pairs", "-i", "videos", "-o", "training", *OPTIONS)
    assert (status, err) == (
        2, f"main.py: training/{name}: is there already; choose another -o\n"
    )  # fmt: skip
    assert [path.name for path in Path("training").iterdir()] == [name]


def test_a_bad_video_is_reported_and_left_out(run, videos):
    words = ("-a", "pairs", "-i", "videos", "-o", "set", *OPTIONS)
    Path("videos/bad.mp4").write_text("not a video")
    Path("videos/._alley.mkv").write_text("a file system's own")
    Path("videos/folder.mkv").mkdir()
    status, _, err = run(*words, "--start", 99)
    assert status == 2
    assert err.count("no frames from frame 99 on, of 12; left out") == 3
    assert err.endswith("main.py: videos: none of its 4 videos can be used\n")
    assert not Path("set").exists()
    status, out, err = run(*words)
    bad = "main.py: videos/bad.mp4: not a video that can be read: no frame in it; left out\n"
    assert (status, err) == (2, bad)
    assert [line[:9] for line in out.splitlines()[:3]] == ["000 alley", "001 bridg", "002 court"]
    before = snapshot(Path("set"))
    Path("videos/bad.mp4").unlink()
    assert run(*words)[0] == 0
    assert snapshot(Path("set")) == before


def test_one_clean_image_beside_two_videos_is_refused(run, videos):
    shutil.copy("videos/bridge.mkv", "videos/alley.avi")
    cv2.imwrite("videos/alley.png", videos["alley"][0])
    status, _, err = run("-a", "pairs", "-i", "videos", "-o", "set", *OPTIONS)
    assert status == 2
    assert "videos/alley.png: of which video? Expected videos of different names" in err


def test_a_name_may_be_no_text(videos):
    shutil.copy("videos/alley.mkv", b"videos/\xff.mkv")
    words = command("-a", "pairs", "-i", "videos", "-o", "set", *OPTIONS)
    for _ in range(2):
        done = finish(words, text=False)
        assert done.returncode == 0
    assert b"\n003 \\udcff.mkv: done before\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-i videos", "-i and -o: expected a rain video or a folder"),
        ("-o set", "-i and -o: expected a rain video or a folder"),
        ("-i nowhere -o set", "nowhere: No such file or directory"),
        ("-i empty -o set", "empty: holds no videos; expected .264, .265, "),
        ("-i broken -o set", "broken/a.mp4: not a video that can be read"),
        ("-i videos -o videos/alley.mkv", "videos/alley.mkv: cannot be written"),
        ("-i wrong/v.mkv -o set", "wrong/v.png: 3x2 pixels, its video has 90x70"),
    ],
)
def test_bad_input_is_one_line(run, videos, words, message):
    for folder in ("empty", "broken", "wrong"):
        Path(folder).mkdir()
    Path("broken/a.mp4").write_text("not a video")
    shutil.copy("videos/alley.mkv", "wrong/v.mkv")
    cv2.imwrite("wrong/v.png", np.zeros((2, 3, 3), np.uint8))
    status, _, err = run("-a", "pairs", *words.split(), *OPTIONS)
    assert status == 2
    assert err.count("\n") == 1
    assert message in err


def test_from_video_to_scores(run, monkeypatch):
    """The whole circle: videos, clean images, pairs, training, testing."""
    monkeypatch.setattr(synthetic_rain, "VIDEO_PHOTOGRAPHS", ("astronaut", "camera"))
    assert synthetic_rain.main(["videos", "-o", "videos"]) == 0
    truth = cv2.imread("videos/truth/camera.png")
    assert run("-a", "clean", "-i", "videos/camera.mkv", "-o", "camera.png", "--frames", 40)[0] == 0
    assert cv2.PSNR(cv2.imread("camera.png"), truth) > 40
    small = ("--frames", 40, "--frame-step", 40, "--patch-size", 96, "--test-patch-size", 96)
    assert run("-a", "pairs", "-i", "videos", "-o", "training", *small)[0] == 0
    fast = ("--num-steps", 3, "--batch-size", 2, "--patch-size", 32, "--num-workers", 0)
    assert run("-a", "train", "-m", "latest", *fast)[0] == 0  # finds training/real_world.txt
    status, out, _ = run("-a", "test", "-m", "latest", "--test-list", "training/real_test.txt")
    assert status == 0
    assert "(released protocol, " in out
    assert len(list(Path("results/derained").iterdir())) == len(
        lists.read_list("training/real_test.txt")
    )
