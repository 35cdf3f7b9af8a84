"""A user's pictures: read and written in their own kind, whatever it is."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from media.pictures import Picture, encode_picture, read_picture, require_format, to_preview
from settings import UserError
from system import machine

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (20, 30, 4), np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30, 4)).astype(np.uint16)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = (".png", ".webp", ".tiff", ".tif", ".bmp")


def write_picture(path, picture):
    path.write_bytes(encode_picture(path, picture))


def save(path, pixels, **options):
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".jpg", ".JPEG"])
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "LA"])
def test_pictures_of_8_bits_come_back(tmp_path, suffix, kind):
    pixels = {"RGB": RGBA[..., :3], "RGBA": RGBA, "L": RGBA[..., 0], "LA": RGBA[..., :2]}[kind]
    source = tmp_path / "a.png"
    save(source, pixels, icc_profile=PROFILE)
    picture = read_picture(source)
    assert picture.colour.shape == (20, 30, 3)
    assert picture.grey == kind.startswith("L")
    assert (picture.alpha is not None) == kind.endswith("A")
    assert picture.metadata["icc_profile"] == PROFILE
    if kind in ("RGB", "RGBA"):
        assert np.array_equal(picture.colour[..., ::-1], RGBA[..., :3])
    target = tmp_path / f"b{suffix}"
    if kind.endswith("A") and suffix not in (".png", ".webp", ".tiff", ".tif"):
        with pytest.raises(UserError, match=r"cannot hold the input's transparency; expected PNG"):
            write_picture(target, picture)
        assert not target.exists()
        return
    write_picture(target, picture)
    again = read_picture(target)
    assert again.grey == (picture.grey and suffix != ".webp")  # which has no grey
    if suffix in LOSSLESS:
        assert np.array_equal(again.colour, picture.colour)
    else:
        assert np.abs(again.colour.astype(int) - picture.colour).mean() < 4
    if picture.alpha is not None:
        assert np.array_equal(again.alpha, picture.alpha)
    if suffix != ".bmp":
        assert again.metadata["icc_profile"] == PROFILE


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_16_bits_come_back(tmp_path, suffix, channels):
    pixels = DEEP[..., 0] if channels == 1 else DEEP[..., :channels]
    source = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(source), pixels)  # BGR
    picture = read_picture(source)
    assert picture.colour.dtype == np.uint16
    assert (picture.grey, picture.alpha is not None) == (channels == 1, channels == 4)
    assert np.array_equal(picture.colour, DEEP[..., :1].repeat(3, 2) if channels == 1
                          else DEEP[..., :3])  # fmt: skip
    for target in (tmp_path / "b.png", tmp_path / "b.tif"):
        write_picture(target, picture)
        again = read_picture(target)
        assert np.array_equal(again.colour, picture.colour)
        assert again.grey == picture.grey
        if channels == 4:
            assert np.array_equal(again.alpha, DEEP[..., 3])
    for name in ("b.jpg", "b.webp", "b.bmp"):
        with pytest.raises(UserError, match="cannot hold the input's 16 bits"):
            require_format(tmp_path / name, picture)


def test_profile_of_16_bits_is_kept(tmp_path):
    source = tmp_path / "a.tif"
    tifffile.imwrite(source, DEEP[..., :3], photometric="rgb", iccprofile=PROFILE)
    picture = read_picture(source)
    assert picture.metadata["icc_profile"] == PROFILE
    assert np.array_equal(picture.colour[..., ::-1], DEEP[..., :3])
    for name in ("b.png", "b.tif"):
        write_picture(tmp_path / name, picture)
        assert read_picture(tmp_path / name).metadata["icc_profile"] == PROFILE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    upright = cv2.imdecode(  # OpenCV's own reading, of a JPEG
        np.fromfile(save(tmp_path / "a.jpg", RGBA[..., :3], exif=exif), np.uint8), cv2.IMREAD_COLOR
    )
    found = read_picture(tmp_path / "a.jpg")
    assert np.abs(found.colour.astype(int) - upright).max() <= 3
    save(tmp_path / "a.png", RGBA[..., :3], exif=exif)
    picture = read_picture(tmp_path / "a.png")
    assert picture.colour.shape == upright.shape
    # OpenCV writes no orientation; put the same pixels of 16 bits behind Pillow's tag.
    done, data = cv2.imencodeWithMetadata(
        ".png",
        DEEP[..., :3],
        [cv2.IMAGE_METADATA_EXIF],
        [np.frombuffer(exif.tobytes()[6:], np.uint8)],
    )
    assert done
    (tmp_path / "deep.png").write_bytes(data.tobytes())
    deep = read_picture(tmp_path / "deep.png").colour
    assert np.array_equal(deep, turned(DEEP[..., :3], orientation))
    assert np.array_equal(picture.colour, turned(RGBA[..., 2::-1], orientation))
    write_picture(tmp_path / "b.png", picture)
    written = Image.open(tmp_path / "b.png").getexif()
    assert written.get(0x0112, 1) == 1
    assert written[0x010F] == "Maker"
    assert np.array_equal(read_picture(tmp_path / "b.png").colour, picture.colour)


def turned(pixels, orientation):
    """By the definition: where row 0 and column 0 of the file are, as seen by the viewer."""
    rows_first = orientation < 5
    top, left = (1, 2, 5, 6), (1, 4, 5, 8)
    image = pixels if rows_first else pixels.swapaxes(0, 1)
    vertical = orientation in (top if rows_first else (5, 6))
    horizontal = orientation in (left if rows_first else (5, 8))
    return image[:: 1 if vertical else -1, :: 1 if horizontal else -1]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.png", lambda p: p.write_bytes(b""), r"or damaged \(0 bytes\)"),
        ("a.png", lambda p: p.write_text("words"), "not an image that can be read, or damaged"),
        ("a.gif", lambda p: save(p, RGBA[..., :3]), "is GIF; expected PNG, JPEG"),
        ("a.tif", lambda p: save(p, RNG.random((4, 4), np.float32)), "channel of 32-bit floats"),
        (
            "a.webp",
            lambda p: save(p, RGBA, save_all=True, append_images=[Image.fromarray(RGBA[::-1])]),
            "holds 2 images; expected one",
        ),
        ("none.png", lambda p: None, "cannot be read: No such file"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_one_line(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        read_picture(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("part", [0.2, 0.6, 0.9])
def test_cut_short_is_one_line(tmp_path, suffix, part, capfd):
    data = save(tmp_path / f"a{suffix}", RGBA[..., :3]).read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(part * len(data))])
    with pytest.raises(UserError, match="not an image that can be read, or damaged"):
        read_picture(tmp_path / f"a{suffix}")
    assert capfd.readouterr() == ("", "")


def test_palette_and_inks_become_colours(tmp_path):
    image = Image.fromarray(RGBA[..., :3]).quantize(16)
    image.save(tmp_path / "p.png", transparency=3)
    found = read_picture(tmp_path / "p.png")
    assert np.array_equal(found.colour[..., ::-1], np.asarray(image.convert("RGB")))
    assert set(np.unique(found.alpha)) == {0, 255}
    inks = Image.fromarray(RGBA[..., :3]).convert("CMYK")
    inks.save(tmp_path / "c.tif")
    assert np.array_equal(
        read_picture(tmp_path / "c.tif").colour[..., ::-1], np.asarray(inks.convert("RGB"))
    )


def test_damaged_metadata_costs_the_metadata_alone(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    data = exif.tobytes()
    # ResolutionUnit as a LONG of 100000: it can be read, but not be written.
    entry = b"".join(
        n.to_bytes(size, "little") for n, size in ((0x128, 2), (4, 2), (1, 4), (100000, 4))
    )
    odd = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    assert data.startswith(b"Exif")
    for number, block in enumerate((odd, b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0words")):
        source = save(tmp_path / f"{number}.jpg", RGBA[..., :3], exif=block)
        picture = read_picture(source)
        assert picture.colour.shape == (20, 30, 3)
        write_picture(tmp_path / "b.jpg", picture)
        assert read_picture(tmp_path / "b.jpg").colour.shape == (20, 30, 3)
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., :3], photometric="rgb", iccprofile=b"no" * 100)
    write_picture(tmp_path / "b.png", read_picture(tmp_path / "a.tif"))
    assert np.array_equal(read_picture(tmp_path / "b.png").colour[..., ::-1], DEEP[..., :3])


def test_16_bits_of_other_kinds(tmp_path):
    grey, alpha = DEEP[..., 0], DEEP[..., 3]
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "a.tif").colour[..., 0], 65535 - grey)
    tifffile.imwrite(tmp_path / "a.tif", grey, byteorder=">")
    picture = read_picture(tmp_path / "a.tif")
    assert picture.grey
    assert np.array_equal(picture.colour[..., 0], grey)
    weighed = (
        (DEEP[..., :3].astype(np.float64) * alpha[..., None] / 65535).round().astype(np.uint16)
    )
    pixels = np.dstack([weighed, alpha])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    found, visible = read_picture(tmp_path / "a.tif").colour[..., ::-1], alpha > 6000
    assert np.abs(found[visible].astype(int) - DEEP[..., :3][visible]).max() <= 6
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., :2], photometric="minisblack", planarconfig=1)
    with pytest.raises(UserError, match="2 channels of 16-bit whole numbers; expected"):
        read_picture(tmp_path / "a.tif")
    (tmp_path / "a.png").write_bytes(png_grey_alpha(grey, alpha))
    picture = read_picture(tmp_path / "a.png")
    assert picture.grey
    assert np.array_equal(picture.colour[..., 1], grey)
    assert np.array_equal(picture.alpha, alpha)


def png_grey_alpha(grey, alpha) -> bytes:
    """A PNG of 16 bits with grey and alpha, which neither Pillow nor OpenCV writes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 16, 4, 0, 0, 0)
    rows = np.dstack([grey, alpha]).astype(">u2")
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_larger_than_memory_is_told_before_it_is_read(tmp_path, monkeypatch):
    save(tmp_path / "a.png", RGBA)
    monkeypatch.setattr(machine, "free_memory", lambda: 9000)
    with pytest.raises(UserError, match=r"a\.png: 30x20 pixels need 8.94e-06 GiB of memory to be"):
        read_picture(tmp_path / "a.png")


def test_new_colours_keep_the_kind():
    output = np.array([[[0.2, 0.4, 0.6], [-1, 0.5, 2]]], np.float32)
    colour = np.zeros((1, 2, 3), np.uint8)
    found = Picture(colour, None, False).with_colour(output)
    assert found.colour.tolist() == [[[51, 102, 153], [0, 128, 255]]]
    deep = Picture(colour.astype(np.uint16), None, False).with_colour(output)
    assert deep.colour.tolist() == [[[13107, 26214, 39321], [0, 32768, 65535]]]
    assert np.abs(to_preview(deep.colour).astype(int) - found.colour).max() <= 1
    grey = Picture(colour, None, True).with_colour(output).colour[0, 0]
    assert grey.tolist() == [round(255 * (0.114 * 0.2 + 0.587 * 0.4 + 0.299 * 0.6))] * 3


def test_a_failed_write_leaves_nothing(tmp_path):
    colour = np.zeros((1, 70000, 3), np.uint8)  # wider than a JPEG or WebP can be
    for suffix, kind in ((".jpg", "JPEG"), (".webp", "WEBP")):
        with pytest.raises(UserError, match=f"70000x1 pixels cannot be written as {kind}"):
            write_picture(tmp_path / f"a{suffix}", Picture(colour, None, False))
    assert list(tmp_path.iterdir()) == []
