"""The page of a result folder, in a real browser without a window: Chromium, where it is there."""

import csv
import re
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_pairs

from report import page
from report.metrics import PROTOCOLS
from report.table import SCORES, Row, Table
from settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
COLOURS = ((0, 0, 200), (0, 200, 0), (200, 0, 0))  # BGR, of rainy, derained and clean
FOCUSED = "(node => node.id || node.className || node.innerText)(document.activeElement)"
GAIN = 2  # the column of the PSNR gain in the first protocol, after the name


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


class Watched:
    """A page, and what it asked for and complained of."""

    def __init__(self, browser, path: Path, scheme: str = "light", script: bool = True) -> None:
        self.requests, self.complaints = [], []
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": 1200, "height": 800}, java_script_enabled=script
        )
        self.page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.resolve().as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait for the pictures in view."""
        # Not by the driver's own wait_for_function: it evaluates text, which the page forbids.
        done = "[...document.querySelectorAll('.stage img')].every(one => !one.src || one.complete)"
        end = time.monotonic() + 30
        while not self.page.evaluate(done):
            assert time.monotonic() < end, "pictures do not load"
            time.sleep(0.02)

    def column(self, number: int) -> list[str]:
        return self.page.locator(f"#table tbody td:nth-child({number + 1})").all_inner_texts()

    def pixel(self, x: float, y: float) -> np.ndarray:
        """The colour at a share of the stage's width and height, (3,) BGR."""
        shot = cv2.imdecode(np.frombuffer(self.page.locator("#stage").screenshot(), np.uint8), 1)
        return shot[int(y * (shot.shape[0] - 1)), int(x * (shot.shape[1] - 1))].astype(int)


def made(folder: Path, count: int, name: str = "image <b>{}</b>") -> Path:
    """A page of a test of that many flat pictures: rainy red, derained green, truth blue."""
    rng = np.random.default_rng(0)
    flat = [np.full((30, 40, 3), colour, np.uint8) for colour in COLOURS]
    rows = []
    for index in range(count):
        if index < 3:
            page.write_pictures(folder, index, *flat[:2], np.ones((30, 40)), flat[2])
        row = Row(index, name.format(index), f"derained/{index} %.png", 40, 30, 0.5, 0.1, 3.0)
        for side, base in (("input", 25), ("output", 30)):
            for protocol in PROTOCOLS:
                row.scores[f"{side}_{protocol}_psnr"] = base + rng.normal(0, 2)
                row.scores[f"{side}_{protocol}_ssim"] = rng.uniform(0.8, 1)
        rows.append(row)
    rows[1].scores["output_released_psnr"] = float("inf")
    rows[2].scores["output_released_psnr"] = float("nan")
    means = dict.fromkeys(rows[0].scores, 0.5)
    content = page.scored_page(rows, means)
    run = [("model", "model/x </script><script>alert(1)</script>")]
    page.write_page(folder, "A test & more", content, run, Settings("test", device="cpu"))
    return folder / "index.html"


def test_the_slider_moves_and_the_overlay_shows(browser, tmp_path):
    seen = Watched(browser, made(tmp_path, 3))
    red, green, blue = (np.array(colour) for colour in COLOURS)
    assert np.abs(seen.pixel(0.25, 0.3) - red).max() < 12
    assert np.abs(seen.pixel(0.75, 0.3) - green).max() < 12
    box = seen.page.locator("#stage").bounding_box()
    seen.page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    assert np.abs(seen.pixel(0.75, 0.3) - red).max() < 12
    seen.page.locator("#cut").focus()
    seen.page.keyboard.press("Home")
    assert np.abs(seen.pixel(0.1, 0.3) - green).max() < 12
    for _ in range(50):
        seen.page.keyboard.press("ArrowRight")
    assert seen.page.locator("#cut").input_value() == "50"
    assert np.abs(seen.pixel(0.25, 0.3) - red).max() < 12
    seen.page.select_option("#side", "clean")
    seen.settle()
    assert np.abs(seen.pixel(0.75, 0.3) - blue).max() < 12
    assert seen.page.locator("#right").inner_text() == "clean"
    before = seen.pixel(0.75, 0.3)
    seen.page.check("#overlay")
    seen.settle()
    assert np.abs(seen.pixel(0.75, 0.3) - before).max() > 40
    assert seen.complaints == []


def test_the_table_sorts_by_every_heading_and_shows_the_worst_ten(browser, tmp_path):
    seen = Watched(browser, made(tmp_path, 25))
    names = [f"image <b>{i}</b>" for i in range(25)]
    assert seen.column(0) == names
    headings = seen.page.locator("#table thead th button")
    assert headings.count() == 1 + 4 * len(PROTOCOLS)
    for number in range(headings.count()):
        for order in ("ascending", "descending"):
            headings.nth(number).click()
            heading = seen.page.locator("#table thead tr:nth-child(2) th").nth(number)
            assert heading.get_attribute("aria-sort") == order
            found = seen.column(number)
            if number == 0:
                assert found == (names if order == "ascending" else names[::-1])
                continue
            values = [float(v.replace("∞", "inf")) for v in found if v != "n/a"]
            assert values == sorted(values, reverse=order == "descending")
            assert "n/a" not in found[: len(values)]  # what is not known comes last
    gains = seen.column(GAIN)
    seen.page.click("#ten")
    worst = sorted(float(gain) for gain in gains if gain not in ("n/a", "+∞"))[:10]
    assert [float(gain) for gain in seen.column(GAIN)] == worst
    assert seen.page.locator("#name").inner_text() == seen.column(0)[0]
    assert seen.page.locator("#count").inner_text() == "10 of 25 shown"
    seen.page.click("#all")
    assert seen.column(0) == names
    # Only three of the rows have pictures.
    assert all("index_files" in word or "NOT_FOUND" in word for word in seen.complaints)


def test_all_of_it_by_keyboard(browser, tmp_path):
    seen = Watched(browser, made(tmp_path, 3))
    page, reached = seen.page, []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        if page.evaluate("document.activeElement === document.body"):
            break  # past the last one
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        stage = "getComputedStyle(document.getElementById('stage')).outlineStyle"
        assert page.evaluate(stage if reached[-1] == "cut" else outline) != "none", reached[-1]
        if reached[-1] == "next":
            page.keyboard.press("Enter")
            assert page.locator("#name").inner_text() == "image <b>1</b>"
        if reached[-1] == "PSNR gain":
            page.keyboard.press("Enter")
    names = "protocol cut next overlay strength side file ten picture pick"
    assert set(names.split()) <= set(reached)
    assert page.locator("th[aria-sort]").count() == 1
    unnamed = """[...document.querySelectorAll("input, select, button, a")].filter(node =>
        !node.innerText && !node.getAttribute("aria-label") && !node.labels?.length).length"""
    assert page.evaluate(unnamed) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(browser, tmp_path, scheme):
    seen = Watched(browser, made(tmp_path, 3), scheme)
    colours = seen.page.evaluate("""() => ["body", ".faint", ".pick", ".loss", "a"].map(name =>
        getComputedStyle(document.querySelector(name) || document.body).color)""")
    colours.append(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light = [luminance(colour) for colour in colours]
    assert (light[-1] > 0.9) == (scheme == "light")
    for ink in light[:-1]:
        low, high = sorted((ink, light[-1]))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2, level AA
    assert seen.complaints == []


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_a_thousand_pictures_are_light(browser, tmp_path):
    path = made(tmp_path, 1000, "a/{}.png")
    assert path.stat().st_size < 1_000_000
    seen = Watched(browser, path)
    asked = {url.rsplit("/", 1)[1] for url in seen.requests}
    assert len([name for name in asked if name.endswith("-thumb.jpg")]) < 120
    assert len([name for name in asked if re.search("-(before|after)", name)]) == 2
    assert seen.page.locator("#table tbody tr").count() == 1000
    assert all(url.startswith(("file:", "data:")) for url in seen.requests)
    assert "1000 pictures" not in seen.page.locator("#run").inner_text()
    assert "</script><script>alert(1)" in seen.page.locator("#run").inner_text()


def test_pages_of_real_runs(browser, run, model, tmp_path):
    pairs = write_pairs(tmp_path / "data", [(24, 31), (40, 32)])
    assert run("-a", "test", "--test-list", pairs, "--device", "cpu")[0] == 0
    source = tmp_path / "data" / "rain"
    status, out, _ = run("-a", "derain", "-i", source, "-o", "out", "--device", "cpu")
    assert status == 0
    assert "2 of 2 derained; open out/index.html to look at them\n" in out
    for folder, columns in (("results", 1 + 4 * len(PROTOCOLS)), ("out", 5)):
        seen = Watched(browser, Path(folder, "index.html"))
        assert len(seen.page.locator("#table thead th button").all()) == columns
        assert [Path(name).stem for name in seen.column(0)] == ["pair0", "pair1"]
        for name in ("#summary", "#distribution", "#compare"):  # where the truth is known
            assert seen.page.locator(name).is_visible() == (folder == "results")
        text = seen.page.locator("#run").inner_text()
        for word in ("model/latest, step 4, SHA-256 ", "torch 2", "Python 3", "thread", "took"):
            assert word in text
        seen.page.click("summary")
        assert "result_dir" in seen.page.locator("#settings").inner_text()
        href = seen.page.locator("#file").get_attribute("href")
        assert Path(folder, href).is_file()
        assert seen.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in seen.requests)


def test_an_earlier_page_goes_and_nothing_else(tmp_path):
    made(tmp_path, 3)
    for name in ("index_files/notes.txt", "index_files/holiday-after.jpg", "other.html"):
        (tmp_path / name).touch()
    page.remove_page(tmp_path)
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["index_files/holiday-after.jpg", "index_files/notes.txt", "other.html"]
    page.remove_page(tmp_path / "none")


def test_figures_of_a_picture():
    before, after = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), 90, np.uint8)
    row = Row.of(3, "name", "file", before, after, np.array([[0, 1], [0.5, 0.5]]))
    assert (row.index, row.name, row.file, row.width, row.height) == (3, "name", "file", 2, 2)
    assert (row.attention, row.change) == (0.5, 10.0)
    assert row.deviation == pytest.approx(0.125**0.5)
    deep = [image.astype(np.uint16) * 257 for image in (before, after)]
    row = Row.of(0, "", "", *deep, np.ones((2, 2), np.float32))
    assert row.change == pytest.approx(10)
    assert row.deviation == 0


def test_no_name_is_a_formula(tmp_path):
    names = ["=HYPERLINK(1)", "+1", "-1.png", "@a", "plain=", ""]
    with Table(tmp_path / "metrics.csv") as table:
        for name in names:
            row = Row(0, name, "", 4, 4, 0.5, 0.1, 1.0, rainy=name, clean=name)
            row.scores = dict.fromkeys(SCORES, -1.5)
            table.add(row)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = ["'=HYPERLINK(1)", "'+1", "'-1.png", "'@a", "plain=", ""]
    for column in ("name", "rainy", "clean"):
        assert [row[column] for row in rows] == expected
    assert {row[name] for row in rows for name in SCORES} == {"-1.5"}
