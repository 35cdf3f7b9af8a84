"""What pictures hold beside pixels: kept where the format can, and otherwise named."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import ROOT
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from media.pictures import describe_dropped, encode_picture, read_image, read_picture
from settings import UserError

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><GPano:ProjectionType/></x:xmpmeta>'
RGB = np.random.default_rng(1).integers(60, 180, (24, 32, 3), np.uint8)
DERAIN = ("-a", "derain", "-m", ROOT / "model" / "demo", "--device", "cpu")


def exif() -> bytes:
    data = Image.Exif()
    data[0x010F] = "Maker"
    return data.tobytes()


def write_jpeg(path: str, **options) -> Path:
    options = {"xmp": XMP, "dpi": (300, 300), "comment": b"roof 7", "exif": exif()} | options
    Image.fromarray(RGB).save(path, "JPEG", quality=95, **options)
    return Path(path)


def write_png(path: str) -> Path:
    chunks = PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", 100000))  # linear light
    chunks.add_text("Copyright", "the owner")
    chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
    Image.fromarray(RGB).save(path, "PNG", pnginfo=chunks, dpi=(300, 300), exif=exif())
    return Path(path)


def write_tiff(path: str) -> Path:
    tags = {700: XMP, 33432: "the owner"}
    Image.fromarray(RGB).save(path, "TIFF", dpi=(300, 300), compression="tiff_lzw", tiffinfo=tags)
    return Path(path)


def write_deep(path: str) -> Path:
    tifffile.imwrite(
        path, RGB.astype(np.uint16) * 257, photometric="rgb", metadata=None, software="scanner",
        resolution=(300, 300), resolutionunit="INCH",
        extratags=[(700, "B", len(XMP), XMP, True)],
    )  # fmt: skip
    return Path(path)


def convert(source: Path, suffix: str) -> tuple[dict, str]:
    """What is kept of a picture in another format, and what is said to be dropped."""
    picture, target = read_picture(source), Path(f"out{suffix}")
    target.write_bytes(encode_picture(target, picture))
    return dict(read_picture(target).metadata), describe_dropped(target, picture)


@pytest.mark.parametrize(
    ("write", "suffix", "dropped"),
    [
        (write_jpeg, ".jpg", ""),
        (write_jpeg, ".png", ""),
        (write_jpeg, ".tif", "text:Comment, exif"),
        (write_jpeg, ".webp", "dpi, text:Comment"),
        (write_jpeg, ".bmp", "xmp, text:Comment, exif"),
        (write_png, ".png", ""),
        (write_png, ".jpg", "gamma, text:Copyright"),
        (write_png, ".avif", "dpi, gamma, text:Copyright"),
        (write_tiff, ".tif", ""),
        (write_tiff, ".png", ""),
        (write_deep, ".tif", ""),
        (write_deep, ".png", ""),
    ],
)
def test_metadata_is_kept_where_the_format_can_hold_it_and_otherwise_named(write, suffix, dropped):
    source = write(write.__name__)
    before = dict(read_picture(source).metadata)
    after, named = convert(source, suffix)
    assert named == dropped
    assert before.keys() - after.keys() == set(filter(None, dropped.split(", ")))
    assert after.get("xmp", XMP) == XMP
    assert after.get("dpi", (300, 300)) == pytest.approx((300, 300), abs=0.1)
    assert after.get("gamma", 1.0) == 1.0


def test_derain_keeps_metadata_and_names_in_one_line_what_it_cannot_keep(run):
    write_jpeg("pano.jpg")
    write_png("linear.png")
    Path("in").mkdir()
    for name in ("pano.jpg", "linear.png"):
        Path(name).rename(f"in/{name}")
    second = Image.fromarray(RGB[::-1])
    Image.fromarray(RGB).save("in/two.jpg", "MPO", save_all=True, append_images=[second])
    status, out, _ = run(*DERAIN, "-i", "in", "-o", "out")
    assert status == 0
    assert Image.open("out/pano.jpg").info["xmp"] == XMP
    assert Image.open("out/pano.jpg").info["comment"] == b"roof 7"
    assert Image.open("out/linear.png").info["gamma"] == 1.0
    lines = [line for line in out.splitlines() if "not kept" in line]
    assert lines == ["not kept, as the format cannot hold it: all images but the first of two.jpg"]


def test_metadata_too_long_for_a_jpeg_is_named():
    Image.fromarray(RGB).save("long.webp", lossless=True, xmp=XMP * 2000)
    assert convert(Path("long.webp"), ".jpg") == ({}, "xmp")


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".png"])
def test_alpha_of_255_everywhere_is_no_transparency(run, suffix):
    """As screenshots are saved: the values decide, not whether there is such a channel."""
    Image.fromarray(RGB).convert("RGBA").save("screenshot.png")
    assert read_picture(Path("screenshot.png")).alpha is None
    assert run(*DERAIN, "-i", "screenshot.png", "-o", f"clean{suffix}")[0] == 0
    assert Image.open(f"clean{suffix}").mode == "RGB"
    deep = np.dstack([RGB.astype(np.uint16) * 257, np.full(RGB.shape[:2], 65535, np.uint16)])
    cv2.imwrite("deep.png", deep)
    assert read_picture(Path("deep.png")).alpha is None
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = np.dstack([RGB[..., ::-1], np.full(RGB.shape[:2], 255, np.uint8)])[::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, 32, 24, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    head += bytes(52)
    size = 14 + len(head)
    Path("shot.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", size + len(pixels), 0, 0, size) + head + pixels
    )
    assert run(*DERAIN, "-i", "shot.bmp", "-o", f"shot-clean{suffix}")[0] == 0


def test_the_reason_why_a_tiff_is_refused_is_the_true_one():
    floats = (RGB / 255).astype(np.float32)
    tifffile.imwrite("float.tif", floats, photometric="rgb")
    tifffile.imwrite("int.tif", RGB.astype(np.uint32), photometric="rgb")
    for name, kind in (("float", "32-bit floats"), ("int", "32-bit whole numbers")):
        with pytest.raises(UserError) as caught:
            read_image(Path(f"{name}.tif"), "list:1")
        assert str(caught.value) == (
            f"list:1: {name}.tif: a TIFF of 3 channels of {kind}; expected 8 or 16 bits, whole "
            "numbers, grey or RGB(A)"
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_channel_that_is_no_alpha_is_named_and_left_out(dtype):
    """As near infrared, of which lists said that it is transparent."""
    four = np.dstack([RGB, RGB[..., 1]]).astype(dtype)
    tifffile.imwrite("infrared.tif", four, photometric="rgb", extrasamples=["unspecified"])
    picture = read_picture(Path("infrared.tif"))
    assert picture.alpha is None
    assert np.array_equal(picture.colour[..., ::-1], RGB.astype(dtype))
    named = describe_dropped(Path("out.tif"), picture)
    assert named == "channels that are neither colour nor alpha"


def test_weighed_colours_of_8_bits_are_read_with_their_alpha():
    alpha = np.full(RGB.shape[:2], 128, np.uint8)
    weighed = np.dstack([(RGB.astype(int) * 128 // 255).astype(np.uint8), alpha])
    tifffile.imwrite("a.tif", weighed, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_picture(Path("a.tif"))
    assert (picture.alpha == 128).all()
    assert np.abs(picture.colour[..., ::-1].astype(int) - RGB).max() <= 3


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".png", mode) for mode in ("1", "L", "LA", "P")),
        *((".tif", mode) for mode in ("1", "L", "LA", "P", "PA", "CMYK", "LAB")),
        *((".jpg", mode) for mode in ("L", "CMYK")),
    ],
)
def test_lists_and_derain_agree_on_every_mode(suffix, mode):
    path = Path(f"a{suffix}")
    image = Image.fromarray(RGB).convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    image.save(path)
    found = read_image(path, "list:1")
    assert np.array_equal(found, read_picture(path).colour)
    if suffix != ".jpg" and mode != "LAB":
        assert np.array_equal(found[..., ::-1], np.asarray(image.convert("RGB")))
