"""Videos as phones, dashcams and recorders make them: what can be read is, the rest is reported."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from test_videos import sound
from video_cases import KEYED, case, cut, damage, derain, far, make, picture, read

from rain.frames import read_video

DROPPED = [*range(4), *range(14, 22)]  # slots of frames, with a gap between


def shown(image: np.ndarray) -> int:
    """The number, 0 to 11, of the picture that an image shows."""
    return int(np.argmin([far(image, picture(k)) for k in range(12)]))


# Times


def test_the_times_of_an_avi_with_dropped_frames_stay(run, unchanged):
    path = case("dropped.avi")
    status, lines = derain(run, path, "out.mkv")
    before, after = read(path), read("out.mkv")
    slots = [0, *range(2, 11), *range(21, 31)]
    assert before[1] == pytest.approx([slot / 25 for slot in slots])
    assert after[1] == pytest.approx(before[1], abs=1e-3)
    assert sound("out.mkv") == sound(path)
    assert status == 0
    (line,) = lines
    assert "20 frames decoded; their timestamps and its rate make 31" in line


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "mjpeg", {}),
        ("a.avi", "libx264", {"bf": "2"}),  # in AVI, B-frames have the times of decoding alone
        ("a.mkv", "libx265", {}),
        ("a.ts", "mpeg2video", {"bf": "2"}),
        ("a.mov", "mpeg4", {}),
    ],
)
def test_the_times_of_dropped_frames_stay(run, unchanged, name, codec, options):
    path = make(name, codec, slots=DROPPED, options=options)
    assert derain(run, path, "out.mp4")[0] == 0
    images, times = read("out.mp4")
    assert np.diff(times) == pytest.approx(np.diff(DROPPED) / 25, abs=1e-3)
    assert [shown(image) for image in images] == list(range(12))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.h264", "libx264"), ("a.hevc", "libx265"), ("a.m2v", "mpeg2video"), ("a.obu", "libsvtav1")],
)
def test_times_are_invented_where_a_format_has_none_and_that_is_said(run, unchanged, name, codec):
    make(name, codec, options={} if codec == "libsvtav1" else {"bf": "2"})
    path = Path(name).rename("a.mpg")  # its content decides how it is read
    status, lines = derain(run, path, "out.mkv")
    assert read("out.mkv")[1] == pytest.approx(np.arange(12) / 25, abs=1e-3)
    assert status == 0
    (line,) = lines
    assert "timestamp missing or out of order: 12 frames" in line
    assert line.endswith("at 25 frames/s")


def test_an_edit_list_hides_frames_without_a_word(run, unchanged):
    hiding = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    slots = list(range(-4, 8))
    path = make("a.mp4", slots=slots, options={"bf": "0"}, container_options=hiding)
    assert derain(run, path, "out.mp4") == (0, [])
    assert len(read("out.mp4")[0]) == 8


# Cut short


FAST = {"container_options": {"movflags": "faststart"}}
CUT = [
    ("a.mp4", "libx264", FAST),
    ("a.mov", "libx265", FAST),
    ("a.mkv", "libvpx-vp9", {}),
    ("a.webm", "libvpx", {}),
    ("a.avi", "mjpeg", {}),
    ("a.flv", "flv", {}),
    ("a.mxf", "mpeg2video", {}),
]


@pytest.mark.parametrize(("name", "frames"), [("tail_fs.mp4", 22), ("tail_g.mkv", 23)])
def test_a_cut_video_is_reported_by_every_action(run, unchanged, name, frames):
    Path("in").mkdir()
    path = case(name).rename(f"in/{name}")
    message = rf"cut short: {frames} frames decoded, of (about )?40 that it promises"
    status, (line,) = derain(run, path, "out.mp4")
    assert status == 2
    assert_matches(message, line)
    assert len(read("out.mp4")[0]) == frames
    make("in/whole.mp4")
    status, (line,) = derain(run, Path("in"), "out")
    assert status == 2
    assert_matches(message, line)
    assert len(list(Path("out").glob("*.m*"))) == 2
    for words in (("clean", "-o", "c.png"), ("pairs", "-o", "set", "--patch-size", 32)):
        status, _, err = run("-a", words[0], "-i", path, *words[1:])
        assert status == 2
        # On several threads, the last frames before a damaged one may be lost.
        assert_matches(r"cut short: 2\d frames decoded, of (about )?40 that it promises", err)
    assert Path("c.png").is_file()


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@pytest.mark.parametrize(("name", "codec", "more"), CUT)
def test_a_whole_video_is_not_reported_as_cut(run, unchanged, name, codec, more):
    path = make(name, codec, 40, options=KEYED, **more)
    path = path.rename(f"b{path.suffix}.mov")  # its content decides how it is read
    assert derain(run, path, "out.mkv") == (0, [])
    status, (line,) = derain(run, cut(path), "cut.mkv")
    count = len(read("cut.mkv")[0])
    assert status == 2
    assert 8 < count < 36
    assert_matches(f"cut short: {count} frames decoded, of (about )?40 that it promises", line)


def test_a_header_without_a_length_is_reported(run, unchanged):
    path = make("a.wmv", "wmv2", 40)
    assert derain(run, path, "out.mkv") == (0, [])
    status, (line,) = derain(run, cut(path), "cut.mkv")
    assert status == 0
    assert line.endswith("as in recordings by a browser; it may be cut short")


# Codecs


def test_av1_is_read_by_every_action(run, unchanged):
    Path("in").mkdir()
    case("av1.mp4").rename("in/av1.mp4")
    make("in/other.webm", "libsvtav1", 8)
    for name in ("av1.mp4", "other.webm"):
        assert read_video(f"in/{name}", 0, 8).shape[0] == 8
    assert run("-a", "clean", "-i", "in/av1.mp4", "-o", "c.png", "--frames", 8)[0] == 0
    words = ("-o", "set", "--frames", 8, "--patch-size", 32, "--rain-share", 0)
    status, out, _ = run("-a", "pairs", "-i", "in", *words)
    assert status == 0
    assert "000 av1.mp4" in out
    assert "001 other.webm" in out


# Streams


@pytest.mark.parametrize("variant", ["case", "mp4", "mkv"])
def test_a_cover_is_never_the_video(run, unchanged, variant):
    if variant == "case":
        path = case("cover_first.mp4")
    elif variant == "mp4":
        path = make("a.mp4", "mpeg4", covers=1)
    else:
        path = Path("a.mkv")
        make("plain.mkv", "libvpx-vp9")
        picture_file = av.open("cover.jpg", "w", format="image2")
        still = picture_file.add_stream("mjpeg", rate=1)
        still.width, still.height, still.pix_fmt = 80, 100, "yuvj420p"
        image = av.VideoFrame.from_ndarray(picture(0, (80, 100)), format="bgr24")
        data = b"".join(bytes(packet) for packet in [*still.encode(image), *still.encode(None)])
        with av.open("plain.mkv") as source, av.open("a.mkv", "w") as target:
            copy = target.add_stream_from_template(source.streams.video[0])
            target.add_attachment("cover.jpg", "image/jpeg", data)
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
    status, (line,) = derain(run, path, "out.mp4")
    assert status == 0
    assert_matches(
        r"stream \d \(cover picture, mjpeg, 80x100\) is left out; stream \d \(.*64x48", line
    )
    images, _ = read("out.mp4")
    assert [image.shape for image in images] == [(48, 64, 3)] * 12
    assert read_video(str(path), 0, 12).shape == (12, 48, 64, 3)
    assert "cover picture" in read_video(str(path), 0, 12).warnings[0]


@pytest.mark.parametrize(("default", "taken"), [(False, 1), (True, 0)])
def test_the_default_video_is_taken_else_the_largest(default, taken):
    sizes = [(32, 24), (64, 48)]
    with av.open("a.mov" if default else "a.ts", "w") as file:
        for size in sizes:
            stream = file.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(5):
            for size, stream in zip(sizes, file.streams, strict=True):
                frame = av.VideoFrame.from_ndarray(picture(index, size), format="bgr24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                file.mux(stream.encode(frame))
        for stream in file.streams:
            file.mux(stream.encode(None))
    video = read_video("a.mov" if default else "a.ts", 0, 5)
    assert video.shape[1:3] == sizes[taken][::-1]
    assert f"stream {1 - taken} (another video, mpeg2video" in video.warnings[0]


def test_a_codec_that_nobody_knows_is_named(run, unchanged):
    path = make("a.avi", "mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"QQQQ"))
    message = "a.avi: not a video that can be read: of a codec that FFmpeg does not know"
    assert derain(run, path, "out.mp4") == (2, [message])


def test_a_cover_alone_is_no_video(run, unchanged):
    with av.open("a.mp4", "w") as file:
        cover = file.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 80, 100, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(picture(0, (80, 100)), format="bgr24")
        file.mux([*cover.encode(image), *cover.encode(None)])
    message = "a.mp4: not a video that can be read: only a cover picture"
    assert derain(run, Path("a.mp4"), "out.mp4") == (2, [message])


# Damage


@pytest.mark.parametrize(("name", "there"), [("first_damaged.mp4", 38), ("mid_damaged.mp4", 32)])
def test_damage_is_not_the_end(run, unchanged, name, there):
    path = case(name)
    message = f"warning: {name}: damaged: {40 - there} of 40 frames could not be decoded, left out"
    assert derain(run, path, "out.mp4") == (2, [message])
    before, after = read(path), read("out.mp4")
    assert len(before[1]) == there
    # A file begins at 0 where it has no sound to keep in step with.
    assert np.diff(after[1]) == pytest.approx(np.diff(before[1]), abs=1e-3)
    status, _, err = run("-a", "clean", "-i", path, "-o", "c.png", "--frames", 30)
    assert status == 2
    assert "damaged" in err
    assert "asked for" not in err
    assert read_video(str(path), 0, 30).shape[0] == 30


@pytest.mark.parametrize("which", [[0], [12], [39], [20, 21, 22]])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "mpeg4"), ("a.mov", "libx264"), ("a.mp4", "libsvtav1"), ("a.mkv", "mjpeg")],
)
def test_what_is_behind_the_damage_is_read(run, unchanged, name, codec, which):
    path = damage(
        make(name, codec, 40, options=KEYED if codec != "libsvtav1" else {"g": "8"}), which
    )
    status, lines = derain(run, path, "out.mkv")
    images, _ = read("out.mkv")
    assert status == 2
    assert "damaged" in lines[0]
    assert "could not be decoded" in lines[0]
    if path.suffix in (".mov", ".mp4"):
        assert f"{40 - len(images)} of 40 frames" in lines[0]
    # At most those are lost that need the damaged ones, up to the next key frame.
    assert 40 - 10 * len(which) <= len(images) < 40
    if 39 not in which:
        assert shown(images[-1]) == 39 % 12


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("a.264", "libx264", "h264"),
        ("a.265", "libx265", "hevc"),
        ("a.gif", "gif", "gif"),
        ("a.unknown", "libx264", "mp4"),
    ],
)
def test_all_actions_read_what_the_reader_reads(run, unchanged, name, codec, format):
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    path = make(f"plain.{format}", codec, pixels=pixels).rename(name)
    status, _ = derain(run, path, "out/")
    assert status == 0
    assert len(read(f"out/{name}.mkv")[0]) == 12
    assert run("-a", "clean", "-i", path, "-o", "clean.png", "--frames", 12)[0] == 0
    assert cv2.imread("clean.png").shape == (48, 64, 3)
    Path("in").mkdir()
    path.rename(f"in/{name}")
    source = "in" if name != "a.unknown" else f"in/{name}"
    words = ("--frames", 12, "--patch-size", 32, "--rain-share", 0)
    assert run("-a", "pairs", "-i", source, "-o", "set", *words)[0] == 0
    assert Path("set/real_world.txt").stat().st_size > 0


def test_a_picture_of_an_unknown_suffix_is_a_picture(run, unchanged):
    Path("photo.dat").write_bytes(cv2.imencode(".jpg", picture(0))[1].tobytes())
    status, lines = derain(run, Path("photo.dat"), "out/")
    assert (status, lines) == (0, [])
    assert cv2.imread("out/photo.dat.png").shape == (48, 64, 3)


def test_a_picture_of_a_kind_that_is_not_read_is_no_video(run, unchanged):
    Path("photo.ppm").write_bytes(cv2.imencode(".ppm", picture(0))[1].tobytes())
    status, (line,) = derain(run, Path("photo.ppm"), "out/")
    assert (status, Path("out").exists()) == (2, False)
    assert line.startswith("-i: photo.ppm: neither picture nor video; expected one of .264, ")
