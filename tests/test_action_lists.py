"""The action lists: what it writes is as good as the folder that it was made from."""

from pathlib import Path

import pytest
from test_layouts import LAYOUTS, write, write_halves

from media import lists


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_list_of_a_folder_is_as_good_as_the_folder(layout, run):
    line, expected = LAYOUTS[layout]
    write(Path("a set"), expected)
    status, out, err = run("-a", "lists", "-i", "a set", "-o", "a set/pairs.txt")
    assert (status, err) == (0, "")
    shown = out.splitlines()
    assert shown[0] == f"a set: {line}"
    assert shown[-1] == f"a set/pairs.txt: {len(expected)} lines"
    assert len(shown) == 2 + min(3, len(expected))
    folder = lists.read_list("a set", say=lambda _: None)
    listed = lists.read_list("a set/pairs.txt", need_clean=True)
    assert [(p.rainy, p.clean) for p in listed] == [(p.rainy, p.clean) for p in folder]
    assert lists.fingerprint(listed) == lists.fingerprint(folder)


def test_the_list_of_halves_needs_the_option_too(run):
    write_halves()
    side = ["--side-by-side", "rainy-right"]
    status, out, _ = run("-a", "lists", "-i", "did", "-o", "did.txt", *side)
    assert status == 0
    assert out.splitlines()[-1] == "did.txt: 2 lines; pass it with --side-by-side rainy-right"
    listed = lists.read_list("did.txt", True, side_by_side="rainy-right")
    folder = lists.read_list("did", True, lambda _: None, side_by_side="rainy-right")
    assert [(p.rainy, p.halves) for p in listed] == [(p.rainy, p.halves) for p in folder]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-i set -o out", "-o: 'out'; expected the name of a list, such as pairs.txt"),
        ("-i set", "-o: ''; expected the name of a list, such as pairs.txt"),
        ("-i none -o l.txt", "-i: 'none' is not a folder; expected a folder of pairs"),
        ("-i tab -o l.txt", "'tab/rain/1\\t.png': no list can hold it; expected a name "),
    ],
)
def test_lists_refuses_in_one_line(run, words, message):
    write(Path("tab"), [("rain/1\t.png", "norain/1\t.png")])
    status, _, err = run("-a", "lists", *words.split())
    assert status == 2
    assert err.startswith(f"main.py: {message}")
    assert err.count("\n") == 1
