"""Lists at the size that is published: what they weigh, and how missing files are named."""

import os
import pickle
from pathlib import Path

import pytest

from actions import train
from media import lists
from settings import UserError
from system import progress

ODD = (
    "\ufeff# odd names\r\n./x/a.png\t./x//y/b b.png\r\n\r\n./x/y/../y/é.png\t./c.png\n"
    "./x/./a.png c.png/\n./x/-\u3000d.png  ./x/e\u2028.png\n"
)
# What the code computed that made objects of all lines: checkpoints hold such values.
ODD_PRINT = "71792e082bd264092fc6d0ca608a4098554c14431f689bf6b958298295d1d6b6"


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def write(lines: list[str]) -> Path:
    Path("list.txt").write_text("\n".join(lines))
    return Path("list.txt")


@pytest.fixture
def odd() -> Path:
    touch("set/c.png", *(f"set/x/{n}.png" for n in ("a", "y/b b", "y/é", "-\u3000d", "e\u2028")))
    Path("set/list.txt").write_bytes(ODD.encode())
    return Path("set/list.txt")


def test_the_fingerprint_is_that_of_older_checkpoints(odd):
    for path in (str(odd), str(odd.resolve()), "./set/../set/list.txt"):
        pairs = lists.read_list(path, need_clean=True)
        assert lists.fingerprint(pairs) == ODD_PRINT


def test_a_list_gives_pairs(odd):
    pairs = lists.read_list(str(odd))
    names = [("x/a.png", "x/y/b b.png"), ("x/y/../y/é.png", "c.png"), ("x/a.png", "c.png")]
    names.append(("x/-\u3000d.png", "x/e\u2028.png"))
    assert [(p.rainy, p.clean) for p in pairs] == [
        (odd.parent / r, odd.parent / c) for r, c in names
    ]
    assert [p.location for p in pairs[1::2]] == [f"{odd}:4", f"{odd}:6"]
    assert list(pickle.loads(pickle.dumps(pairs[:2]))) == list(pairs)[:2]
    assert pairs[-1] == pairs[3]
    with pytest.raises(IndexError):
        pairs[4]


def test_names_weigh_little_more_than_their_text():
    names = [f"real_world/{i // 100:03d}/{i:05d}.png" for i in range(5000)]
    touch(*names)
    write([f"./{name} ./{name}" for name in names])
    pairs = lists.read_list("list.txt")
    text = sum(2 * len(f"./{name}") for name in names)
    assert len(pickle.dumps(pairs)) < text + 5000 * (4 + 1) * 8 + 1000
    assert pairs[4999].rainy == Path(names[-1])


def test_folders_are_listed_and_names_not_asked_one_by_one(monkeypatch):
    names = [f"{folder}/{i}.png" for i in range(50) for folder in "ab"]
    touch(*names)
    write([f"{first} {second}" for first, second in zip(names[::2], names[1::2], strict=True)])
    asked, listed = [], []
    ask, scan = os.path.isfile, os.scandir
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or ask(path))
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scan(path))
    assert len(lists.read_list("list.txt")) == 50
    assert sorted(listed) == ["a", "b"]
    assert len(asked) == 1  # what finds the first


def test_files_are_found_in_folders_that_may_not_be_listed(monkeypatch):
    touch("a/1.png", "a/2.png")
    write(["a/1.png a/2.png"])

    def closed(path):
        raise PermissionError

    monkeypatch.setattr(os, "scandir", closed)
    assert len(lists.read_list("list.txt")) == 1


def test_of_many_missing_files_the_lines_of_the_first_five_are_named():
    touch("a/1.png")
    write(["# pairs", "a/1.png a/1.png"] + [f"a/1.png b/{i}.png" for i in range(6)] + ["a c/d.png"])
    with pytest.raises(UserError) as caught:
        lists.read_list("list.txt")
    assert str(caught.value) == (
        "list.txt:3: no such image: b/0.png (looked for b/0.png); "
        "8 are missing, in the lines 3, 4, 5, 6, 7, and 3 more"
    )
    write(["a/1.png a/1.png", "a/1.png a"])
    with pytest.raises(UserError, match=r"^list\.txt:2: no such image: a \(looked for a\)$"):
        lists.read_list("list.txt")


def test_what_takes_long_is_told(monkeypatch):
    touch("a/1.png")
    write(["a/1.png a/1.png"] * 20_000)
    said = []
    assert len(lists.read_list("list.txt", say=said.append)) == 20_000
    assert said == []
    monkeypatch.setattr(progress, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lists.read_list("list.txt", say=said.append)
    assert said == [
        "list.txt: read 10000 lines",
        "list.txt: read 20000 lines",
        "list.txt: looked into 1 of 1 folders",
    ]


def test_the_list_of_training_and_validation_is_read_once(run, pairs, monkeypatch):
    seen, read = [], lists.read_list
    monkeypatch.setattr(train, "run_steps", lambda *_: 0)
    monkeypatch.setattr(train, "read_list", lambda *given: seen.append(given[0]) or read(*given))
    words = ["-a", "train", "--train-list", pairs]
    assert run(*words)[0] == 0
    assert run(*words, "--val-list", pairs, "--model-dir", "other")[0] == 0
    assert seen == [str(pairs)] * 2


# Lists from Windows


def test_lists_of_windows_shells_are_read():
    touch("in/a.png", "in/é.png")
    names = ["in\\a.png .\\in\\é.png", ".\\in\\a.png\tin/a.png"]
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be"):
        text = "\r\n".join(names)
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        Path("list.txt").write_bytes((mark + text).encode(encoding))
        pairs = lists.read_list("list.txt")
        assert [(str(p.rainy), str(p.clean)) for p in pairs] == [
            ("in/a.png", "in/é.png"),
            ("in/a.png", "in/a.png"),
        ]
    Path("list.txt").write_bytes("in/a.png".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"^list\.txt: not UTF-16 text \(truncated data at byte "):
        lists.read_list("list.txt")


def test_a_name_that_holds_a_backslash_is_taken_as_it_stands_where_it_is_a_file():
    touch("a\\b.png", "c.png", "d/e.png")
    write(["a\\b.png c.png", "d\\e.png c.png"])
    assert [p.rainy for p in lists.read_list("list.txt")] == [Path("a\\b.png"), Path("d/e.png")]


def test_a_folder_with_the_name_of_an_image_stands_for_the_one_in_it():
    touch("rain/1.png/other.png", "clean/1.png", "two/1.png/a.png", "two/1.png/b.png")
    write(["/rain/1.png /clean/1.png"])
    said = []
    (pair,) = lists.read_list("list.txt", say=said.append)
    assert (pair.rainy, pair.clean) == (Path("rain/1.png/other.png"), Path("clean/1.png"))
    assert said == ["list.txt: names of folders, for which the one image in each is taken: 1"]
    write(["clean/1.png two/1.png"])
    with pytest.raises(UserError, match=r":1: no such image: two/1.png"):
        lists.read_list("list.txt")
