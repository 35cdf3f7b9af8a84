"""The picture in view on a page of results, in Chromium: zoom, line, error map, attention, keys."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pages import COLOURS, Watched, write_test_page

from report import page
from report.page import VIEW, find_copies, write_copies
from report.tables import RAINY, SCORE_NAMES, Result, compute_means
from settings import Settings

SIZE = 60, 80
KINDS = ("rainy", "derained", "clean")


def drawn(
    folder: Path, size: tuple[int, int] = SIZE, kinds: tuple[str, ...] = KINDS
) -> dict[str, np.ndarray]:
    """A page of two pictures of noise, each pixel its own; what the first one's copies hold."""
    rng = np.random.default_rng(1)
    images = {kind: rng.integers(0, 256, (*size, 3), np.uint8) for kind in kinds}
    mask = np.zeros(size)
    mask[: size[0] // 2] = 1
    results = []
    for index in range(2):
        write_copies(folder, index, images, mask)
        results.append(Result(index, f"street {index}", {}, *size[::-1], attention=0.5))
    for kind, image in images.items():
        cv2.imwrite(str(folder / f"{kind}.png"), image)
        results[0].files[kind] = folder / f"{kind}.png"
    sides = {kind: kind for kind in kinds}
    page.write_page(folder, "Noise", results, [], Settings("test"), sides)
    return images


def inked(seen: Watched, row: int, column: int) -> np.ndarray:
    """The colour on the screen at the middle of a pixel of the picture, BGR."""
    k, x, y = seen.page.evaluate("[view.k, view.x, view.y]")
    return seen.screen()[int(y + (row + 0.5) * k), int(x + (column + 0.5) * k)]


def test_the_slider_moves_and_the_sides_change(browser, tmp_path):
    seen = Watched(browser, write_test_page(tmp_path, 3))
    red, green, blue = (np.array(colour) for colour in COLOURS)
    assert np.array_equal(seen.pixel(0.25, 0.3), red)
    assert np.array_equal(seen.pixel(0.75, 0.3), green)
    box = seen.page.locator("#stage").bounding_box()
    seen.page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    assert np.array_equal(seen.pixel(0.75, 0.3), red)
    seen.page.locator("#cut").focus()
    seen.page.keyboard.press("Home")
    assert np.array_equal(seen.pixel(0.1, 0.3), green)
    for _ in range(50):
        seen.page.keyboard.press("ArrowRight")  # on the slider it is the slider's own
    assert seen.page.locator("#cut").input_value() == "50"
    assert np.array_equal(seen.pixel(0.25, 0.3), red)
    seen.page.select_option("#side1", "2")
    seen.settle()
    assert np.array_equal(seen.pixel(0.75, 0.3), blue)
    assert seen.page.locator("#label1").inner_text() == "clean"
    seen.page.check("#overlay")
    seen.settle()
    assert np.abs(seen.pixel(0.75, 0.3) - blue).max() > 40
    assert np.abs(seen.pixel(0.25, 0.3) - red).max() > 40
    assert seen.complaints == []


def test_zoom_shows_the_pixels_themselves_and_keeps_both_sides_in_step(browser, tmp_path):
    images = drawn(tmp_path)
    seen = Watched(browser, tmp_path / "index.html")
    fit = seen.page.evaluate("view.k")
    box = seen.page.locator("#stage").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    seen.page.mouse.move(*middle)
    for _ in range(6):
        seen.page.mouse.wheel(0, -100)
    seen.page.wait_for_timeout(100)
    assert seen.page.evaluate("view.k") > 4 * fit
    for column, kind in ((39, "rainy"), (41, "derained")):
        assert np.array_equal(inked(seen, 30, column), images[kind][30, column])
    transforms = """[...document.querySelectorAll('.half img:first-child')]
        .map(one => getComputedStyle(one).transform)"""
    before = seen.page.evaluate(transforms)
    assert len(set(before)) == 1
    seen.page.mouse.move(middle[0] + 100, middle[1])
    seen.page.mouse.down()
    seen.page.mouse.move(middle[0] + 140, middle[1] + 30)
    seen.page.mouse.up()
    after = seen.page.evaluate(transforms)
    assert len(set(after)) == 1
    assert after != before
    x, y = seen.page.evaluate("[view.x, view.y]")
    seen.press("Shift+ArrowLeft", "Shift+ArrowUp")
    assert seen.page.evaluate("[view.x, view.y]") == [x + 60, y + 60]
    seen.press("f")
    for kind in ("derained", "rainy"):
        assert np.array_equal(inked(seen, 28, 38), images[kind][28, 38])
        seen.press("f")
    seen.press("0")
    assert seen.page.evaluate("view.k") == fit
    seen.press("1")
    assert seen.page.evaluate("view.k") == pytest.approx(max(1, fit))
    assert seen.complaints == []


def test_two_fingers_zoom(browser, tmp_path):
    drawn(tmp_path)
    seen = Watched(browser, tmp_path / "index.html")
    fit = seen.page.evaluate("view.k")
    seen.page.evaluate("""() => {
        stage.setPointerCapture = () => {};
        const box = stage.getBoundingClientRect();
        const send = (kind, id, x) => stage.dispatchEvent(new PointerEvent(kind,
            {pointerId: id, clientX: box.left + x, clientY: box.top + 200, pointerType: "touch"}));
        send("pointerdown", 1, 300); send("pointerdown", 2, 400);
        send("pointermove", 1, 200); send("pointermove", 2, 500);
        send("pointerup", 1, 200); send("pointerup", 2, 500);
    }""")
    assert seen.page.evaluate("view.k") == pytest.approx(3 * fit)
    assert seen.page.evaluate("pointers.size") == 0


def differences(images: dict[str, np.ndarray], kind: str, times: int) -> np.ndarray:
    clean = images["clean"].astype(int)
    return np.minimum(times * np.abs(images[kind].astype(int) - clean), 255)


def test_the_error_map_is_the_difference_times_the_factor(browser, tmp_path):
    images = drawn(tmp_path)
    seen = Watched(browser, tmp_path / "index.html")
    places = (29, 38, "rainy"), (30, 41, "derained"), (31, 42, "derained")
    seen.press("e", *["+"] * 8)
    for row, column, kind in places:
        expected = differences(images, kind, 8)[row, column]
        assert np.abs(inked(seen, row, column) - expected).max() <= 1
    seen.page.fill("#times", "3")
    for row, column, kind in places:
        expected = differences(images, kind, 3)[row, column]
        assert np.abs(inked(seen, row, column) - expected).max() <= 1
    seen.page.uncheck("#error")
    assert np.array_equal(inked(seen, 30, 41), images["derained"][30, 41])


def test_a_side_chosen_twice_is_shown_twice_on_every_picture(browser, tmp_path):
    images = drawn(tmp_path)
    seen = Watched(browser, tmp_path / "index.html")
    for name in ("#side0", "#side1"):
        seen.page.select_option(name, "2")
    seen.press("ArrowRight", *["+"] * 8)
    for column in (38, 41):
        assert np.array_equal(inked(seen, 30, column), images["clean"][30, column])


def test_stepping_fast_ends_at_the_picture_that_is_named(browser, tmp_path):
    flat = {k: np.zeros((30, 40, 3), np.uint8) for k in KINDS}
    results = []
    for index in range(20):
        write_copies(tmp_path, index, {kind: image + 10 * index for kind, image in flat.items()})
        results.append(Result(index, str(index), {}, 40, 30))
    sides = {kind: kind for kind in KINDS}
    page.write_page(tmp_path, "Grey", results, [], Settings("test"), sides)
    seen = Watched(browser, tmp_path / "index.html")
    for _ in range(17):
        seen.page.keyboard.press("ArrowRight")
    seen.settle()
    for x in (0.2, 0.8):
        assert set(seen.pixel(x, 0.3)) == {170}


def test_no_result_has_no_error_map(browser, tmp_path):
    images = {kind: np.full((30, 40, 3), 200, np.uint8) for kind in ("rainy", "clean")}
    write_copies(tmp_path, 0, images)
    results = [Result(0, "a", {}, 40, 30, scores={RAINY: dict.fromkeys(SCORE_NAMES, 1.0)})]
    means = compute_means(results, [RAINY])
    page.write_page(tmp_path, "One", results, [], Settings("test"), page.TEST_SIDES, means)
    seen = Watched(browser, tmp_path / "index.html")
    seen.press("e")
    assert seen.page.locator("#label1").inner_text() == "derained: no result"
    layers = "[...halves[1].querySelectorAll('img')].map(one => one.src + one.alt)"
    assert seen.page.evaluate(layers) == ["", ""]


def test_the_crop_in_view_is_saved_at_its_own_pixels(browser, tmp_path):
    images = drawn(tmp_path)
    seen = Watched(browser, tmp_path / "index.html")
    seen.press(*["+"] * 8)
    for error in (False, True):
        if error:
            seen.press("e")
        with seen.page.expect_download() as download:
            seen.page.keyboard.press("s")
        name = download.value.suggested_filename
        stem, x, y, size = name.removesuffix(".png").rsplit("_", 3)
        width, height = map(int, size.split("x"))
        assert stem == "street_0"
        found = cv2.imread(str(download.value.path()))
        assert found.shape == (height, width, 3)
        assert 0 < width < SIZE[1]
        crop = (slice(int(y), int(y) + height), slice(int(x), int(x) + width))
        left, right, clean = (images[kind][crop].astype(int) for kind in KINDS)
        if error:
            left, right = (np.minimum(8 * np.abs(side - clean), 255) for side in (left, right))
        assert np.array_equal(found[:, 0], left[:, 0])
        assert np.array_equal(found[:, -1], right[:, -1])
    seen.press("e", "a")
    with seen.page.expect_download() as download:
        seen.page.keyboard.press("s")
    found = cv2.imread(str(download.value.path())).astype(int)
    on_screen = inked(seen, int(y) + 1, int(x) + 1)
    assert np.abs(found[1, 1] - on_screen).max() <= 2
    assert np.abs(found[1, 1] - images["rainy"][int(y) + 1, int(x) + 1].astype(int)).max() > 9
    assert seen.complaints == []


def test_keys_anywhere_on_the_page(browser, tmp_path):
    drawn(tmp_path)
    seen = Watched(browser, tmp_path / "index.html")
    name = seen.page.locator("#name")
    seen.page.locator("#table thead button").first.focus()
    seen.press("ArrowRight")
    assert name.inner_text() == "street 1"
    assert seen.page.title() == "street 1 - Noise"
    seen.press("ArrowRight")
    assert name.inner_text() == "street 1"  # the last one
    seen.press("ArrowLeft")
    assert name.inner_text() == "street 0"
    seen.page.locator("#side0").focus()
    seen.press("e")  # in a list to choose from, it is not the page's
    assert not seen.page.is_checked("#error")
    seen.page.locator("#overlay").focus()
    seen.press("a")
    assert seen.page.is_checked("#overlay")
    seen.press("?")
    assert seen.page.locator("#keys").is_visible()
    listed = seen.page.locator("#keylist kbd").all_inner_texts()
    assert len(listed) == seen.page.evaluate("KEYS.length")
    assert {"←", "→", "f", "+", "-", "0", "a", "e", "s", "?"} <= set(listed)
    seen.press("Escape")
    assert not seen.page.locator("#keys").is_visible()


# Each button of the page of a test, an expression, and its value after a press.
PRESSED = [
    ("#next", "byId('name').innerText", "image <b>1</b>"),
    ("#previous", "byId('name').innerText", "image <b>0</b>"),
    ("#flip", "byId('cut').value", "0"),
    ("#in", "view.fit", False),
    ("#out", "view.fit", True),
    ("#in", "view.fit", False),
    ("#pixels", "view.fit", True),  # the picture is small
    ("#in", "view.fit", False),
    ("#fit", "view.fit", True),
    ("#overlay", "byId('mask').hidden", False),
    ("#error", "halves[0].querySelector('.truth').src !== ''", True),
    ("#help", "byId('keys').open", True),
    ("#keys button", "byId('keys').open", False),
    ("#most", "byId('count').innerText", "10 of 12 shown"),
    ("#least", "byId('all').disabled", False),
    ("#all", "byId('count').innerText", "12 of 12 shown"),
    ("#strip button >> nth=2", "byId('name').innerText", "image <b>2</b>"),
    ("#table thead button >> nth=0", "byId('order').value", "-1"),
    ("#table .pick >> nth=1", "byId('name').innerText", "image <b>1</b>"),
    ("details:has(#settings) summary", "byId('settings').checkVisibility()", True),
    ("#all-pictures summary", "byId('table').checkVisibility()", False),
]
UNPRESSED = """[...document.querySelectorAll("button, summary, input[type=checkbox], header a")]
    .filter(node => node.checkVisibility() && !node.closest("#strip, .pressed"))
    .map(node => node.outerHTML)"""


def test_every_button_and_link_does_its_work(browser, tmp_path):
    seen = Watched(browser, write_test_page(tmp_path, 12))
    (tmp_path / "metrics.csv").write_text("a,b")
    (tmp_path / "derained").mkdir()
    cv2.imwrite(str(tmp_path / "derained" / "1 %.png"), np.zeros((8, 8, 3), np.uint8))
    seen.page.evaluate("""document.addEventListener("click", event =>
        event.target.closest("button, a, summary, input")?.classList.add("pressed"), true)""")
    for button, expression, expected in PRESSED:
        seen.page.click(button)
        seen.settle()
        assert seen.page.evaluate(expression) == expected, button
    for button, name in (("#save", "image_b_1_b_"), ("#links a", "metrics.csv")):
        with seen.page.expect_download() as download:
            seen.page.click(button)
        assert download.value.suggested_filename.startswith(name)
    assert seen.page.evaluate(UNPRESSED) == []
    seen.page.click("#facts a")
    assert seen.page.url.endswith("/derained/1%20%25.png")


SOURCES = "[...document.querySelectorAll('.half img:first-child')].map(one => one.src)"


def test_large_pictures_are_reduced_until_they_are_zoomed(browser, tmp_path):
    size = 900, 2 * VIEW
    images = drawn(tmp_path, size)
    seen = Watched(browser, tmp_path / "index.html")
    assert "a copy of 1280 pixels" in seen.page.locator("#facts").inner_text()
    assert all(one.startswith("data:image/png") for one in seen.page.evaluate(SOURCES))
    seen.press(*["+"] * 16)
    middle = size[1] // 2
    places = (middle - 2, "rainy"), (middle + 2, "derained")
    for keys in ([], ["a", "a"], ["ArrowRight", "ArrowLeft"]):
        seen.press(*keys)
        assert all(one.endswith(".png") for one in seen.page.evaluate(SOURCES))
        for column, kind in places:
            assert np.array_equal(inked(seen, 440, column), images[kind][440, column])
    seen.press("e")
    for column, kind in places:
        expected = differences(images, kind, 8)[440, column]
        assert np.abs(inked(seen, 440, column) - expected).max() <= 1
    (tmp_path / "derained.png").unlink()
    cv2.imwrite(str(tmp_path / "rainy.png"), images["rainy"][:, 1:])  # no longer that picture
    seen = Watched(browser, tmp_path / "index.html")
    seen.press(*["+"] * 16)
    assert all(one.startswith("data:image/png") for one in seen.page.evaluate(SOURCES))


def test_reduced_copies_without_a_clean_image_take_little_room(tmp_path):
    drawn(tmp_path, (40, 2 * VIEW), ("rainy", "derained"))
    copies = [
        path.read_bytes()[:50]
        for path in find_copies(tmp_path)
        if path.suffix == ".js" and "mask" not in path.name
    ]
    assert copies
    assert all(b"data:image/jpeg" in text for text in copies)


@pytest.mark.parametrize("size", [(10, 20_000), (20_000, 10), (1, 1)])
def test_any_shape_can_be_looked_into(browser, tmp_path, size):
    drawn(tmp_path, size)
    seen = Watched(browser, tmp_path / "index.html")
    assert seen.page.locator("#stage").bounding_box()["height"] > 150
    seen.press("+", "1")
    assert seen.page.evaluate("view.k") >= 1
    with seen.page.expect_download():
        seen.page.keyboard.press("s")
    assert [c for c in seen.complaints if "ERR_FILE_NOT_FOUND" not in c] == []


def test_after_the_first_pictures_the_files_themselves_are_shown(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_COPIED", 1)
    images = drawn(tmp_path)
    text = (tmp_path / "index.html").read_text()
    files = '{"rainy": "rainy.png", "derained": "none.png", "clean": "clean.png"}'
    assert text.count('"files": {}') == 1
    (tmp_path / "index.html").write_text(text.replace('"files": {}', f'"files": {files}'))
    assert len(find_copies(tmp_path)) == 4 + 1 + 1  # of the first; a thumbnail of the other
    seen = Watched(browser, tmp_path / "index.html")
    assert seen.page.locator("#save").is_visible()
    seen.press("ArrowRight")
    assert "a file is missing, or the browser" in seen.page.locator("#lost").inner_text()
    seen.page.select_option("#side1", "2")
    seen.settle()
    assert all(one.endswith(".png") for one in seen.page.evaluate(SOURCES))
    seen.press(*["+"] * 8)
    for column, kind in ((39, "rainy"), (41, "clean")):
        assert np.array_equal(inked(seen, 30, column), images[kind][30, column])
    seen.press("e")
    expected = differences(images, "rainy", 8)[30, 39]
    assert np.abs(inked(seen, 30, 39) - expected).max() <= 1
    for name in ("#save", "#attention"):
        assert not seen.page.locator(name).is_visible()
    assert "copies of the first 1 pictures" in seen.page.locator("#facts").inner_text()


def test_a_page_that_lost_its_pictures_says_so(browser, tmp_path):
    drawn(tmp_path)
    for path in find_copies(tmp_path):
        path.unlink()
    seen = Watched(browser, tmp_path / "index.html")
    assert "missing in index_files" in seen.page.locator("#lost").inner_text()
    seen.page.keyboard.press("s")
    seen.settle()
    assert "the crop is not saved" in seen.page.locator("#lost").inner_text()


def test_what_is_missing_of_one_picture_is_not_told_of_the_next(browser, tmp_path):
    drawn(tmp_path)
    (tmp_path / "index_files" / "000000-derained.js").unlink()
    seen = Watched(browser, tmp_path / "index.html")
    assert seen.page.locator("#lost").is_visible()
    seen.press("ArrowRight")
    assert not seen.page.locator("#lost").is_visible()


def test_a_phone_scrolls_in_one_direction(browser, tmp_path):
    seen = Watched(browser, write_test_page(tmp_path, 3, "scene_" * 30 + "{}"), width=390)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 390
    assert seen.page.locator("#stage").bounding_box()["width"] > 350
    caption = seen.page.locator("#table caption").bounding_box()
    assert caption["x"] + caption["width"] <= 390
    assert "1 picture:" in seen.page.locator("#histogram").inner_text()
    for table in ("scores", "means", "table"):
        heading = f"document.querySelector('#{table} thead th:last-child')"
        seen.page.evaluate(f"{heading}.textContent = 'x'.repeat(99)")
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 390, table
