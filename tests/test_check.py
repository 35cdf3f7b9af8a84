"""The action check: what it finds in a list, its table, and how it goes on."""

import csv
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_pairs

import actions.check
from media import lists
from media.inspection import inspect_header, inspect_pixels
from media.lists import read_list


def table(name: str = "check.csv") -> list[dict[str, str]]:
    with open(name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def mixed(pairs) -> Path:
    """The list of five pairs with five more: of two sizes, transparent, swapped, equal, again."""
    rain, clean = (pairs.parent / part for part in ("rain", "clean"))
    colour = cv2.imread(str(rain / "pair0.png"))
    cv2.imwrite(str(rain / "clear.png"), np.dstack([colour, colour[..., 0] // 2]))
    lines = pairs.read_text().splitlines()
    first, second = (line.split() for line in lines[:2])
    lines += [f"{first[0]} {second[1]}", f"{rain / 'clear.png'} {clean / 'pair0.png'}"]
    lines += [f"{second[1]} {second[0]}", f"{first[1]} {first[1]}", lines[0]]
    pairs.write_text("\n".join(lines))
    return pairs


def test_every_kind_of_finding_is_told_and_tabled(run, mixed):
    status, out, err = run("-a", "check", "--train-list", mixed, "--patch-size", 16)
    assert status == 2
    rows = table()
    assert [row["line"].rsplit(":", 1)[1] for row in rows] == [str(n) for n in range(1, 11)]
    assert [n for n, row in enumerate(rows, 1) if row["trouble"]] == [6, 7]
    first, second = err.splitlines()
    assert "list.txt:6: the images of a pair differ in size: " in first
    assert "list.txt:7: " in second
    assert "has transparent pixels" in second
    assert f"{mixed}: 8 of 10 pairs can be used; check.csv has a row for each" in out
    assert [row["finding"] for row in rows[:6]] == [""] * 6
    assert [row["finding"] for row in rows[7:9]] == ["swapped", "identical"]
    assert rows[9]["finding"] == f"rainy as in {mixed}:1"
    for words in (
        f"pairs that look swapped, as clean is the brighter: 1 ({mixed}:8)\n",
        f"identical pairs, without rain: 1 ({mixed}:9)\n",
        f"pairs with the rainy image of an earlier line: 1 ({mixed}:10)\n",
    ):
        assert words in out
    assert "8 of 8 images are larger than the patch" not in out
    for row, pair in zip(rows[:5], lists.read_list(str(mixed)), strict=False):
        rainy, clean = (image.astype(int) for image in lists.read_pair(pair))
        assert (row["width"], row["height"]) == (str(rainy.shape[1]), str(rainy.shape[0]))
        share = (rainy != clean).any(-1).mean()
        assert 0 < float(row["mask"]) == pytest.approx(share, abs=1e-6)
        assert float(row["difference"]) == pytest.approx((rainy - clean).mean(), rel=1e-4)
        assert float(row["backward"]) == 0


def test_a_list_without_what_cannot_be_used(run, mixed, tmp_path):
    status, out, _ = run("-a", "check", "--train-list", mixed, "--fix", "deep/good.txt")
    assert status == 2
    assert "deep/good.txt: 8 of 10 pairs, all that can be used" in out
    kept = [n for n in range(10) if n not in (5, 6)]
    old, new = (lists.read_list(str(name)) for name in (mixed, "deep/good.txt"))
    for number, pair in zip(kept, new, strict=True):
        assert pair.rainy.samefile(old[number].rainy)
        assert pair.clean.samefile(old[number].clean)
    status, out, err = run("-a", "check", "--train-list", "deep/good.txt")
    assert (status, err) == (0, "")
    assert "check.csv: 8 of 8 pairs were looked at before" in out
    assert "check.csv: 2 rows are left out" in out
    assert len(table()) == 8
    status, _, err = run("-a", "check", "--train-list", mixed, "--fix", mixed)
    assert (status, err.count("\n")) == (2, 1)
    assert "list.txt is an input" in err


def test_rows_that_are_there_are_not_looked_at_again(run, pairs, monkeypatch):
    run("-a", "check", "--train-list", pairs)
    whole = Path("check.csv").read_bytes()
    looked = []

    def spread(items, work, processes):
        for item in items:
            looked.append(Path(item[0].rainy).name)
            yield work(item)

    monkeypatch.setattr(actions.check, "map_processes", spread)
    run("-a", "check", "--train-list", pairs)
    assert (looked, Path("check.csv").read_bytes()) == ([], whole)
    # Killed within its fourth row.
    lines = whole.splitlines(keepends=True)
    Path("check.csv").write_bytes(b"".join(lines[:4]) + lines[4][:-3])
    run("-a", "check", "--train-list", pairs)
    assert (looked, Path("check.csv").read_bytes()) == (["pair3.png", "pair4.png"], whole)
    # A file that has changed is another one, and so is the share of a mask of another threshold.
    looked.clear()
    os.utime(lists.read_list(str(pairs))[1].clean, (1, 1))
    run("-a", "check", "--train-list", pairs)
    assert looked == ["pair1.png"]
    run("-a", "check", "--train-list", pairs, "--mask-threshold", 30)
    assert len(looked) == 6
    assert all(float(row["mask"]) < 0.5 for row in table())


def test_rows_are_written_as_they_are_made(run, pairs, monkeypatch):
    def spread(items, work, processes):
        yield from map(work, items[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(actions.check, "map_processes", spread)
    status, out, _ = run("-a", "check", "--train-list", pairs, "-o", "t.csv")
    assert status == 130
    assert "t.csv: the same command goes on from here" in out
    assert [Path(row["rainy"]).name for row in table("t.csv")] == ["pair0.png", "pair1.png"]


@pytest.mark.parametrize("output", ["x.txt", "./x.txt", "link.txt"])
def test_table_and_list_are_not_written_to_one_file(run, pairs, output):
    Path("link.txt").symlink_to("x.txt")
    status, out, err = run("-a", "check", "--train-list", pairs, "-o", output, "--fix", "x.txt")
    assert (status, out) == (2, "")
    assert "-o or --fix: x.txt is written twice" in err
    assert not Path("x.txt").exists()


def test_the_row_of_a_file_that_changes_as_it_is_read_is_stale(run, pairs, monkeypatch):
    first, read = lists.read_list(str(pairs))[0], actions.check.read_pair

    def read_and_change(pair):
        images = read(pair)
        if pair.rainy == first.rainy:
            os.utime(pair.rainy, (2, 2))
        return images

    monkeypatch.setattr(
        actions.check, "map_processes", lambda items, work, _: (work(i) for i in items)
    )
    monkeypatch.setattr(actions.check, "read_pair", read_and_change)
    assert run("-a", "check", "--train-list", pairs)[0] == 0
    assert "@2000000000" not in table()[0]["files"]
    assert "4 of 5 pairs were looked at before" in run("-a", "check", "--train-list", pairs)[1]


def test_rows_of_swapped_pairs_count_after_an_interrupt(run, pairs, monkeypatch):
    lines = [" ".join(reversed(line.split())) for line in pairs.read_text().splitlines()]
    swapped = pairs.with_name("swapped.txt")
    swapped.write_text("\n".join(lines))

    def spread(items, work, processes):
        yield from map(work, items[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(actions.check, "map_processes", spread)
        assert run("-a", "check", "--train-list", swapped)[0] == 130
    assert all(float(row["difference"]) < 0 for row in table())
    assert "2 of 5 pairs were looked at before" in run("-a", "check", "--train-list", swapped)[1]


@pytest.mark.parametrize(("column", "text"), [("mask", "much"), ("digest", "a,b")])
def test_a_row_that_somebody_edited_is_looked_at_again(run, pairs, column, text):
    run("-a", "check", "--train-list", pairs)
    whole = Path("check.csv").read_bytes()
    row = table()[0]
    Path("check.csv").write_bytes(whole.replace(row[column].encode(), text.encode(), 1))
    status, out, _ = run("-a", "check", "--train-list", pairs)
    assert (status, Path("check.csv").read_bytes()) == (0, whole)
    assert "4 of 5 pairs were looked at before" in out


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "words", "\0"])
def test_another_table_is_not_overwritten(run, pairs, text):
    Path("check.csv").write_text(text)
    status, _, err = run("-a", "check", "--train-list", pairs)
    assert (status, err) == (
        2,
        "main.py: check.csv: is not a table of -a check; expected another -o\n",
    )
    assert Path("check.csv").read_text() == text


def test_a_list_of_no_use_is_not_written(run, tmp_path):
    path = write_pairs(tmp_path / "data", [(9, 9), (8, 9)])
    first, second = (line.split() for line in path.read_text().splitlines())
    path.write_text(f"{first[0]} {second[1]}\n")
    status, _, err = run("-a", "check", "--train-list", path, "--fix", "good.txt")
    assert status == 2
    assert err.endswith("good.txt: not written, as no pair can be used\n")
    assert not Path("good.txt").exists()


def test_a_look_by_hand():
    clean = np.full((2, 2, 3), 100, np.uint8)
    rainy = clean.copy()
    rainy[0, 0] = (103, 100, 100)
    rainy[1, 1] = (99, 100, 100)
    seen = inspect_pixels(rainy, clean, 0)
    assert (seen.width, seen.height, seen.mask) == (2, 2, 0.5)
    assert seen.difference == pytest.approx(2 / 12)
    assert seen.backward == pytest.approx(1 / 4)
    assert inspect_pixels(rainy, clean, 1).mask == 0.25
    assert not seen.swapped
    assert inspect_pixels(clean, rainy, 0).backward == pytest.approx(3 / 4)
    assert inspect_pixels(clean, clean, 0).identical
    assert not seen.identical
    assert (
        inspect_pixels(rainy, rainy, 0).digest
        == seen.digest
        != inspect_pixels(clean, rainy, 0).digest
    )
    assert (
        inspect_pixels(*(np.zeros((1, 4, 3), np.uint8),) * 2, 0).digest
        != inspect_pixels(*(np.zeros((2, 2, 3), np.uint8),) * 2, 0).digest
    )


def test_no_pair_of_real_rain_looks_swapped_and_all_do_when_they_are(shared):
    for name in ("spa_test", "spa_train_pseudo", "rain100L"):
        for pair in lists.read_list(str(shared / "rain" / f"{name}.txt")):
            rainy, clean = lists.read_pair(pair)
            assert not inspect_pixels(rainy, clean, 0).swapped
            assert inspect_pixels(clean, rainy, 0).swapped


def test_pairs_side_by_side_in_one_file(run):
    Path("set").mkdir()
    rng = np.random.default_rng(0)
    for number in (1, 2):
        clean = rng.integers(0, 150, (24, 30, 3), np.uint8)
        rainy = clean.copy()
        rainy[:, ::5] += 60
        cv2.imwrite(f"set/{number}.png", np.hstack([rainy, clean]))
    words = ["-a", "check", "--train-list", "set", "--side-by-side", "rainy-left"]
    status, out, err = run(*words, "--fix", "good.txt")
    assert (status, err) == (0, "")
    assert "good.txt: 2 of 2 pairs, all that can be used; pass it with --side-by-side" in out
    assert [row["width"] for row in table()] == ["30", "30"]
    assert {row["clean"] for row in table()} == {"rainy-left"}
    assert all(float(row["mask"]) == pytest.approx(0.2) for row in table())
    # The same table, the other way round: other rows, and pairs that look swapped.
    words = ["-a", "check", "--train-list", "good.txt", "--side-by-side", "rainy-right"]
    assert "look swapped, as clean is the brighter: 2 (" in run(*words)[1]
    looks = [inspect_header(pair) for pair in read_list("good.txt", True, print, "", "rainy-left")]
    assert looks == [(30, 24), (30, 24)]
