"""Pages of results opened in a real browser without a window: Chromium, where it is there."""

import base64
import functools
import time
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from report import page
from report.page import write_copies
from report.tables import DERAINED, RAINY, SCORE_NAMES, Result, compute_means
from settings import Settings

COLOURS = ((0, 0, 200), (0, 200, 0), (200, 0, 0))  # BGR, of rainy, derained and clean


@functools.cache
def keep_page(browser):
    """One page for all tests: each further one starts processes of Chromium."""
    return browser.new_context().new_page()


class Watched:
    """A page, and what it asked for and complained of."""

    listeners: ClassVar[dict] = {}

    def __init__(self, browser, path: Path, scheme: str = "light", width: int = 1200) -> None:
        self.requests, self.complaints = [], []
        self.page = keep_page(browser)
        self.page.goto("about:blank")  # what the former page still asks for ends here
        for event, listener in self.listeners.items():
            self.page.remove_listener(event, listener)
        self.listeners.update(
            request=lambda request: self.requests.append(request.url),
            requestfailed=lambda request: self.complaints.append(request.url),
            console=lambda message: self.complaints.append(message.text),
            pageerror=lambda error: self.complaints.append(str(error)),
        )
        for event, listener in self.listeners.items():
            self.page.on(event, listener)
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.goto(path.resolve().as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait for the pictures in view."""
        # Not by the driver's own wait_for_function: it evaluates text, which the page forbids.
        done = """busy === 0 &&
            [...document.querySelectorAll('.stage img')].every(one => !one.src || one.complete)"""
        end = time.monotonic() + 30
        while not self.page.evaluate(done):
            assert time.monotonic() < end, "pictures do not load"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def column(self, number: int) -> list[str]:
        return self.page.locator(f"#table tbody td:nth-child({number + 1})").all_inner_texts()

    def screen(self) -> np.ndarray:
        """The stage as it is shown, (H,W,3) BGR."""
        shot = self.page.locator("#stage").screenshot()
        return cv2.imdecode(np.frombuffer(shot, np.uint8), 1).astype(int)

    def pixel(self, x: float, y: float) -> np.ndarray:
        """The colour at a share of the stage's width and height, (3,) BGR."""
        shot = self.screen()
        return shot[int(y * (shot.shape[0] - 1)), int(x * (shot.shape[1] - 1))]


def read_copy(path: Path) -> np.ndarray:
    """What a script hands to the page: (H,W,3) BGR, or (H,W,4) of an attention map."""
    data = base64.b64decode(path.read_text().split("base64,")[1].removesuffix('");\n'))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def write_test_page(folder: Path, count: int, name: str = "image <b>{}</b>") -> Path:
    """A page of a test of that many flat pictures: rainy red, derained green, truth blue."""
    rng = np.random.default_rng(0)
    flat = [np.full((30, 40, 3), colour, np.uint8) for colour in COLOURS]
    images = dict(zip((RAINY, DERAINED, "clean"), flat, strict=True))
    results = []
    for index in range(count):
        if index < 3:
            write_copies(folder, index, images, np.ones((30, 40)))
        files = {DERAINED: folder / f"derained/{index} %.png"}
        result = Result(index, name.format(index), files, 40, 30, 0.5, 0.1, 3.0)
        for image, psnr in ((RAINY, 25), (DERAINED, 30)):
            values = [
                psnr + rng.normal(0, 2) if metric.endswith("psnr") else rng.uniform(0.8, 1)
                for metric in SCORE_NAMES
            ]
            result.scores[image] = dict(zip(SCORE_NAMES, values, strict=True))
        results.append(result)
    results[1].scores[DERAINED]["released_psnr"] = float("inf")
    results[2].scores[DERAINED]["released_psnr"] = float("nan")
    means = compute_means(results, [RAINY, DERAINED])
    run = [("model", "model/x </script><script>alert(1)</script>")]
    settings = Settings("test", device="cpu")
    page.write_page(
        folder, "A test & more", results, run, settings, page.TEST_SIDES, means, ["metrics.csv"]
    )
    return folder / "index.html"
