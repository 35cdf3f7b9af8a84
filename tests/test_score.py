"""The action `score`: figures of others' results, and what is said of what cannot be scored."""

import csv
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_pairs
from pages import Watched

import actions.score as score_action
from media.lists import read_list
from report import metrics
from report.metrics import PROTOCOLS, measure
from report.tables import SCORE_NAMES, Mean, write_tables
from settings import Settings

SIZES = [(24, 31), (40, 32), (12, 18), (33, 33)]


@pytest.fixture
def pairs(tmp_path) -> Path:
    return write_pairs(tmp_path / "data", SIZES)


def write_results(folder: str, name: str, pairs: Path, noise: float, skip=()) -> None:
    """A result of each pair that is not skipped: its truth with noise."""
    Path(folder).mkdir(parents=True)
    rng = np.random.default_rng(len(folder))
    for place in range(len(SIZES)):
        if place not in skip:
            clean = cv2.imread(str(pairs.parent / "clean" / f"pair{place}.png"))
            result = np.clip(clean + rng.normal(0, noise, clean.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(f"{folder}/{name.format(place)}", result)


def rows() -> list[dict[str, str]]:
    with open("out/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def summary() -> dict:
    return json.loads(Path("out/summary.json").read_text())


def score(run, pairs, *more):
    return run("-a", "score", "-i", "r", "--test-list", pairs, "-o", "out", *more)


def test_two_methods(run, pairs):
    write_results("r/good one_1", "pair{}_derained.png", pairs, 3)
    write_results("r/bad", "pair{}.png", pairs, 20)
    status, out, err = score(run, pairs)
    assert (status, err) == (0, "")
    found = rows()
    assert list(found[0]) == [
        "method", "name", "result", "truth", "width", "height", *SCORE_NAMES
    ]  # fmt: skip
    assert [row["method"] for row in found] == ["rainy", "bad", "good one_1"] * 4
    assert [row["name"] for row in found[::3]] == [f"pair{place}" for place in range(4)]
    for row in found:
        images = [cv2.imread(row[key]) for key in ("result", "truth")]
        assert (int(row["height"]), int(row["width"])) == images[1].shape[:2]
        for name, value in measure(*images, order="BGR").items():
            assert (row[name] == "") == math.isnan(value)
            assert row[name] == "" or float(row[name]) == pytest.approx(value, abs=1e-9)
    methods = summary()["methods"]
    assert list(methods) == ["rainy", "bad", "good one_1"]
    for method, facts in methods.items():
        own = [row for row in found if row["method"] == method]
        assert facts["images"] == 4
        for name in SCORE_NAMES:
            mean = np.mean([float(row[name]) for row in own if row[name]])
            assert facts["means"][name] == pytest.approx(mean)
    markdown, latex = Path("out/table.md").read_text(), Path("out/table.tex").read_text()
    for table, count in ((markdown, "PSNR (dB) and SSIM in the `"), (latex, r"\begin{table}")):
        assert table.count(count) == len(PROTOCOLS)
        order = [table.index(name) for name in ("rainy", "bad", "good one")]
        assert order == sorted(order)
    best = methods["good one_1"]["means"]["y_psnr"]
    row = markdown.split("`y`")[1].split("good one\\_1")[1].splitlines()[0]
    assert row.startswith(f" | **{best:.2f}** | **0.")
    assert f"good one\\_1 & \\textbf{{{best:.2f}}}" in latex
    assert "`y_round` protocol (rounded luminance), 4 images." in markdown
    assert "good one_1: 4 of 4 pictures have a result; matched by what is around the name" in out
    assert "PSNR (dB) / SSIM, means over 4 images\n" in out


def test_one_missing_one_of_another_size_one_unmatched(run, pairs, browser):
    write_results("r/A", "pair{}.png", pairs, 3)
    write_results("r/B", "pair{}.png", pairs, 3, skip=[2])
    cv2.imwrite("r/B/pair1.png", cv2.imread("r/B/pair1.png")[:-8])
    cv2.imwrite("r/B/other.png", np.zeros((9, 9, 3), np.uint8))
    status, out, err = score(run, pairs)
    assert status == 2
    assert err.splitlines() == [
        "main.py: B: skipped 1 file of no picture in the list: other.png",
        "main.py: B: no result for 1 of 4: pair2.png",
        "main.py: B: r/B/pair1.png is 32x32, its truth 32x40: not scored; --crop-to-common "
        "compares what they share",
    ]
    assert "the means are over different pictures" in out
    assert {name: facts["images"] for name, facts in summary()["methods"].items()} == {
        "rainy": 4, "A": 4, "B": 2
    }  # fmt: skip
    assert [row["name"] for row in rows() if row["method"] == "B"] == ["pair0", "pair3"]
    assert "2 to 4 of 4 images" in Path("out/table.md").read_text()
    assert r"B & 2 & " in Path("out/table.tex").read_text()
    seen = Watched(browser, Path("out/index.html"))
    page = seen.page
    sides = page.locator("#side1 option").all_inner_texts()
    assert sides == ["rainy", "A", "B", "clean"]
    assert [page.locator(f"#side{half}").input_value() for half in (0, 1)] == ["1", "2"]
    page.select_option("#side0", "1")
    page.select_option("#side1", "2")
    seen.settle()
    groups = page.locator("#table thead tr:first-child th").all_inner_texts()
    assert groups == ["rainy", "A", "B", "B over A"]
    gains = [cell.replace("\u2212", "-") for cell in seen.column(7)]
    for gain, name in zip(gains, ("pair0", "pair1", "pair2", "pair3"), strict=True):
        own = {r["method"]: r for r in rows() if r["name"] == name}
        if "B" not in own:
            assert gain == "n/a"
        else:
            over = float(own["B"]["released_psnr"]) - float(own["A"]["released_psnr"])
            assert float(gain) == pytest.approx(over, abs=1e-4)
    assert "of B over A, released, 2 pictures" in page.locator("#histogram").inner_text()
    assert page.locator("#most").is_hidden()  # of ten pictures at most
    assert page.locator("#most").get_attribute("title") == "by the PSNR gain of B over A"
    page.locator("#table .pick").nth(2).click()
    seen.settle()
    assert page.locator("#label1").inner_text() == "B: no result"
    assert page.locator("#side1 option:checked").is_disabled()
    gain = np.mean([
        float(b["released_psnr"]) - float(i["released_psnr"])
        for b in rows() for i in rows()
        if (b["method"], i["method"], b["name"]) == ("B", "rainy", i["name"])
    ])  # fmt: skip
    text = page.locator("#means tbody").first.inner_text().splitlines()
    assert [f"{gain:+.4f}" in line for line in text if line.startswith("B")] == [True]
    assert seen.complaints == []


def test_crop_to_common_compares_the_top_left_and_says_so(run, pairs):
    write_results("r", "pair{}.png", pairs, 3)
    padded = cv2.copyMakeBorder(cv2.imread("r/pair0.png"), 0, 8, 0, 1, cv2.BORDER_REFLECT)
    cv2.imwrite("r/pair0.png", padded)
    cv2.imwrite("r/pair1.png", cv2.imread("r/pair1.png")[:32])
    status, out, err = score(run, pairs, "--crop-to-common")
    assert (status, err) == (0, "")
    assert "r: 2 of its results are compared in part: their sizes differ\n" in out
    sizes = {r["name"]: (r["width"], r["height"]) for r in rows() if r["method"] == "r"}
    assert (sizes["pair0"], sizes["pair1"]) == (("31", "24"), ("32", "32"))
    truth = cv2.imread(str(pairs.parent / "clean" / "pair0.png"))
    expected = measure(padded[:24, :31], truth, order="BGR")["y_psnr"]
    found = [r["y_psnr"] for r in rows() if (r["method"], r["name"]) == ("r", "pair0")]
    assert float(found[0]) == pytest.approx(expected)


@pytest.mark.parametrize("is_folder", [False, True])
def test_clean_images_alone(run, pairs, is_folder):
    write_results("r", "rain-{}.jpg", pairs, 3)
    clean = pairs.parent / "clean"
    listed = Path("clean.txt")
    listed.write_text("".join(f"{clean}/pair{place}.png\n" for place in range(4)))
    status, out, err = score(run, clean if is_folder else listed)
    assert (status, err) == (0, "")
    assert "taken as the clean images; the tables have no row rainy" in out
    assert "r: 4 of its results are JPEG files, whose losses count against it" in out
    assert list(summary()["methods"]) == ["r"]


def test_results_of_a_test_agree_with_it_but_for_8_bits(run, model, pairs):
    words = ("-a", "test", "--test-list", pairs, "--device", "cpu", "--result-dir", "r")
    assert run(*words)[0] == 0
    status, _, err = score(run, pairs)
    assert (status, err) == (0, "")
    with open("r/metrics.csv", newline="") as file:
        tested = {row["name"]: row for row in csv.DictReader(file)}
    for row in rows():
        side = "rainy" if row["method"] == "rainy" else "output"
        for name in SCORE_NAMES:
            found, expected = row[name], tested[row["name"]][f"{side}_{name}"]
            if side == "rainy" or name.startswith("y"):
                assert found == expected  # luminance is that of 8 bits
            else:
                bound = 0.2 if name.endswith("psnr") else 2e-3
                assert float(found) == pytest.approx(float(expected), abs=bound)
    summary_of_test = Path("r/summary.json").read_bytes()
    status, _, err = run("-a", "score", "-i", "r", "--test-list", pairs, "-o", "r")
    assert (status, err) == (2, "main.py: r/metrics.csv: is not of -a score; expected another -o\n")
    assert Path("r/summary.json").read_bytes() == summary_of_test


def test_what_cannot_be_scored_ends_with_one_line(run, pairs):
    write_results("r", "pair{}.png", pairs, 3)
    write_results("named/rainy", "pair{}.png", pairs, 3)
    write_results("strangers", "house{}.png", pairs, 3)
    Path("tested").mkdir()
    Path("tested/metrics.csv").write_text("name,rainy\n")
    common = ("--test-list", pairs)
    for words, message in (
        (("-i", "named", "-o", "out", *common), "-i: named: no method can be called rainy"),
        (("-i", "r/none", "-o", "out", *common), "-i: r/none: expected a folder of results"),
        (("-i", "r", "-o", "tested", *common), "tested/metrics.csv: is not of -a score"),
        (("-i", "r", "-o", pairs.parent / "clean", *common), None),
        (("-i", "r", "-o", "out", "--test-list", "r/pair0.png"), "not UTF-8 text"),
        (("-o", "out", *common), "-i"),
        (("-i", "r", *common), "-o"),
    ):
        status, _, err = run("-a", "score", *words)
        if message is None:
            assert status == 0  # beside the clean images there is room for a page
            continue
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
        assert not Path("out").exists() or not os.listdir("out")
    Path("r/pair3.png").write_bytes(b"no picture")
    status, out, err = score(run, pairs)
    assert status == 2
    assert err.startswith(f"main.py: r, for {pairs}:4: r/pair3.png: not an image")
    assert "3 to 4 of 4 images" in out


def test_a_truth_that_is_bad_costs_its_own_row(run, pairs):
    write_results("r", "pair{}.png", pairs, 3)
    (pairs.parent / "rain" / "pair1.png").write_bytes(b"no picture")
    status, out, err = score(run, pairs)
    assert status == 2
    assert err.startswith(f"main.py: {pairs}:2: ")
    assert {facts["images"] for facts in summary()["methods"].values()} == {3}
    assert "means over 3 of 4 images" in out


def test_methods_that_lack_different_pictures_cannot_be_compared(run, pairs, browser):
    long = "Restormer_synthetic_rain_finetuned_on_SPA-Data_" * 4
    write_results("r/A", "pair{}.png", pairs, 3, skip=[0])
    write_results(f"r/{long}", "pair{}.png", pairs, 9, skip=[1])
    status, out, _ = score(run, pairs.parent / "clean")
    assert status == 2
    assert "the means are over different pictures: they cannot be compared\n" in out
    assert "3 of 4 images, not the same for all." in Path("out/table.md").read_text()
    assert "| A | 3 |" in Path("out/table.md").read_text()
    for width in (390, 1200):
        seen = Watched(browser, Path("out/index.html"), width=width)
        assert seen.page.evaluate("document.documentElement.scrollWidth") == width


def test_a_method_without_pictures_is_told(run, pairs):
    write_results("r/A", "pair{}.png", pairs, 3)
    Path("r/crashed").mkdir()
    status, _, err = score(run, pairs)
    assert (status, err) == (2, "main.py: skipped folders without pictures: r/crashed\n")


@pytest.mark.parametrize("name", ["table.tex", "summary.json", "table.md", "index.html"])
def test_files_of_others_stay(run, pairs, name):
    write_results("r", "pair{}.png", pairs, 3)
    Path("out").mkdir()
    Path("out", name).write_text("mine")
    status, _, err = score(run, pairs)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"main.py: out/{name}: is not ")
    assert [path.name for path in Path("out").iterdir()] == [name]
    assert Path("out", name).read_text() == "mine"


def test_what_an_earlier_run_wrote_is_replaced(run, pairs):
    write_results("r", "pair{}.png", pairs, 3)
    for _ in range(2):
        assert score(run, pairs)[0] == 0
    Path("out/metrics.csv").write_text("")  # of a run that was killed
    assert score(run, pairs)[0] == 0
    assert len(rows()) == 8


def test_names_that_are_no_text(run, pairs):
    write_results("r", "pair{}.png", pairs, 3)
    os.makedirs("all")
    os.rename("r", b"all/m\xff")
    status, _, err = run("-a", "score", "-i", "all", "--test-list", pairs, "-o", "out")
    assert (status, err) == (0, "")
    assert list(summary()["methods"]) == ["rainy", r"m\udcff"]


def test_memory_decides_how_many_are_scored_at_once(monkeypatch, pairs):
    task = score_action.Task(0, "a", read_list(pairs)[0], {"r": Path("r.png")})
    settings = Settings("score", num_threads=8)
    assert score_action._count_processes(settings, [task]) == 8
    needed = 24 * 31 * (metrics.MEASURE_BYTES_PER_PIXEL + 3 * 4)
    for free, expected in ((2 * 3 * needed, 3), (0, 1)):
        monkeypatch.setattr(score_action.machine, "free_memory", lambda free=free: free)
        assert score_action._count_processes(settings, [task]) == expected


def test_tables_hold_any_name_and_any_figure(tmp_path):
    scores = dict.fromkeys(SCORE_NAMES, 30.0)
    places = frozenset([0, 1])
    means = [
        Mean("a_b & 50% #1 {x} ~^\\", places, scores),
        Mean("|*c*|", places, scores | {"y_psnr": math.inf, "y_ssim": math.nan}),
    ]
    write_tables(tmp_path, means, 2, {"": means}, PROTOCOLS)
    latex, markdown = ((tmp_path / f"table.{kind}").read_text() for kind in ("tex", "md"))
    escaped = r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert f"{escaped} & 30.00 & \\textbf{{30.0000}}" in latex
    assert r"|*c*| & \textbf{inf} & - \\" in latex
    assert r"| \|\*c\*\| | **inf** | - |" in markdown
    assert "of 2" not in markdown
