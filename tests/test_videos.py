"""Videos: size, times, colours and sound come out as they went in; cut short, they play."""

import os
import signal
import subprocess
import threading
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import command, expected, started
from pages import read_copy
from test_ranks import run_ranks

from engine.derainer import Derainer
from media.pictures import to_uint8
from media.video_reader import VideoReader
from settings import UserError

DERAIN = ("-a", "derain", "-m", "latest", "--device", "cpu")


def write_video(path, size=(48, 36), frames=9, sound=True, times=None, codec="libx264",
                tone="aac", shape=None) -> None:  # fmt: skip
    """A video whose frames move, with a tone; `times` are those of the frames, in 1/100 s."""
    rng = np.random.default_rng(0)
    base = cv2.resize(rng.integers(0, 200, (6, 6, 3), np.uint8), size)
    with av.open(f"file:{path}", "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height = size
        if shape:
            stream.codec_context.sample_aspect_ratio = shape
        stream.pix_fmt = {"ffv1": "bgr0", "libx264rgb": "bgr24"}.get(
            codec, "yuv444p" if size[0] % 2 else "yuv420p"
        )
        track = file.add_stream(tone, rate=44100, layout="mono") if sound else None
        if times:
            stream.codec_context.time_base = Fraction(1, 100)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(base, index, 1), format="bgr24")
            frame.pts = times[index] if times else index
            frame.time_base = Fraction(1, 100 if times else 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        for index in range(16 if sound else 0):
            wave = np.sin(np.arange(1024) / 20, dtype=np.float32)[None]
            if tone == "flac":
                wave = (wave * 30000).astype(np.int16)
            kind = "s16" if tone == "flac" else "fltp"
            frame = av.AudioFrame.from_ndarray(wave, format=kind, layout="mono")
            frame.rate, frame.pts = 44100, index * 1024
            file.mux(track.encode(frame))
        if track:
            file.mux(track.encode(None))


def frames(path) -> tuple[list[np.ndarray], list[float]]:
    source = VideoReader(Path(path))
    found = [item for item in source.items if isinstance(item, av.VideoFrame)]
    images = [source.convert_frame(frame) for frame in found]
    source.close()
    return images, [float(frame.time) for frame in found]


def sound(path) -> bytes:
    with av.open(str(path)) as file:
        streams = file.streams.audio
        return b"".join(bytes(packet) for packet in file.demux(streams)) if streams else b""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("odd.mkv", {"size": (35, 27)}),
        ("uneven.mp4", {"times": [0, 4, 8, 20, 24, 28, 33, 40, 41], "sound": False}),
        ("exact.mkv", {"codec": "ffv1"}),
    ],
)
def test_a_video_keeps_size_times_and_sound(run, model, name, options):
    write_video(name, **options)
    status, out, err = run(*DERAIN, "-i", name, "-o", f"out-{name}")
    assert (status, err) == (0, "")
    assert out.endswith(f"1 of 1 derained: out-{name}\n")
    (before, times), (after, found) = frames(name), frames(f"out-{name}")
    assert len(after) == 9
    assert after[0].shape == before[0].shape
    # A Matroska file begins at 0, however early its sound does.
    assert np.diff(found) == pytest.approx(np.diff(times), abs=2e-3)
    assert sound(f"out-{name}") == sound(name)
    errors = np.array(after, int) - [to_uint8(expected(rainy)) for rainy in before]
    if "codec" in options:
        assert not errors.any()
    else:
        assert np.abs(errors).mean() < 2.5
        assert np.abs(errors.mean((0, 1, 2))).max() < 1.2  # nor darker or of another tint
    assert sorted(os.listdir()) == sorted(["model", name, f"out-{name}"])


def test_a_turned_video_is_upright(run, model):
    write_video("a.mp4", sound=False)
    with av.open("a.mp4") as source, av.open("turned.mp4", "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        target.streams.video[0].metadata["rotate"] = "90"
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    matrix = b"".join(
        int(value).to_bytes(4, "big", signed=True)
        for value in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    )
    data = Path("turned.mp4").read_bytes()
    upright = b"".join(v.to_bytes(4, "big") for v in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    track = data.index(b"tkhd")
    where = data.index(upright, track)
    Path("turned.mp4").write_bytes(data[:where] + matrix + data[where + 36 :])
    before, _ = frames("turned.mp4")
    assert before[0].shape == (48, 36, 3)
    plain, _ = frames("a.mp4")
    clockwise = cv2.rotate(plain[0], cv2.ROTATE_90_CLOCKWISE)
    assert np.array_equal(before[0], clockwise)
    assert run(*DERAIN, "-i", "turned.mp4", "-o", "out.mp4")[0] == 0
    after, _ = frames("out.mp4")
    assert after[0].shape == (48, 36, 3)


def test_times_that_a_file_lacks_are_invented(tmp_path):
    for name, form in (("a.avi", "avi"), ("a.h264", "h264"), ("a.ts", "mpegts")):
        write_video(name, frames=30, sound=False)
        if form == "mpegts":  # joined: its times begin anew in the middle
            Path(name).write_bytes(Path(name).read_bytes() * 2)
        if form == "h264":
            Path(name).rename("a.mpg")
            name = "a.mpg"
        source = VideoReader(Path(name))
        found = [item for item in source.items if isinstance(item, av.VideoFrame)]
        times = [float(frame.time) for frame in found]
        source.close()
        assert len(found) in (60, 59) if form == "mpegts" else len(found) == 30
        assert np.diff(times) == pytest.approx([0.04] * (len(found) - 1), abs=1e-4)
        assert (np.diff(times) > 0).all()


@pytest.mark.parametrize(
    ("target", "change"),
    [("out.mov", {"tone": "flac"}), ("out.webm", {"codec": "libx264rgb"}), ("12:30.mp4", {})],
)
def test_odd_combinations_can_be_written(run, model, target, change):
    write_video("2024-01-01T12:30:00.mkv", frames=3, **change)
    status, _, err = run(*DERAIN, "-i", "2024-01-01T12:30:00.mkv", "-o", target)
    assert status == 0
    assert ("files cannot hold it" in err) == (target != "12:30.mp4")
    assert len(frames(target)[0]) == 3


def test_pixels_keep_their_shape(run, model):
    write_video("a.mp4", frames=2, shape=Fraction(4, 3))
    assert run(*DERAIN, "-i", "a.mp4", "-o", "b.mkv")[0] == 0
    with av.open("b.mkv") as file:
        assert file.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


def test_a_bad_video_stops_no_other(run, model, monkeypatch):
    Path("in").mkdir()
    for name in ("a", "b", "c"):
        write_video(f"in/{name}.mp4", frames=4, sound=False)
    derain_one, calls = Derainer.derain, []

    def derain(self, image, name, *arguments):
        calls.append(name)
        if name == "in/b.mp4" and calls.count(name) == 3:
            raise UserError("in/b.mp4: too large")
        return derain_one(self, image, name, *arguments)

    monkeypatch.setattr(Derainer, "derain", derain)
    status, out, err = run(*DERAIN, "-i", "in", "-o", "out")
    assert (status, err) == (2, "main.py: in/b.mp4: too large\n")
    assert "2 of 3 derained" in out
    message = "to go on from there, add -i in/b.mp4 --start 2 and give -o another name"
    assert f"out/b.mp4: ends early, holds the first 2 frames; {message}\n" in out
    assert [len(frames(f"out/{name}.mp4")[0]) for name in "abc"] == [4, 2, 4]
    assert sorted(os.listdir("out")) == ["a.mp4", "b.mp4", "c.mp4", "index.html", "index_files"]


def test_what_cannot_be_written_ends_the_run(run, model, monkeypatch):
    Path("in").mkdir()
    for name in ("a", "b"):
        write_video(f"in/{name}.mp4", frames=2, sound=False)

    def full(self, image, source_frame):
        with self._translate_errors():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("media.video_writer.VideoWriter.write_frame", full)
    status, _, err = run(*DERAIN, "-i", "in", "-o", "out")
    assert status == 2
    assert err == "main.py: out/a.mp4: cannot be written: No space left on device\n"
    assert os.listdir("out") == []


def test_sound_whose_times_begin_anew_is_kept_as_far_as_they_rise(run, model):
    write_video("a.ts", frames=6)
    Path("joined.ts").write_bytes(Path("a.ts").read_bytes() * 2)
    status, _, err = run(*DERAIN, "-i", "joined.ts", "-o", "out.mp4")
    assert status == 0
    assert "timestamp missing or out of order: 6 frames" in err
    assert "left out, as timestamps do not rise" in err
    assert len(frames("out.mp4")[0]) >= 11
    assert len(sound("out.mp4")) > 0


def test_more_ranks_than_frames(model):
    write_video("a.mp4", frames=1, sound=False)
    words = (*DERAIN, "--num-threads", 1, "-i", "a.mp4", "-o", "b.mp4", "--start", 0)
    done = run_ranks(2, *words)
    assert done.returncode == 0, done.stderr
    assert len(frames("b.mp4")[0]) == 1


def test_videos_and_pictures_of_a_folder(run, model, rainy):
    Path("in").mkdir()
    write_video("in/a.webm", codec="libvpx-vp9", sound=False)
    write_video("in/b.mp4")
    cv2.imwrite("in/c.png", rainy)
    Path("in/d.mp4").write_bytes(b"no video")
    status, out, err = run(*DERAIN, "-i", "in", "-o", "out")
    assert status == 2
    assert err == "main.py: in/d.mp4: not a video that can be read: no frame in it\n"
    assert "3 of 4 derained" in out
    names = sorted(os.listdir("out"))
    assert names == ["a.webm", "b.mp4", "c.png", "index.html", "index_files"]
    assert [len(frames(f"out/{name}")[0]) for name in names[:2]] == [9, 9]
    assert len(list(Path("out/index_files").iterdir())) == 12
    shown = read_copy(Path("out/index_files/000001-rainy.js"))
    assert np.abs(shown.astype(int) - frames("in/b.mp4")[0][4]).mean() < 6  # the middle one


def test_a_container_without_place_for_the_sound_says_so(run, model):
    write_video("a.mp4", frames=2)
    status, _, err = run(*DERAIN, "-i", "a.mp4", "-o", "b.webm")
    assert status == 0
    assert err == (
        "main.py: warning: a.mp4: stream 1 (sound, aac) is left out: .webm files cannot hold it\n"
    )
    assert len(frames("b.webm")[0]) == 2


def test_an_interrupted_video_can_be_played(model):
    write_video("long.mp4", frames=2500)
    with started(
        command(*DERAIN, "-i", "long.mp4", "-o", "out.mp4"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        watchdog = threading.Timer(90, process.kill)
        watchdog.start()
        # Printed when the first frames are written.
        assert any("frames a second: about" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        watchdog.cancel()
    assert process.returncode == 143
    assert "Traceback" not in err
    held = int(out.split("ends early, holds the first ")[1].split()[0])
    found, _ = frames("out.mp4")
    assert 0 < len(found) == held < 2500
    assert not list(Path().glob(".writing-*"))


def test_a_video_that_cannot_be_written_leaves_nothing(run, model, monkeypatch):
    write_video("a.mp4")
    monkeypatch.setattr(
        "media.video_writer.VideoWriter.write_frame",
        lambda *_: (_ for _ in ()).throw(UserError("full")),
    )
    status, _, err = run(*DERAIN, "-i", "a.mp4", "-o", "out.mp4")
    assert (status, err) == (2, "main.py: full\n")
    assert sorted(os.listdir()) == ["a.mp4", "model"]
