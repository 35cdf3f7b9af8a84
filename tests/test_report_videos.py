"""Videos on the page of a result folder: both play in step, or the frame in the middle is shown."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pages import Watched
from test_videos import DERAIN, write_video
from video_cases import make

TIMES = "[...document.querySelectorAll('.stage video')].map(film => film.currentTime)"
READY = "document.querySelector('#film').hidden"


def wait(seen: Watched, expression: str, expected: object) -> None:
    end = time.monotonic() + 20
    while seen.page.evaluate(expression) != expected:
        assert time.monotonic() < end, f"{expression} never came to {expected}"
        time.sleep(0.05)


@pytest.mark.parametrize(("words", "begin"), [((), 0.0), (("--start", 10), 0.4)])
def test_a_video_is_shown_before_and_after_in_step(browser, run, unchanged, words, begin):
    Path("in").mkdir()
    make("in/rain 1.webm", "libvpx", 50)
    assert run(*DERAIN, "-i", "in", "-o", "out", *words)[0] == 0
    seen = Watched(browser, Path("out/index.html"))
    wait(seen, READY, False)
    seen.page.evaluate("document.querySelector('#film1').currentTime = 0.6")
    wait(seen, f"Math.round(1000 * ({TIMES})[0])", round(1000 * (begin + 0.6)))
    seen.page.click("#play")
    wait(seen, "document.querySelector('#film1').currentTime > 0.8", True)
    before, after = seen.page.evaluate(TIMES)
    assert before - after == pytest.approx(begin, abs=0.2)
    seen.page.check("#overlay")  # of the frame in the middle
    assert seen.page.evaluate(READY)
    assert seen.page.evaluate("document.querySelector('#film1').paused")
    assert seen.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in seen.requests)


def test_the_controls_of_a_tall_video_are_in_view(browser, run, unchanged):
    Path("in").mkdir()
    write_video("in/tall.webm", (80, 200), sound=False, codec="libvpx")
    cv2.imwrite("in/a.png", np.zeros((8, 8, 3), np.uint8))
    assert run(*DERAIN, "-i", "in", "-o", "out")[0] == 0
    seen = Watched(browser, Path("out/index.html"), width=1280)
    assert seen.page.locator("#lead").inner_text() == "1 picture, 1 video: rainy, derained."
    seen.page.click("#next")
    wait(seen, READY, False)
    box = seen.page.locator("#help").bounding_box()  # the last one
    assert box["y"] + box["height"] < 800 == seen.page.viewport_size["height"]


def test_what_cannot_be_played_is_shown_as_a_frame(browser, run, unchanged):
    Path("in").mkdir()
    make("in/a.avi", "mpeg4")
    make("in/b.webm", "libvpx")
    assert run(*DERAIN, "-i", "in", "-o", "out")[0] == 0
    seen = Watched(browser, Path("out/index.html"))
    wait(seen, "document.querySelector('#film0').error !== null", True)
    assert seen.page.evaluate(READY)
    assert seen.page.locator("#half0 img").first.is_visible()
    assert not seen.page.locator("#film0").is_visible()
    seen.page.click("#next")
    wait(seen, READY, False)
    seen.page.click("#previous")
    wait(seen, READY, True)
