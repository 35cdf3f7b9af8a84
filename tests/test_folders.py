"""The one walk through folders: links, folders that lead back, and what every action skips."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, write_pairs

from media.folders import walk_folder
from media.jobs import plan_jobs
from media.lists import read_list
from media.results import find_methods


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def link(name: str, target: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(Path(target).absolute())


def test_links_are_followed_and_cycles_end_with_a_warning(capsys):
    touch("disk/1.png", "disk/.hidden.png", "set/a/2.png", "set/out/3.png")
    link("set/north", "disk")
    link("set/a/back", "set")
    link("set/nothing", "elsewhere")
    Path("set/self").symlink_to("self")
    found = list(walk_folder(Path("set"), Path("set/out")))
    assert found == [
        ("", ["a", "north"], []),
        ("a", [], ["2.png"]),
        ("north", [], ["1.png"]),
    ]
    assert capsys.readouterr().err == (
        "main.py: set: skipped links that lead nowhere or back, pipes and devices: "
        "nothing, self, a/back\n"
    )


def test_every_action_follows_links_and_survives_one_to_itself():
    """As data on another disk is laid out."""
    touch(*(f"disk/{part}/{n}.png" for part in ("rainy", "clean", "mine") for n in range(3)))
    link("set/input", "disk/rainy")
    link("set/target", "disk/clean")
    link("cameras/north", "disk/rainy")
    link("results/mine/Rain", "disk/mine")
    for folder in ("set", "cameras", "results", "results/mine", "disk/mine"):
        Path(folder, "self").symlink_to("self")
    assert len(read_list("set", True, lambda _: None)) == 3
    jobs, _, _, errors = plan_jobs("cameras", "derained")
    assert ([job.name for job in jobs], errors) == ([f"north/{n}.png" for n in range(3)], [])
    (method,), empty = find_methods(Path("results"), Path("scores"))
    assert (method.name, len(method.files), empty) == ("mine", 3, [])


@pytest.mark.parametrize("action", ["derain", "test", "lists"])
def test_the_pictures_of_a_page_are_no_images_of_its_folder(run, action, tmp_path):
    """A page lies in the folder of results, which is a folder of pictures for the next action."""
    write_pairs(tmp_path / "set", [(16, 16)] * 3)
    touch("set/clean/index.html", "set/index_files/000000-thumb.jpg")
    thumb = np.zeros((8, 8, 3), np.uint8)
    for part in ("rain", "clean"):
        Path(f"set/{part}/index_files").mkdir()
        cv2.imwrite(f"set/{part}/index_files/000000-thumb.jpg", thumb)
    if action == "derain":
        assert len(plan_jobs("set", "out")[0]) == 6
        return
    words = ["-i", "set", "-o", "l.txt"] if action == "lists" else ["--test-list", "set"]
    weights = ["-m", ROOT / "model/demo", "--num-workers", 0] if action == "test" else []
    status, out, _ = run("-a", action, *weights, *words)
    assert status == 0
    assert "set: 3 pairs, " in out
    assert "left over" not in out
