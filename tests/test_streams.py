"""Output that nobody reads any more, and names that its encoding does not know."""

import csv
import json
import os
import subprocess
from pathlib import Path

import cv2
import pytest
from conftest import command, finish, started, write_pairs

from report.tables import SCORE_NAMES


def test_a_reader_that_leaves_does_not_end_the_run(model, tmp_path):
    listed = write_pairs(tmp_path / "set", [(24, 24)] * 6)
    words = command("-a", "test", "--test-list", listed, "--device", "cpu", "--log-every", 1)
    with started(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        assert process.stderr.read() == ""
        assert process.wait(120) == 0
    rows = list(csv.DictReader(Path("results/metrics.csv").read_text().splitlines()))
    assert len(rows) == 6
    scores = [f"{image}_{metric}" for image in ("output", "rainy") for metric in SCORE_NAMES]
    assert list(rows[0]) == ["name", "rainy", "clean", "width", "height", *scores]
    assert json.loads(Path("results/summary.json").read_text())["images"] == 6
    assert Path("results/index.html").is_file()


def test_a_full_disk_behind_the_output_is_told(model, rainy):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    cv2.imwrite("a.png", rainy)
    words = command("-a", "derain", "-i", "a.png", "-o", "b.png", "--device", "cpu")
    with open("/dev/full", "wb") as full:
        done = finish(words, stdout=full)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("main.py: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_beyond_the_encoding_of_the_output(model, rainy):
    os.mkdir("dépôt 雨")
    cv2.imencode(".png", rainy)[1].tofile("dépôt 雨/ä.png")
    Path("dépôt 雨/bad.png").write_bytes(b"bad")
    words = command("-a", "derain", "-i", "dépôt 雨", "-o", "aus 雨", "--device", "cpu")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert Path("aus 雨/ä.png").is_file()
    assert r"d\xe9p\xf4t \u96e8/bad.png: not an image" in done.stderr
    assert r"1 of 2 derained; open aus \u96e8/index.html" in done.stdout


@pytest.mark.parametrize("handle", ["1>&-", "1>&- 2>&-"])
def test_no_output_at_all(model, rainy, handle):
    cv2.imwrite("a.png", rainy)
    words = command("-a", "derain", "-i", "a.png", "-o", "b.png", "--device", "cpu")
    line = " ".join(f"'{word}'" for word in words)
    assert subprocess.run(["sh", "-c", f"{line} {handle}"], timeout=120).returncode == 0
    assert Path("b.png").is_file()
