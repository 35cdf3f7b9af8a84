"""No input is overwritten, no two runs write one result, and a reported result exists.

By real processes where two of them meet.
"""

import csv
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import cv2
import pytest
import torch
from conftest import ROOT, command, finish, started, write_pairs

from engine.derainer import Derainer
from media.lists import read_list
from report.result_folder import open_result_folder
from settings import UserError
from system import files

DEVICE = ["--device", "cpu"]


def snapshot() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


def write_list(*names: str) -> str:
    Path("list.txt").write_text("".join(f"{name} {name}\n" for name in names))
    return "list.txt"


def picture(path: str, value: int = 100) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(path, torch.full((24, 24, 3), value, dtype=torch.uint8).numpy())


# What is read


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_test_does_not_write_its_inputs(run, model, link):
    picture("set/derained/x.png")
    if link:
        Path("own").mkdir()
        shutil.move("set/derained/x.png", "own/x.png")
        link(Path("own/x.png").resolve(), "set/derained/x.png")
    listed = write_list("own/x.png" if link else "set/derained/x.png")
    before = snapshot()
    status, _, err = run("-a", "test", "--test-list", listed, "--result-dir", "set", *DEVICE)
    assert status == 2
    assert err.startswith("main.py: --result-dir: set/derained/x.png is an input")
    assert err.count("\n") == 1
    assert snapshot() == before


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "index.html"])
def test_a_list_that_is_called_as_a_result_stays(run, model, name):
    picture("a.png")
    Path(name).write_text("a.png\n")
    before = snapshot()
    status, _, err = run("-a", "test", "--test-list", name, "--result-dir", ".", *DEVICE)
    assert (status, "is an input" in err) == (2, True)
    assert snapshot() == before


def test_derain_does_not_remove_the_pictures_of_a_page_that_it_is_to_read(run, model, rainy):
    Path("in").mkdir()
    cv2.imwrite("in/a.png", rainy)
    assert run("-a", "derain", "-i", "in", "-o", "out", *DEVICE)[0] == 0
    before = snapshot()
    status, _, err = run("-a", "derain", "-i", "out/index_files", "-o", "out", *DEVICE)
    assert status == 2
    assert "is an input; expected another folder or name" in err
    assert snapshot() == before


def test_train_does_not_save_over_its_list(run, pairs):
    Path("m").mkdir()
    shutil.copy(pairs, "m/best")
    shutil.copytree(pairs.parent / "rain", "m/rain")
    shutil.copytree(pairs.parent / "clean", "m/clean")
    words = ["--train-list", "m/best", "--model-dir", "m", "--num-steps", 1, "--batch-size", 1]
    status, _, err = run("-a", "train", *words, "--patch-size", 8, *DEVICE)
    assert (status, "--model-dir: m/best is an input" in err) == (2, True)


@pytest.mark.parametrize("start", ["best", "m/best", "step_2"])
def test_train_does_not_save_over_the_weights_that_it_begins_from(run, pairs, start):
    words = ["--train-list", pairs, "--model-dir", "m", "--batch-size", 1, "--patch-size", 8]
    words += ["--checkpoint-every", 2, "--num-workers", 0, *DEVICE]
    assert run("-a", "train", *words, "--num-steps", 3)[0] == 0
    Path("m/latest").rename("m/best")
    before = snapshot()
    status, _, err = run("-a", "train", *words, "--num-steps", 3, "--init-from", start)
    assert (status, "is an input; expected another folder or name" in err) == (2, True)
    assert {k: v for k, v in snapshot().items() if not k.endswith(".training")} == {
        k: v for k, v in before.items() if not k.endswith(".training")
    }


def test_what_a_killed_run_left_is_removed_and_nothing_of_a_running_one():
    long = "2024-06-01_rain_in_the_yard_seen_from_the_north_part"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from system import files\n"
        "print(files.create_temp_beside(Path(sys.argv[2]), '.mp4').name, flush=True)\n"
        "sys.stdin.read()"
    )
    words = [command()[0], "-c", program, str(ROOT)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with started([*words, f"{long}1.mp4"], **pipes) as other:
        name = other.stdout.readline().strip()
        Path(".writing-of-an-unknown-program").touch()
        own = files.create_temp_beside(Path(f"{long}2.mp4"), ".mp4")
        files.remove_unfinished([Path()])
        assert len(list(Path().iterdir())) == 3
        target = Path(f"{long}2.mp4")
        with open_result_folder(Path(), "-o", inputs=[], outputs=[target], page=False):
            assert Path(name).exists()
        other.kill()
        other.wait()
        files.remove_unfinished([Path()])
    assert {path.name for path in Path().iterdir()} == {own.name, ".writing-of-an-unknown-program"}


def test_spellings_of_one_file_are_one_file():
    Path("A").write_text("x")
    for name in ("A", "./A", "../" + Path.cwd().name + "/A"):
        with pytest.raises(UserError, match=r"-o: .*A is an input"):
            files.check_no_overlap([Path("A")], [Path(name)], "-o")
    Path("B").write_text("x")  # of the same content
    files.check_no_overlap([Path("A"), Path("gone")], [Path("B"), Path("C")], "-o")


# Two runs


def test_one_run_at_a_time_writes_a_place():
    Path("out").mkdir()
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from system import files\n"
        "with files.exclusive(Path(sys.argv[2])): print(1, flush=True); sys.stdin.read()"
    )
    root = str(Path(files.__file__).resolve().parent.parent)
    for place in ("out", "out/a.mp4"):
        words = [command()[0], "-c", program, root, place]
        with started(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "1\n"
            with pytest.raises(UserError) as caught, files.exclusive(Path(place)):
                pass
            assert str(caught.value) == (
                f"{place}: another run is writing there; expected one at a time"
            )
            with files.exclusive(Path("out/b.mp4")):
                pass
            other.kill()  # and leaves its lock to nobody
        with files.exclusive(Path(place)):
            pass
    assert list(Path("out").iterdir()) == []


def test_two_tests_in_one_folder(model, tmp_path):
    listed = write_pairs(tmp_path / "set", [(24, 24)] * 20)
    words = command("-a", "test", "--test-list", listed, *DEVICE, "--log-every", 1)
    with started(words, stdout=subprocess.PIPE, text=True) as first:
        while not first.stdout.readline().startswith("1/20"):
            pass
        first.send_signal(signal.SIGSTOP)  # it must not be done before the second begins
        second = finish(words)
        first.send_signal(signal.SIGCONT)
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr == (
            "main.py: results: another run is writing there; expected one at a time\n"
        )
        first.communicate(timeout=120)
        assert first.returncode == 0
    rows = list(csv.DictReader(Path("results/metrics.csv").read_text().splitlines()))
    assert len(rows) == 20
    assert not list(Path("results").glob(".*"))


def test_names_of_unfinished_files_are_their_own():
    first, second = (
        files.create_temp_beside(Path("x" * 60 + name), ".mp4") for name in ("a.mp4", "b.mp4")
    )
    assert first != second
    assert first.suffix == second.suffix == ".mp4"
    Path("target").write_text("kept")
    os.symlink("target", "out.png")
    files.write_atomically(Path("out.png"), b"new")
    assert Path("target").read_text() == "kept"
    assert Path("out.png").read_bytes() == b"new"


# Results that are reported


def test_results_that_are_removed_meanwhile_are_reported(run, model, rainy, monkeypatch):
    Path("in").mkdir()
    for name in "abcd":
        cv2.imwrite(f"in/{name}.png", rainy)
    original, calls = Derainer.derain, []

    def derain(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            end = time.monotonic() + 10
            while not Path("out/index_files/000002-thumb.jpg").exists() and time.monotonic() < end:
                time.sleep(0.01)
            shutil.rmtree("out")
        return original(self, *arguments)

    monkeypatch.setattr(Derainer, "derain", derain)
    status, out, err = run("-a", "derain", "-i", "in", "-o", "out", *DEVICE)
    assert status == 2
    assert "4 of 4 derained" not in out
    assert "of 4 results were removed since: out/a.png, out/b.png" in err


def test_a_list_of_patches_that_are_gone_is_not_written():
    Path("a.png").write_text("x")
    files.check_still_there([Path("a.png")], "patches")
    with pytest.raises(UserError) as caught:
        files.check_still_there([Path(name) for name in ("a.png", "b", "c", "d", "e")], "patches")
    assert str(caught.value) == "4 of 5 patches were removed since: b, c, d, and 1 more"


# An output that is none


@pytest.mark.parametrize("action", ["test", "derain"])
def test_weights_that_overflow_the_network_are_reported(run, pairs, model, action):
    content = torch.load("model/latest", weights_only=True)
    content["net"]["conv_in.0.weight"][:] = 3e38
    torch.save(content, "model/latest")
    first = read_list(str(pairs))[0].rainy
    words = {"test": ["--test-list", pairs], "derain": ["-i", first, "-o", "out.png"]}[action]
    status, _, err = run("-a", action, *words, *DEVICE)
    assert status == 2
    assert f"{first}: the output of model/latest is not finite" in err
    assert err.count("\n") == 1
    assert not Path("out.png").exists()
