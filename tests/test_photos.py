"""What phones write, and files whose name is not that of their kind: read alike by all readers."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from conftest import ROOT
from PIL import Image

from media import image_file
from media.jobs import plan_jobs
from media.pictures import encode_picture, read_image, read_picture
from settings import UserError

COLOURS = cv2.resize(np.random.default_rng(3).integers(0, 256, (4, 6, 3), np.uint8), (64, 48))
AVIF, HEIC = ".avif", ".heic"


@pytest.fixture(params=[AVIF, HEIC])
def suffix(request) -> str:
    return request.param


def save(path: str, pixels: np.ndarray = COLOURS, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return Path(path)


def alike(path: Path) -> np.ndarray:
    """The pixels (H,W,3) of a picture without transparency, the same by every reader."""
    found = read_picture(path)
    assert found.alpha is None
    assert np.array_equal(read_image(path, "list:1"), found.colour)
    assert image_file.image_size(path) == found.colour.shape[1::-1]
    return found.colour


def refusals(path: Path) -> set[str]:
    found = set()
    for read in (lambda: read_image(path, "list:1"), lambda: read_picture(path)):
        with pytest.raises(UserError) as caught:
            read()
        found.add(str(caught.value).removeprefix("list:1: "))
    assert image_file.image_size(path) is None
    return found


def test_photos_are_read_and_written(suffix):
    path = save(f"a{suffix}", quality=95, exif=_maker())
    assert np.abs(alike(path)[..., ::-1].astype(int) - COLOURS).mean() < 5
    picture = read_picture(path)
    Path(f"b{suffix}").write_bytes(encode_picture(Path(f"b{suffix}"), picture))
    again = alike(Path(f"b{suffix}"))
    assert np.abs(again.astype(int) - picture.colour).mean() < 5
    assert Image.open(f"b{suffix}").getexif()[0x010F] == "Maker"
    clear = np.dstack([COLOURS, COLOURS[..., 0]])
    found = read_picture(save(f"c{suffix}", clear, quality=95))
    assert np.abs(found.alpha.astype(int) - COLOURS[..., 0]).mean() < 3
    with pytest.raises(UserError, match=r"x: .* has transparent pixels"):
        read_image(Path(f"c{suffix}"), "x")


def _maker(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", orientation
    return exif


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", [".png", ".webp", ".avif", ".tif"])
def test_all_kinds_are_turned_alike(kind, orientation):
    exact = {".webp": {"lossless": True}, ".avif": {"quality": 100}}.get(kind, {})
    found = alike(save(f"a{kind}", exif=_maker(orientation), **exact))[..., ::-1]
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    assert np.abs(found.astype(int) - np.rot90(COLOURS, turns)).mean() <= 2 * (kind == AVIF)


def test_a_jpeg_is_turned_by_opencv_as_it_was():
    for orientation in range(1, 9):
        path = save("a.jpg", exif=_maker(orientation))
        assert np.array_equal(read_image(path, "x"), cv2.imread(str(path)))
        assert image_file.image_size(path) == cv2.imread(str(path)).shape[1::-1]


def test_an_orientation_behind_the_pixels_counts():
    data = save("a.png", exif=_maker(6)).read_bytes()
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    late = data.replace(chunk, b"").replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND")
    Path("late.png").write_bytes(late)
    assert read_image(Path("late.png"), "x").shape == (64, 48, 3)
    assert np.array_equal(read_picture(Path("late.png")).colour, read_image(Path("late.png"), "x"))


@pytest.mark.parametrize("kind", [".png", ".webp", ".avif", ".gif", ".tif"])
def test_what_moves_is_refused_by_all(kind):
    second = Image.fromarray(COLOURS[::-1])
    path = save(f"a{kind}", save_all=True, append_images=[second])
    assert refusals(path) == {f"{path}: holds 2 images; expected one"}


def test_more_than_8_bits_of_a_photo_are_refused_not_lost():
    deep = (COLOURS.astype(np.uint16) * 257).tobytes()
    pillow_heif.from_bytes(mode="RGB;16", size=(64, 48), data=deep).save("a.heic")
    (line,) = refusals(Path("a.heic"))
    assert line.startswith("a.heic: HEIF of 10 bits; expected 8")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_photos_cut_short_are_damaged(suffix, share, capfd):
    data = save(f"a{suffix}").read_bytes()
    path = Path(f"cut{suffix}")
    path.write_bytes(data[: int(share * len(data))])
    for read in (lambda: read_image(path, "x"), lambda: read_picture(path)):
        with pytest.raises(UserError, match="not an image that can be read, or damaged"):
            read()
    assert capfd.readouterr() == ("", "")


def test_the_content_decides_whatever_the_name():
    for number, kind in enumerate(("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP")):
        path = Path(f"{number}.heic")
        Image.fromarray(COLOURS).save(path, kind)
        assert np.array_equal(read_picture(path).colour, read_image(path, "x"))


def test_a_folder_names_by_suffix_what_it_passes_over():
    Path("in").mkdir()
    for name in ("a.txt", "b.TXT", "c.pdf", "Makefile", "x.jfif", "x.HEIC", "x.avif", ".hidden"):
        Path("in", name).touch()
    jobs, _, note, _ = plan_jobs("in", "out")
    assert sorted(job.name for job in jobs) == ["x.HEIC", "x.avif", "x.jfif"]
    assert note == "skipped 4 unsupported files (2 .txt, 1 without a suffix, 1 .pdf)"
    for number in range(20):
        Path("in", f"a.{number:02}").touch()
    assert plan_jobs("in", "out")[2].endswith(", and 15 more)")


def test_links_to_folders_are_followed_and_never_in_circles():
    Path("elsewhere").mkdir()
    Path("in").mkdir()
    for name in ("elsewhere/a.png", "in/b.png"):
        Path(name).touch()
    Path("in/linked").symlink_to(Path("elsewhere").resolve())
    Path("in/back").symlink_to(Path("in").resolve())
    jobs, *_ = plan_jobs("in", "out")
    assert [job.name for job in jobs] == ["b.png", "linked/a.png"]


def test_photos_of_a_phone(run, shared):
    words = ("-m", ROOT / "model" / "demo", "--device", "cpu", "-o", "out")
    status, out, _ = run("-a", "derain", "-i", shared / "cases" / "11_phone_photos", *words)
    assert status == 0
    assert "5 of 5 derained" in out
    assert "skipped" not in out
    kinds = {path.name: Image.open(path).format for path in Path("out").glob("IMG*")}
    assert kinds == {
        "IMG_1.jpg": "JPEG", "IMG_2.avif": "AVIF", "IMG_3.HEIC": "HEIF", "IMG_4.jfif": "JPEG",
        "IMG_5.png": "PNG",
    }  # fmt: skip


def test_no_line_of_a_library_is_seen_at_a_header():
    """In a process of its own, as pytest has warnings its own way."""
    data = save("a.jpg").read_bytes()
    Path("odd.jpg").write_bytes(data[:2] + b"\xff\xe2\0\x0eMPF\0" + b"garbage!" + data[2:])
    see = "import sys; from pathlib import Path; from media import image_file; "
    see += "print(image_file.image_size(Path(sys.argv[1])))"
    words = [sys.executable, "-c", see, Path("odd.jpg").resolve()]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.stdout, done.stderr) == ("(64, 48)\n", "")
