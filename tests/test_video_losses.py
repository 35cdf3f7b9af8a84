"""What a derained video keeps of its source beside the frames, and that every loss is reported."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from test_ranks import run_ranks
from test_videos import DERAIN, sound, write_video
from video_cases import case, derain, far, make, picture, read, with_subtitles, write_y4m

from benchmarks import codecs

METADATA = {
    "creation_time": "2024-05-01T12:00:00.000000Z",
    "title": "rain in the yard",
    "location": "+48.1000+011.5000/",
}
PHONE = METADATA | {"com.apple.quicktime.model": "a phone", "com.apple.quicktime.software": "17.4"}


def read_metadata(path: str | Path) -> dict[str, str]:
    with av.open(str(path)) as file:
        return {key.lower(): text for key, text in file.metadata.items()}


# Metadata


def test_time_place_and_title_stay_and_the_second_camera_is_reported(run, unchanged):
    path = case("dual.mp4")
    status, lines = derain(run, path, "out.mp4")
    found = read_metadata("out.mp4")
    assert {key: found[key] for key in METADATA} == {
        key: read_metadata(path)[key] for key in METADATA
    }
    assert status == 0
    assert lines == [
        "warning: dual.mp4: stream 2 (another video, h264, 48x32) is left out; "
        "stream 0 (h264, 64x48) is taken"
    ]
    status, _, err = run("-a", "clean", "-i", path, "-o", "c.png", "--frames", 8)
    assert status == 0
    assert "stream 2 (another video" in err


@pytest.mark.parametrize("target", ["out.mp4", "out.mov", "out.mkv", "out.webm"])
@pytest.mark.parametrize(("name", "codec"), [("a.mov", "libx265"), ("a.mkv", "libvpx-vp9")])
def test_metadata_stays(run, unchanged, name, codec, target):
    keys = {"container_options": {"movflags": "use_metadata_tags"}} if name == "a.mov" else {}
    path = make(name, codec, metadata=PHONE, stream_metadata={"language": "eng"}, **keys)
    assert derain(run, path, target) == (0, [])
    found = read_metadata(target)
    assert {key: found.get(key) for key in PHONE} == PHONE
    with av.open(target) as file:
        assert file.streams.video[0].metadata["language"] == "eng"
        assert "rotate" not in file.streams.video[0].metadata


def test_what_a_file_has_no_place_for_is_reported(run, unchanged):
    path = make("a.mkv", metadata=METADATA, stream_metadata={"lens": "wide"})
    status, lines = derain(run, path, "out.mp4")
    assert status == 0
    assert lines == ["warning: a.mkv: .mp4 files have no place for its LENS"]
    assert read_metadata("out.mp4")["title"] == METADATA["title"]


def test_metadata_that_is_no_text_ends_nothing(run, unchanged):
    path = make("a.mp4", metadata={"title": "QQQQ"})
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xff\xfe\xfdQ"))
    assert derain(run, path, "out.mkv") == (0, [])
    assert len(read("out.mkv")[0]) == 12


def test_chapters_stay_with_the_whole_video_and_are_reported_with_a_part(run, unchanged):
    unit = Fraction(1, 1000)
    parts = [
        {"id": 1, "start": 0, "end": 200, "time_base": unit, "metadata": {"title": "a"}},
        {"id": 2, "start": 200, "end": 480, "time_base": unit, "metadata": {"title": "b"}},
    ]
    make("plain.mp4")
    with av.open("plain.mp4") as source, av.open("a.mp4", "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        target.set_chapters(parts)
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    assert derain(run, Path("a.mp4"), "out.mkv") == (0, [])
    with av.open("out.mkv") as file:
        assert [one["metadata"]["title"] for one in file.chapters()] == ["a", "b"]
    status, lines = derain(run, Path("a.mp4"), "part.mkv", "--frames", 3)
    assert status == 0
    assert lines == ["warning: a.mp4: its chapters are left out: they are those of the whole video"]


# Other streams


def with_sound_of_a_phone(path: str) -> Path:
    """A video with AMR, as .3gp files of phones have."""
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        voice = file.add_stream("libopencore_amrnb", rate=8000, layout="mono")
        voice.bit_rate = 12200
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(picture(index), format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        for index in range(20):
            wave = (np.sin(np.arange(160) / 5) * 9000).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            frame.rate, frame.pts = 8000, index * 160
            file.mux(voice.encode(frame))
        file.mux(voice.encode(None))
    return Path(path)


@pytest.mark.skipif("libopencore_amrnb" not in av.codecs_available, reason="no encoder of AMR")
def test_the_sound_of_a_3gp_is_kept_or_reported(run, unchanged):
    path = with_sound_of_a_phone("a.3gp")
    assert derain(run, path, "out.mov") == (0, [])
    assert sound("out.mov") == sound(path) != b""
    for target in ("out.mp4", "out.mkv", "folder"):
        status, lines = derain(run, path, target)
        suffix = Path(target).suffix or ".mkv"
        message = f"stream 1 (sound, amr_nb) is left out: {suffix} files cannot hold it"
        assert (status, lines) == (0, [f"warning: a.3gp: {message}"])


@pytest.mark.parametrize(
    ("name", "codec", "target", "kept"),
    [
        ("a.mkv", "subrip", "out.mkv", True),
        ("a.mkv", "subrip", "out.mp4", False),
        ("a.mp4", "mov_text", "out.mp4", True),
        ("a.mp4", "mov_text", "out.webm", False),
    ],
)
def test_subtitles_are_kept_or_reported(run, unchanged, name, codec, target, kept):
    path = with_subtitles(name, codec)
    status, lines = derain(run, path, target)
    message = (
        f"stream 1 (subtitles, {codec}) is left out: {Path(target).suffix} files cannot hold it"
    )
    assert (status, lines) == (0, [] if kept else [f"warning: {name}: {message}"])
    with av.open(target) as file:
        text = b"".join(bytes(packet) for packet in file.demux(subtitles=0)) if kept else b""
        assert bool(file.streams.subtitles) == kept
    assert (b"one" in text and b"two" in text) == kept


def test_streams_of_data_are_reported(run, unchanged):
    with av.open("a.ts", "w") as file:
        stream = file.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        data = file.add_data_stream("bin_data")
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(picture(index), format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            file.mux(stream.encode(frame))
            packet = av.Packet(b"where we are")
            packet.stream, packet.time_base = data, Fraction(1, 25)
            packet.pts = packet.dts = index
            file.mux(packet)
        file.mux(stream.encode(None))
    status, lines = derain(run, Path("a.ts"), "out.mkv")
    assert status == 0
    assert lines == ["warning: a.ts: left out, as neither picture nor sound: stream 1 (bin_data)"]


def test_sound_of_a_codec_that_nobody_knows_is_reported(run, unchanged):
    write_video("a.avi", codec="mpeg4", tone="mp2")
    data = bytearray(Path("a.avi").read_bytes())
    place = data.index(b"strf", data.index(b"auds")) + 8
    data[place : place + 2] = b"\x77\x77"
    Path("a.avi").write_bytes(data)
    message = "stream 1 (sound, a codec that FFmpeg does not know) is left out"
    assert derain(run, Path("a.avi"), "out.mkv") == (0, [f"warning: a.avi: {message}"])
    assert len(read("out.mkv")[0]) == 9


# Depth


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "light", "message"),
    [
        ("a.mkv", "libx265", "yuv420p10le", 16, "10 bits a channel, HDR (PQ)"),
        ("a.mp4", "libsvtav1", "yuv420p10le", 18, "10 bits a channel, HDR (HLG)"),
        ("a.mov", "prores_ks", "yuv422p10le", 1, "10 bits a channel"),
    ],
)
def test_more_bits_than_eight_are_reported_once(
    run, unchanged, name, codec, pixels, light, message
):
    with av.open(name, "w") as file:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.color_trc, stream.codec_context.color_primaries = light, 9
        stream.codec_context.colorspace, stream.codec_context.color_range = 9, 1
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(picture(index), format="bgr24")
            frame = frame.reformat(format=pixels, dst_colorspace=9)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            frame.color_trc, frame.color_primaries = light, 9
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    status, lines = derain(run, Path(name), "out.mp4")
    line = f"warning: {name}: its frames have {message}; they are taken as 8 bits"
    assert (status, lines) == (0, [line])
    assert far(read("out.mp4")[0][0], read(name)[0][0]) < 3
    tags = []
    for path in (name, "out.mp4"):
        with av.open(path) as file:
            frame = next(file.decode(video=0))
            tags.append((frame.color_trc, frame.color_primaries))
    assert tags == [(light, 9)] * 2
    assert frame.format.components[0].bits == 8
    status, _, err = run("-a", "clean", "-i", name, "-o", "c.png", "--frames", 3)
    assert err.count("they are taken as 8 bits") == 1


# A part of a video


def test_a_part_of_a_video_has_its_sound_and_begins_at_0(run, unchanged):
    write_video("a.mp4", frames=25)
    assert derain(run, Path("a.mp4"), "out.mp4", "--start", 4, "--frames", 3) == (0, [])
    images, times = read("out.mp4")
    before, _ = read("a.mp4")
    assert times == pytest.approx([0, 0.04, 0.08], abs=1e-3)
    assert [np.argmin([far(image, one) for one in before]) for image in images] == [4, 5, 6]
    with av.open("out.mp4") as part, av.open("a.mp4") as whole:
        heard = [bytes(packet) for packet in part.demux(audio=0) if packet.size]
        within = [
            bytes(packet)
            for packet in whole.demux(audio=0)
            if packet.size and 0.16 <= packet.pts * packet.time_base < 0.28
        ]
    assert heard == within != []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-i", "a.mp4", "--start", 12), "a.mp4: no frames from frame 12 on, of 12"),
        (("-i", "a.png", "--frames", 3), "--start and --frames: are for videos; a.png is none"),
    ],
)
def test_a_part_that_is_not_there_is_refused(run, unchanged, rainy, words, message):
    make("a.mp4")
    Path("a.png").write_bytes(b"")
    target = "out.png" if "a.png" in words else "out.mp4"
    status, _, err = run(*DERAIN, *words, "-o", target)
    assert (status, err) == (2, f"main.py: {message}\n")
    assert not Path(target).exists()


@pytest.mark.parametrize("known", [True, False])
def test_the_time_left_is_reported_after_the_first_frames(run, unchanged, known):
    path = make("a.mkv" if known else "a.h264", count=40).rename("a.mkv")
    status, out, _ = run(*DERAIN, "-i", path, "-o", "b.mkv")
    assert status == 0
    assert out.count("frames a second: about 0:00:0") == known


@pytest.mark.parametrize(
    ("begin", "rest", "count"),
    [((), "--start 5", 12), (("--start", 2, "--frames", 8), "--start 7 --frames 3", 8)],
)
def test_what_was_interrupted_goes_on_as_advised(run, model, monkeypatch, begin, rest, count):
    make("a.mkv", "ffv1")
    written = []

    def write_frame(self, image, source_frame):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(image)
        write(self, image, source_frame)

    from media.video_writer import VideoWriter

    write = VideoWriter.write_frame
    words = (*DERAIN, "-i", "a.mkv", *begin, "-o")
    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write_frame", write_frame)
        status, out, _ = run(*words, "b.mkv")
    assert status == 130
    message = (
        f"b.mkv: ends early, holds the first 5 frames; to go on from there, add {rest} and give"
    )
    assert message in out
    assert run(*words, "rest.mkv", *rest.split())[0] == 0
    assert run(*words, "whole.mkv")[0] == 0
    parts = [*read("b.mkv")[0], *read("rest.mkv")[0]]
    assert len(parts) == count
    assert np.array_equal(parts, read("whole.mkv")[0])


# Codecs


def test_there_are_fifteen_codecs():
    assert len({codec.encoder for codec in codecs.CODECS}) >= 15
    assert {codec.encoder for codec in codecs.CODECS} <= av.codecs_available


@pytest.mark.parametrize("codec", codecs.CODECS, ids=lambda codec: codec.encoder)
def test_every_frame_and_time_of_a_codec_comes_out(unchanged, codec):
    count, error = codecs.measure_codec(codec, Path("model/latest"), Path())
    assert count == len(codecs.SLOTS)
    assert error < 1e-3
    assert sorted(os.listdir()) == sorted(["model", f"in{codec.suffix}", "out.mp4"])


# Full colour, and what a format cannot hold


@pytest.mark.parametrize("target", ["out.mp4", "out.mov", "out.webm"])
@pytest.mark.parametrize(
    ("codec", "pixels", "expected"),
    [
        ("libx264", "yuv444p", "yuv444p"),
        ("libx264rgb", "rgb24", "yuv444p"),
        ("libx264", "yuv422p", "yuv422p"),
        ("libx264", "yuv420p", "yuv420p"),
        ("libx264", "gray", "yuv420p"),
    ],
)
def test_colours_keep_their_resolution(run, unchanged, codec, pixels, expected, target):
    columns = np.zeros((48, 64, 3), np.uint8)
    columns[:, ::2, 2] = columns[:, 1::2, 0] = 255  # red and blue
    with av.open("a.mp4", "w") as file:
        stream = file.add_stream(codec, rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        frame = av.VideoFrame.from_ndarray(columns, format="bgr24").reformat(format=pixels)
        file.mux([*stream.encode(frame), *stream.encode(None)])
    assert derain(run, Path("a.mp4"), target) == (0, [])
    with av.open(target) as file:
        assert next(file.decode(video=0)).format.name.replace("yuvj", "yuv") == expected
    if expected == "yuv444p":
        assert np.abs(read(target)[0][0].astype(int) - columns).mean() < 8


@pytest.mark.parametrize(
    ("size", "rate", "target", "message", "other"),
    [
        ((17000, 2), "25:1", "out.mp4", "libx264: sides of at most 16384 pixels", ".webm"),
        ((66000, 2), "25:1", "out.webm", "libvpx-vp9: sides of at most 65535 pixels", ".mkv"),
        ((32, 16), "2147483647:2147483646", "out.mov", "at 1 frames/s", ".mkv"),
        ((32, 16), "2147483647:1", "out.webm", "at 2.14748e+09 frames/s", ".mp4"),
        ((1, 40), "25:1", "out.mkv", "ffv1: sides of at least 2 pixels", ".mp4"),
    ],
)
def test_a_video_that_a_format_cannot_hold_is_refused(
    run, unchanged, size, rate, target, message, other
):
    path = write_y4m("a.y4m", size, rate)
    status, (line,) = derain(run, path, target)
    assert status == 2
    assert line.startswith(
        f"{target}: cannot be written: {Path(target).suffix} holds no {size[0]}x"
    )
    assert message in line
    expected = line.split("; expected ")[1].split(" or ")
    assert other in expected
    assert Path(target).suffix not in expected
    assert sorted(os.listdir()) == ["a.y4m", "model"]
    assert derain(run, path, f"out{other}") == (0, [])
    assert len(read(f"out{other}")[0]) == 3


def test_frames_that_are_shown_for_less_than_a_millisecond_are_kept(run, unchanged):
    path = write_y4m("a.y4m", (32, 16), "1000000:1")
    assert derain(run, path, "out.mov") == (0, [])
    images, times = read("out.mov")
    assert len(images) == 3
    assert times == pytest.approx([0, 1e-6, 2e-6], abs=1e-9)


def test_a_video_that_a_format_cannot_hold_is_a_bad_job_of_a_folder(run, unchanged):
    Path("in").mkdir()
    write_y4m("bad.y4m", (17000, 2), "25:1").rename("in/a.mp4")
    make("in/b.mp4")
    status, (line,) = derain(run, Path("in"), "out")
    assert status == 2
    assert line.startswith("out/a.mp4: cannot be written: .mp4 holds no 17000x2 pixels at 25 fr")
    assert sorted(os.listdir("out")) == ["b.mp4", "index.html", "index_files"]
    assert len(read("out/b.mp4")[0]) == 12


def test_ranks_go_on_behind_a_video_that_its_format_cannot_hold(unchanged):
    Path("in").mkdir()
    write_y4m("a.y4m", (17000, 2), "25:1").rename("in/a.mp4")
    make("in/b.mp4", count=3)
    done = run_ranks(2, "-a", "derain", "-i", "in", "-o", "out", "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.count("out/a.mp4: cannot be written: .mp4 holds no 17000x2 pixels") == 1
    assert done.stdout.endswith("1 of 2 derained; open out/index.html to look at them\n")
