"""Damage to the file of a picture: the same verdict for deraining as for training and testing."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import command, finish
from PIL import Image

from media.image_file import FORMATS_TEXT
from media.pictures import read_image, read_picture
from settings import UserError

RNG = np.random.default_rng(5)
SMALL = cv2.resize(RNG.integers(0, 255, (5, 7, 3), np.uint8), (64, 48))
HEIGHT, WIDTH = SMALL.shape[:2]


def made(suffix: str, **options) -> bytes:
    if suffix == ".tif":
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, SMALL, photometric="rgb", **options)
        return buffer.getvalue()
    buffer = io.BytesIO()
    mode = options.pop("mode", "RGB")
    Image.fromarray(SMALL).convert(mode).save(
        buffer, Image.registered_extensions()[suffix], **options
    )
    return buffer.getvalue()


def taller(data: bytes, height: int = 2 * HEIGHT) -> bytes:
    """A file that declares more rows than it holds, its checksums right."""
    data = bytearray(data)
    if data.startswith(b"\x89PNG"):
        struct.pack_into(">I", data, 20, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif data.startswith(b"\xff\xd8"):
        frame = max(data.find(b"\xff\xc0\0"), data.find(b"\xff\xc2\0"))
        struct.pack_into(">H", data, frame + 5, height)
    elif data.startswith(b"BM"):
        struct.pack_into("<i", data, 22, height)
    else:
        tags = struct.unpack_from("<I", data, 4)[0]
        entry = data.find(struct.pack("<H", 257), tags)
        struct.pack_into("<H", data, entry + 8, height)
    return bytes(data)


def verdicts(path: Path) -> set[str]:
    """What each reader says of a file: 'read' or the message less its beginning."""
    found = set()
    for read in (lambda: read_image(path, "list:1"), lambda: read_picture(path)):
        try:
            read()
            found.add("read")
        except UserError as error:
            found.add(str(error).removeprefix("list:1: "))
    return found


def damaged(path: Path) -> str:
    size = path.stat().st_size
    return f"{path}: not an image that can be read, or damaged ({size} bytes)"


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".png", {"mode": "P"}),
        (".jpg", {}),
        (".jpg", {"mode": "L"}),
        (".jpg", {"mode": "CMYK"}),
        (".jpg", {"progressive": True}),
        (".jpg", {"restart_marker_rows": 1}),
        (".bmp", {}),
        (".tif", {}),
        (".tif", {"rowsperstrip": 16}),
        (".tif", {"rowsperstrip": 16, "compression": "zlib"}),
    ],
)
def test_rows_that_are_declared_and_missing_are_damage(capfd, suffix, options):
    path = Path(f"a{suffix}")
    whole = made(suffix, **options)
    path.write_bytes(whole)
    assert verdicts(path) == {"read"}
    path.write_bytes(taller(whole))
    (verdict,) = verdicts(path)
    assert verdict.startswith(damaged(path))
    assert capfd.readouterr() == ("", "")


def test_an_interlaced_png_is_counted_too(capfd):
    """Written by hand, as neither library writes it: 3 x 2 pixels of grey in seven passes."""
    rows = b"\0\1" + b"\0\2" + b"\0\3" + b"\0\4\5\6"  # of the passes that hold any: 1, 4, 6 and 7

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def png(height: int) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, height, 8, 0, 0, 0, 1))
        return (
            b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        )

    path = Path("a.png")
    path.write_bytes(png(2))
    assert read_picture(path).colour[..., 0].tolist() == [[1, 3, 2], [4, 5, 6]]
    path.write_bytes(png(3))
    (verdict,) = verdicts(path)
    assert verdict.startswith(damaged(path))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".png", {}), (".tif", {"rowsperstrip": 8, "compression": "zlib"})],
)
def test_a_flipped_bit_is_found_by_the_checksums(capfd, suffix, options):
    whole = made(suffix, **options)
    start = whole.find(b"IDAT") if suffix == ".png" else len(whole) // 4
    path = Path(f"a{suffix}")
    for at in np.linspace(start, len(whole) - 13, 40).astype(int):
        data = bytearray(whole)
        data[at] ^= 1 << RNG.integers(8)
        path.write_bytes(data)
        (verdict,) = verdicts(path)
        assert verdict.startswith(damaged(path)), at
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_a_whole_jpeg_with_grey_corners_is_read_whatever_follows_it(mode, options):
    picture = SMALL.copy()
    picture[-16:, -16:] = 128
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    for more in (b"", bytes(10), data):  # the last as phones append a smaller one
        Path("a.jpg").write_bytes(data + more)
        assert verdicts(Path("a.jpg")) == {"read"}
    Path("a.jpg").write_bytes(data[:-2] + bytes(6) + data[-2:])  # as some cameras pad
    assert verdicts(Path("a.jpg")) == {"read"}


def test_the_program_says_one_line_and_no_library_another(model):
    """In a process of its own: libpng, libtiff and libjpeg print past Python."""
    Path("in").mkdir()
    deep = cv2.imencode(".png", SMALL.astype(np.uint16) * 257)[1].tobytes()
    files = {
        "a.png": taller(made(".png")),
        "b.png": taller(deep),
        "c.jpg": taller(made(".jpg")),
        "d.tif": taller(made(".tif", rowsperstrip=16, compression="zlib")),
    }
    for name, data in files.items():
        Path("in", name).write_bytes(data)
    Path("in", "z.png").write_bytes(made(".png"))
    words = command("-a", "derain", "-i", "in", "-o", "out", "--num-threads", "1")
    done = finish(words)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == len(files)
    assert all("not an image that can be read, or damaged" in line for line in lines), lines
    assert Path("out/z.png").exists()


def test_lists_and_derain_see_the_same_pixels():
    """Of kinds that OpenCV decodes otherwise than Pillow: LAB, inks, 16 bits a pixel."""
    x, y = np.meshgrid(np.arange(80), np.arange(64))
    truth = np.stack([x * 3, y * 3, 240 - x * 2], -1).astype(np.uint8)  # RGB
    truth[:8] = 255
    Image.fromarray(truth).convert("LAB").save("lab.tif")
    Image.fromarray(truth).convert("CMYK").save("cmyk.jpg", quality=100, subsampling=0)
    fives = truth.astype(int) >> 3
    pixels = (fives[..., 0] << 10 | fives[..., 1] << 5 | fives[..., 2]).astype("<u2")[::-1]
    size = 54 + pixels.nbytes
    head = struct.pack("<IHHIIiiHHIIiiII", size, 0, 0, 54, 40, 80, 64, 1, 16, 0, 0, 0, 0, 0, 0)
    Path("bits555.bmp").write_bytes(b"BM" + head + pixels.tobytes())
    for name, tolerance in (("lab.tif", 3), ("cmyk.jpg", 0), ("bits555.bmp", 4)):
        listed = read_image(Path(name), "list:1")
        assert np.array_equal(listed, read_picture(Path(name)).colour)
        assert np.abs(listed[..., ::-1].astype(int) - truth).mean() <= tolerance, name
        assert (listed[0, 0] >= 254).all()
    Image.fromarray(truth).save("a.gif")
    assert verdicts(Path("a.gif")) == {f"a.gif: is GIF; expected {FORMATS_TEXT}"}


def test_a_jpeg_may_have_bytes_that_fill_before_a_mark():
    grey = cv2.imencode(".jpg", np.full((32, 40, 3), 128, np.uint8))[1].tobytes()
    at = grey.index(b"\xff\xdb")  # of the tables of quantisation
    Path("filled.jpg").write_bytes(grey[:at] + b"\xff" + grey[at:])
    assert (read_image(Path("filled.jpg"), "list:1") == 128).all()
