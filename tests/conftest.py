"""Fixtures: each test runs in a folder of its own and finds small pairs of images there."""

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from system import machine

machine.share_cores()
# One thread here and in the programs that the tests start: on small images more of them only wait
# for each other. A test that needs several asks for them; Numba's pool has two for that.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "2"

import cv2
import forked
import numpy as np
import pytest
import torch

import main
from engine.derainer import DerainedImage, Derainer
from engine.training_run import TrainingRun
from irnn_cuda import cpu
from rain import backgrounds, streaks, synthetic_rain
from settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
SHARED = os.environ.get("SPANET_SHARED")
SHARED = Path(SHARED).resolve() if SHARED else None

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


# What the programs import in the end; torch does so late, at its first custom operator.
ACTIONS = ("train", "test", "derain", "score", "clean", "pairs")
IMPORTED = [f"actions.{action}" for action in ACTIONS]
IMPORTED += ["torch._dynamo", "irnn_cuda.cpu", "skimage.metrics", "psutil", "portalocker"]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where tests run: in the workers of pytest-xdist, or here if there are none."""
    if hasattr(session.config, "workerinput") or session.config.getoption("dist", "no") == "no":
        for name in IMPORTED:
            importlib.import_module(name)
        forked.start_server()
    else:  # compile the kernels once for all workers, if they are not on the disk yet
        for dtype in (torch.float32, torch.float64):
            x, weight = torch.zeros(1, 1, 2, 2, dtype=dtype), torch.zeros(4, 1, dtype=dtype)
            y = torch.zeros(1, 2, 2, 4, dtype=dtype).permute(0, 3, 1, 2)
            cpu.forward(x, weight, weight, y)
            cpu.backward(y, y, weight, x)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process a GPU, whose memory several would not share; elsewhere one more than cores, as
    tests wait for programs a quarter of their time."""
    return torch.cuda.device_count() or machine.count_cores() + 1


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _default_signals() -> Iterator[None]:
    """Signals as in a terminal: nohup starts programs that ignore SIGHUP, and a script's background
    jobs ignore SIGINT. The programs that the tests start inherit what is ignored here.
    """
    handlers = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def shared() -> Path:
    """The folder of released weights and real rain, which is not part of the repository."""
    if SHARED is None:
        pytest.skip("SPANET_SHARED is not set: no released weights, no real rain")
    return SHARED


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays)


def save_run(run: TrainingRun, name: str = "latest") -> None:
    run.start_save(name)
    run.finish_save()


@pytest.fixture
def model() -> None:
    """A checkpoint model/latest, as a run of five steps would have left it."""
    run = TrainingRun(Settings("train", device="cpu"))
    run.step = 4
    save_run(run)


@pytest.fixture
def unchanged(model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network changes nothing, at once: what is tested is what becomes of videos beside it."""

    def derain(self, image, name="image", on_progress=None) -> DerainedImage:
        height, width, _ = image.shape
        mask = torch.linspace(0, 1, height * width).view(height, width)  # not that of a dead map
        return DerainedImage(torch.from_numpy(image) / 255, mask, 0.0)

    monkeypatch.setattr(Derainer, "derain", derain)


@pytest.fixture
def rainy() -> np.ndarray:
    """A small rainy image, (36,48,3) uint8 BGR."""
    clean = backgrounds.photograph("coffee")
    clean = cv2.resize(clean, (48, 36), interpolation=cv2.INTER_AREA)
    rain = [streaks.Rain(20, 10, 8, 1, 90, 0.5)]
    return streaks.add_rain(clean, rain, np.random.default_rng(0))


def expected(image: np.ndarray, **options) -> np.ndarray:
    """What model/latest makes of an image."""
    return (
        Derainer.load(Path("model/latest"), torch.device("cpu"), **options)
        .derain(image)
        .float_image
    )


def write_pairs(
    folder: Path, sizes: list[tuple[int, int]], seed: int = 0, density: float = 20
) -> Path:
    """Pairs of synthetic rain of the given (height, width); returns their list."""
    rng = np.random.default_rng(seed)
    lines = []
    for index, (height, width) in enumerate(sizes):
        clean = cv2.resize(rng.integers(0, 200, (4, 4, 3), np.uint8), (width, height))
        rain = streaks.Rain(density, 20, 8, 1, 80, 0.5)
        rainy = streaks.add_rain(clean, [rain], rng)
        lines.append(synthetic_rain.write_pair(folder, f"pair{index}", rainy, clean))
    path = folder / "list.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A list of five pairs of different sizes, which the crop of a small patch hardly shrinks."""
    sizes = [(19, 19), (19, 31), (17, 24), (40, 18), (19, 19)]
    return write_pairs(tmp_path / "data", sizes, density=10)


@pytest.fixture
def rain_video(tmp_path: Path) -> Path:
    return write_rain(tmp_path / "rain.mkv", 24)


def write_rain(path: Path, frames: int, seed: int = 0, size: tuple[int, int] = (96, 80)) -> Path:
    rng = np.random.default_rng(seed)
    truth = cv2.resize(backgrounds.photograph("coffee"), size, interpolation=cv2.INTER_AREA)
    rain = [streaks.Rain(3, 10, 15, 1, 120, 0.5)]
    made = streaks.rain_frames(truth, rain, frames, 1.0, rng)
    synthetic_rain.write_video(path, made, size)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run main.py in this process: run("-a", "test", ...) -> (status, stdout, stderr)."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main.main(last_of_each(argv))
        out, err = capsys.readouterr()
        return status, out, err

    return call


def command(*argv: object) -> list[str]:
    """main.py as a command of its own process, for tests of signals and limits."""
    return [sys.executable, str(ROOT / "main.py"), *last_of_each(argv)]


def last_of_each(argv: Iterable[object]) -> list[str]:
    """The words of a command line, without an option that is given again after it."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in map(str, argv):
        if re.fullmatch("-[a-z]|--[a-z-]+", word):
            name = word
            options[name] = []
        options.setdefault(name, []).append(word)
    return [word for words in options.values() for word in words]


@contextlib.contextmanager
def started(words: list[str], fresh: bool = False, **options: Any) -> Iterator[subprocess.Popen]:
    """A program that runs beside the test, in a process group of its own, killed at the end.

    It is killed after four minutes too, or a test that reads what it says could wait for ever.

    One of Python is forked, see forked.py, unless the test is about what it imports: `fresh`.
    """
    popen = subprocess.Popen if fresh or words[0] != sys.executable else forked.Forked
    with popen(words, start_new_session=True, **options) as process:

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        limit = threading.Timer(240, kill)
        limit.daemon = True
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            kill()


def finish(
    words: list[str], timeout: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A program's outcome. If it takes longer, it is killed, with those that it started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    with started(words, **pipes) as run:
        out, err = run.communicate(timeout=timeout)
        return subprocess.CompletedProcess(words, run.returncode, out, err)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return finish(["bash", "-c", line], timeout=200)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process have all tests with a browser, and begin with them, as they take longest."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("browser"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            # One process for all tabs of a site: a tab of its own compiles the scripts anew.
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--process-per-site"],
        )
        yield browser
        browser.close()
