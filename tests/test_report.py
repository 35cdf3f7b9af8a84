"""The page of a result folder: its lists and figures; test_page.py looks at the picture in view."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pairs
from pages import Watched, write_test_page

from report.result_folder import open_result_folder
from report.tables import CLEAN, RAINY, SCORE_NAMES, Result, append_row, wide_row

FOCUSED = "(node => node.id || node.className || node.innerText)(document.activeElement)"
GAIN = 5  # the column of the PSNR gain, after the name and both scores of either side


def test_the_table_sorts_by_every_heading_and_shows_the_extremes(browser, tmp_path):
    seen = Watched(browser, write_test_page(tmp_path, 25))
    names = [f"image <b>{i}</b>" for i in range(25)]
    assert seen.column(0) == names
    headings = seen.page.locator("#table thead th button")
    assert headings.count() == 1 + 3 * 2
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
    known = sorted(float(gain.replace("∞", "inf")) for gain in gains if gain != "n/a")
    for button, expected in (("#least", known[:10]), ("#most", known[:-11:-1])):
        seen.page.click(button)
        assert [float(gain.replace("∞", "inf")) for gain in seen.column(GAIN)] == expected
        assert seen.page.locator("#name").inner_text() == seen.column(0)[0]
        assert seen.page.locator("#count").inner_text() == "10 of 25 shown"
        assert seen.page.locator("#strip li").count() == 10
    seen.page.click("#all")
    assert seen.column(0) == names
    seen.page.select_option("#order", "-1")
    seen.page.locator("#table thead th button").first.click()
    assert seen.column(0) == names[::-1]
    before = seen.column(GAIN)
    seen.page.select_option("#protocol", "2")
    assert seen.column(0) == names[::-1]  # still in the order that was chosen
    assert "n/a" not in seen.column(GAIN) != before
    # Only three of the rows have pictures.
    assert all("index_files" in word or "NOT_FOUND" in word for word in seen.complaints)


def test_all_of_it_by_keyboard(browser, tmp_path):
    seen = Watched(browser, write_test_page(tmp_path, 11))
    page, reached = seen.page, []
    for _ in range(60):
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
        if reached[-1] == "SSIM":
            page.keyboard.press("Enter")
    names = "cut next side0 side1 flip out in fit pixels overlay error times save help protocol"
    names += " order most picture pick"
    assert set(names.split()) <= set(reached)
    assert page.locator("th[aria-sort]").count() == 1
    unnamed = """[...document.querySelectorAll("input, select, button, a")].filter(node =>
        !node.innerText && !node.getAttribute("aria-label") && !node.labels?.length).length"""
    assert page.evaluate(unnamed) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(browser, tmp_path, scheme):
    seen = Watched(browser, write_test_page(tmp_path, 3), scheme)
    names = ["body", ".faint", ".pick", ".loss", "a", "dt"]
    colours = seen.page.evaluate(f"""() => {names}.map(name =>
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
    path = write_test_page(tmp_path, 1000, "a/{}.png")
    assert path.stat().st_size < 1_000_000
    seen = Watched(browser, path)
    asked = {url.rsplit("/", 1)[1] for url in seen.requests}
    assert len([name for name in asked if name.endswith("-thumb.jpg")]) < 120
    assert {name for name in asked if name.endswith(".js")} == {
        "000000-rainy.js",
        "000000-derained.js",
    }
    assert seen.page.locator("#table tbody tr").count() == 1000
    assert seen.page.locator("#strip li").count() == 1000
    assert all(url.startswith(("file:", "data:")) for url in seen.requests)
    assert "1000 pictures" not in seen.page.locator("#run").inner_text()
    assert "</script><script>alert(1)" in seen.page.locator("#run").inner_text()


def test_a_hundred_thousand_lines_are_not_drawn(browser, tmp_path):
    seen = Watched(browser, write_test_page(tmp_path, 2100, "{}"))
    assert seen.page.locator("#count").inner_text() == "2000 of 2100 shown"
    seen.page.select_option("#order", "-1")
    seen.page.locator("#table thead th button").first.click()
    assert seen.column(0)[:2] == ["2099", "2098"]


def test_pages_of_real_runs(browser, run, model, tmp_path):
    pairs = write_pairs(tmp_path / "data", [(24, 31), (40, 32)])
    assert run("-a", "test", "--test-list", pairs, "--device", "cpu")[0] == 0
    source = tmp_path / "data" / "rain"
    status, out, _ = run("-a", "derain", "-i", source, "-o", "out", "--device", "cpu")
    assert status == 0
    assert "2 of 2 derained; open out/index.html to look at them\n" in out
    for folder, columns in (("results", 7), ("out", 5)):
        seen = Watched(browser, Path(folder, "index.html"))
        assert seen.page.locator("#table").is_visible() == (folder == "results")
        if folder == "out":
            seen.page.click("#all-pictures summary")
        assert len(seen.page.locator("#table thead th button").all()) == columns
        assert [Path(name).stem for name in seen.column(0)] == ["pair0", "pair1"]
        for name in ("#summary", "#distribution", "#errors"):  # where the truth is known
            assert seen.page.locator(name).is_visible() == (folder == "results")
        text = seen.page.locator("#run").inner_text()
        for word in ("model/latest, step 4, SHA-256 ", "torch 2", "Python 3", "thread", "took"):
            assert word in text
        assert seen.page.locator("#more").is_visible() == (folder == "out")
        if folder == "out":
            texts = [seen.page.locator(name).inner_text() for name in ("#facts", "#lead", "#strip")]
            seen.page.click("#more summary")
            for word in ("attention", "change", "seconds", "frames"):
                assert word not in " ".join(texts)
                assert word in seen.page.locator("#figures").inner_text()
        seen.page.click("details:has(#settings) summary")
        assert "result_dir" in seen.page.locator("#settings").inner_text()
        links = [a.get_attribute("href") for a in seen.page.locator("#facts a, #links a").all()]
        assert len(links) == (5 if folder == "results" else 2)
        assert all(Path(folder, href).is_file() for href in links)
        assert seen.page.title().startswith(seen.column(0)[0] + " - SPANet: ")
        assert seen.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in seen.requests)


def test_an_earlier_page_goes_and_nothing_else(tmp_path):
    write_test_page(tmp_path, 3)
    for name in ("index_files/notes.txt", "index_files/000001-my.js", "other.html"):
        (tmp_path / name).touch()
    with open_result_folder(tmp_path, "-o", inputs=[], outputs=[]):
        pass
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["index_files/000001-my.js", "index_files/notes.txt", "other.html"]
    with open_result_folder(tmp_path / "none", "-o", inputs=[], outputs=[]):
        pass


def test_figures_of_a_picture():
    before, after = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), 90, np.uint8)
    row = Result.from_images(3, "name", {}, before, after, np.array([[0, 1], [0.5, 0.5]]))
    assert (row.index, row.name, row.width, row.height) == (3, "name", 2, 2)
    assert (row.attention, row.change) == (0.5, 10.0)
    assert row.deviation == pytest.approx(0.125**0.5)
    deep = [image.astype(np.uint16) * 257 for image in (before, after)]
    row = Result.from_images(0, "", {}, *deep, np.ones((2, 2), np.float32))
    assert row.change == pytest.approx(10)
    assert row.deviation == 0


def test_no_name_is_a_formula(tmp_path):
    names = ["=HYPERLINK(1)", "+1", "-1.png", "@a", "plain=", "a b"]
    scores = {image: dict.fromkeys(SCORE_NAMES, -1.5) for image in ("rainy", "derained")}
    for name in names:
        files = {RAINY: Path(name), CLEAN: Path(name)}
        row = wide_row(Result(0, name, files, 4, 4, scores=scores))
        append_row(tmp_path / "metrics.csv", row)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = ["'=HYPERLINK(1)", "'+1", "'-1.png", "'@a", "plain=", "a b"]
    for column in ("name", "rainy", "clean"):
        assert [row[column] for row in rows] == expected
    assert {row[name] for row in rows for name in row if name.startswith("output")} == {"-1.5"}
