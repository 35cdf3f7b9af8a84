"""Lists and the images that they name: what is read, and what is refused in one line."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from media import lists
from media.pictures import read_image
from settings import UserError


def image_file(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def colours(height: int = 9, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)


# Lists


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_list_is_parsed_whatever_its_line_ends(tmp_path, ending, mark):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        image_file(tmp_path / name, colours())
    newline = ending or "\n"
    text = newline.join(["# pairs", "", "a.png b.png", "   ", "c.png\t d.png"]) + ending
    (tmp_path / "list.txt").write_bytes(mark + text.encode())
    pairs = lists.read_list(str(tmp_path / "list.txt"))
    assert [(p.rainy.name, p.clean.name) for p in pairs] == [("a.png", "b.png"), ("c.png", "d.png")]
    assert [p.location.rsplit(":", 1)[1] for p in pairs] == ["3", "5"]


def test_tab_separates_names_that_hold_spaces(tmp_path):
    image_file(tmp_path / "heavy rain.png", colours())
    image_file(tmp_path / "no rain.png", colours())
    path = tmp_path / "list.txt"
    path.write_text("heavy rain.png\tno rain.png\n")
    (pair,) = lists.read_list(str(path))
    assert (pair.rainy.name, pair.clean.name) == ("heavy rain.png", "no rain.png")
    path.write_text("heavy rain.png\t\n")
    assert lists.read_list(str(path))[0].clean is None


@pytest.mark.parametrize("mark", ["\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\u2028", "\u2029"])
@pytest.mark.parametrize("blank", ["\u3000", "\xa0", "\u2003"])
def test_only_line_feeds_and_returns_end_a_line_and_only_blanks_separate(tmp_path, mark, blank):
    names = [f"{blank}rain{mark}1.png", f"clean{blank}1{mark}.png"]
    for name in names:
        image_file(tmp_path / name, colours())
    both = f"{names[0]}  {names[1]}"
    text = f"{names[0]} \t{names[1]}\r{both} \r\n# {mark}\n \t\n{both}"
    (tmp_path / "list.txt").write_bytes(text.encode())
    found = lists.read_list("list.txt")
    assert [(p.rainy.name, p.clean.name) for p in found] == [tuple(names)] * 3
    assert [p.location for p in found] == ["list.txt:1", "list.txt:2", "list.txt:5"]


@pytest.mark.parametrize("name", ["x/a.png", "./x/a.png", "/x/a.png"])
@pytest.mark.parametrize("beside_list", [True, False])
def test_published_prefixes_are_found_beside_the_list_and_in_the_working_folder(
    tmp_path, monkeypatch, name, beside_list
):
    (tmp_path / "lists").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    home = tmp_path / ("lists" if beside_list else "work")
    expected = image_file(home / "x" / "a.png", colours())
    (tmp_path / "lists" / "list.txt").write_text(name)
    (pair,) = lists.read_list("../lists/list.txt")
    assert pair.rainy.resolve() == expected


def test_absolute_names_are_taken_as_given(tmp_path):
    expected = image_file(tmp_path / "a.png", colours())
    (tmp_path / "list.txt").write_text(f"{expected}\n")
    assert lists.read_list("list.txt")[0].rainy == expected


def test_what_finds_the_first_image_decides_for_the_list(tmp_path, monkeypatch):
    for folder in ("lists/x", "work/x"):
        image_file(tmp_path / folder / "b.png", colours())
    image_file(tmp_path / "lists/x/a.png", colours())
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "lists" / "list.txt").write_text("x/a.png\nx/b.png\n")
    files = [pair.rainy.resolve() for pair in lists.read_list("../lists/list.txt")]
    assert files == [tmp_path / "lists/x/a.png", tmp_path / "lists/x/b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list is empty"),
        ("# nothing\n\n", "list is empty"),
        ("a.png b.png\nmissing.png b.png\n", r":2: no such image: missing.png"),
        ("missing.png\n", r":1: no such image: missing.png \(looked for missing.png, "),
        ("a.png b.png c.png\n", r":1: 3 names; expected `rainy clean`.*TAB"),
        ("a.png b.png\na.png\n", r":2: 1 name; expected `rainy clean` in every line"),
        ("a.png\x00\n", r":1: "),
        ("x" * 5000, r":1: no such image: xxx"),
        (b"caf\xe9.png\n", "not UTF-8"),
    ],
)
def test_bad_lists_are_refused_by_line(tmp_path, text, message):
    for name in ("a.png", "b.png", "c.png"):
        image_file(tmp_path / name, colours())
    (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"list\.txt.*" + message):
        lists.read_list(str(tmp_path / "list.txt"))


def test_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt: cannot read the list: No such file"):
        lists.read_list("nowhere.txt")
    with pytest.raises(UserError, match="holds no images; expected "):
        lists.read_list(str(tmp_path))


def test_training_needs_clean_images(tmp_path):
    image_file(tmp_path / "a.png", colours())
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(UserError, match=r"list\.txt:1: expected `rainy clean`"):
        lists.read_list("list.txt", need_clean=True)


# Images


def test_colours_are_bgr(tmp_path):
    image = colours()
    path = image_file(tmp_path / "a.png", image)
    assert np.array_equal(read_image(path, "x"), image)


def test_greyscale_is_spread_and_opaque_alpha_dropped(tmp_path):
    grey = colours(channels=1)[..., 0]
    found = read_image(image_file(tmp_path / "grey.png", grey), "x")
    assert np.array_equal(found, np.dstack([grey] * 3))
    opaque = np.dstack([colours(), np.full((9, 8), 255, np.uint8)])
    found = read_image(image_file(tmp_path / "opaque.png", opaque), "x")
    assert np.array_equal(found, colours())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (colours(channels=4), "transparent"),
        (colours().astype(np.uint16) * 257, "uint16 values; expected 8 bits"),
        (colours(channels=1)[..., 0].astype(np.uint16), "uint16 values; expected 8 bits"),
    ],
)
def test_what_cannot_be_read_faithfully_is_refused(tmp_path, image, message):
    path = image_file(tmp_path / "odd.png", image)
    with pytest.raises(UserError, match=rf"list:3: .*odd\.png: .*{message}"):
        read_image(path, "list:3")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_images_are_refused(tmp_path, capfd, suffix, share):
    path = image_file(tmp_path / f"whole.{suffix}", cv2.resize(colours(), (64, 64)))
    data = path.read_bytes()
    assert read_image(path, "x").shape == (64, 64, 3)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"x: .*whole\..*: not an image that can be read"):
        read_image(path, "x")
    assert capfd.readouterr().err == ""


def test_a_damaged_png_is_one_line_and_a_longer_one_is_read(tmp_path, capfd):
    path = image_file(tmp_path / "a.png", cv2.resize(colours(), (64, 64)))
    data = path.read_bytes()
    path.write_bytes(data + bytes(100))
    assert read_image(path, "x").shape == (64, 64, 3)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(UserError, match="not an image that can be read, or damaged"):
        read_image(path, "x")
    assert capfd.readouterr().err == ""


def test_text_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UserError, match=r"a\.png: not an image that can be read"):
        read_image(tmp_path / "a.png", "x")


def test_pair_of_different_sizes_is_refused(tmp_path):
    rainy, clean = (image_file(tmp_path / f"{n}.png", colours(width=n)) for n in (8, 7))
    with pytest.raises(UserError, match=r"list:1: .*differ in size: .*8x9.*7x9"):
        lists.read_pair(lists.Pair(rainy, clean, "list:1"))
