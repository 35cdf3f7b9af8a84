"""Pages of results opened in a real browser without a window: Chromium, where it is there."""

import base64
import time
from pathlib import Path

import cv2
import numpy as np

from report import page
from report.copies import write_pictures
from report.metrics import PROTOCOLS
from report.table import Row
from settings import Settings

COLOURS = ((0, 0, 200), (0, 200, 0), (200, 0, 0))  # BGR, of rainy, derained and clean


class Watched:
    """A page, and what it asked for and complained of."""

    def __init__(
        self, browser, path: Path, scheme: str = "light", script: bool = True, width: int = 1200
    ) -> None:
        self.requests, self.complaints = [], []
        context = browser.new_context(
            color_scheme=scheme,
            viewport={"width": width, "height": 800},
            java_script_enabled=script,
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


def made(folder: Path, count: int, name: str = "image <b>{}</b>") -> Path:
    """A page of a test of that many flat pictures: rainy red, derained green, truth blue."""
    rng = np.random.default_rng(0)
    flat = [np.full((30, 40, 3), colour, np.uint8) for colour in COLOURS]
    shown = dict(zip(("before", "after", "clean"), flat, strict=True))
    rows = []
    for index in range(count):
        if index < 3:
            write_pictures(folder, index, shown, np.ones((30, 40)))
        files = {"after": f"derained/{index} %.png"}
        row = Row(index, name.format(index), files, 40, 30, 0.5, 0.1, 3.0)
        for side, base in (("input", 25), ("output", 30)):
            for protocol in PROTOCOLS:
                row.scores[f"{side}_{protocol}_psnr"] = base + rng.normal(0, 2)
                row.scores[f"{side}_{protocol}_ssim"] = rng.uniform(0.8, 1)
        rows.append(row)
    rows[1].scores["output_released_psnr"] = float("inf")
    rows[2].scores["output_released_psnr"] = float("nan")
    means = dict.fromkeys(rows[0].scores, 0.5)
    content = page.scored_page(rows, means, ["metrics.csv"])
    run = [("model", "model/x </script><script>alert(1)</script>")]
    page.write_page(folder, "A test & more", content, run, Settings("test", device="cpu"))
    return folder / "index.html"
