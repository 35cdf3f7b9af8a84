"""Which result is of which picture: the names that methods give, and folders of them."""

import os
from pathlib import Path

import pytest

from media.lists import read_list
from media.results import find_methods, match_results, result_names
from settings import UserError


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def matched(truths: list[str], results: list[str]) -> tuple[dict[str, str], object]:
    """{truth: result} by their names, and the whole match. A truth may be `rainy clean`."""
    lines = [line.split() for line in truths]
    touch(*(f"data/{name}" for names in lines for name in names), *(f"r/{n}" for n in results))
    Path("data/list.txt").write_text("\n".join(truths))
    pairs = read_list("data/list.txt")
    names = result_names([pair.rainy for pair in pairs])
    (method,), _ = find_methods(Path("r"), Path("out"))
    found = match_results(method, pairs, names)
    return {lines[place][0]: path.name for place, path in found.files.items()}, found


@pytest.mark.parametrize(
    ("truth", "result"),
    [
        ("{}.png", "{}.png"),
        ("{}.png", "{}.jpg"),  # another kind of file
        ("{}.png", "{}_derained.png"),
        ("{}.png", "derained-{}.png"),
        ("{}.png", "{}_x4.png"),  # a number of its own, which is one of theirs
        ("{}.png", "step2_{}_of_9.png"),
        ("{}.png", "00{}.png"),
        ("norain-00{}.png", "rain-00{}.png"),
        ("norain-00{}.png", "rain-00{}_DRSformer.png"),
        ("norain-{}.png", "{}.png"),
        ("norain-{}.png", "norain-{}x2.png"),
        ("rainy/{}.png clean/{}.png", "{}.png"),
        ("rainy/rain-{}.png clean/norain-{}.png", "norain-{}.png"),
        ("rainy/rain-{}.png clean/norain-{}.png", "rain-{}_out.png"),
        ("rainy/901_{}.jpg clean/901.jpg", "901_{}.png"),  # as DDN-Data: one truth for all
        ("rainy/901_{}.jpg clean/901.jpg", "901_{}_derained.png"),
        ("IMG_{}.PNG", "img_{}.png"),
        ("000-f_{}_256.png", "000-f_{}_256-derained.png"),
    ],
)
def test_results_are_matched_by_what_is_in_their_names(truth, result):
    numbers = range(1, 12)
    truths = [truth.replace("{}", str(n)) for n in numbers]
    found, whole = matched(truths, [result.replace("{}", str(n)) for n in numbers])
    expected = {
        truth.split()[0].replace("{}", str(n)): result.replace("{}", str(n)) for n in numbers
    }
    assert found == expected
    assert whole.complete


@pytest.mark.parametrize(
    ("results", "texts"),
    [
        (["{}_rain.png", "{}_derained.png"], "*_derained, *_rain"),
        (["{}_gt.png", "{}_output.png"], "*_gt, *_output"),
        (["{}.png", "{}_out.png"], "*, *_out"),  # the inputs lie beside what was made of them
    ],
)
@pytest.mark.parametrize("most", [6, 5])  # one of the others may be missing
def test_names_that_can_be_read_in_two_ways_are_not_matched(results, texts, most):
    first, second = results
    names = [first.replace("{}", str(n)) for n in range(1, 7)]
    names += [second.replace("{}", str(n)) for n in range(1, most + 1)]
    found, whole = matched([f"rainy/{n}.png clean/{n}.png" for n in range(1, 7)], names)
    assert (found, whole.complete) == ({}, False)
    (doubt,) = whole.doubts
    prefix = "their names can be read in several ways: "
    assert sorted(doubt.removeprefix(prefix).split(", ")) == sorted(texts.split(", "))


def test_a_rule_that_fits_fewer_than_half_is_not_used():
    truths = [f"{n}.png" for n in range(1, 13)]
    found, whole = matched(truths, [f"1{n}.png" for n in range(1, 13)])
    assert (found, len(whole.unmatched), len(whole.missing)) == ({}, 12, 12)
    assert whole.rule == "no rule fits half of their names"


@pytest.mark.parametrize("result", ["{}.png", "out-{:04}.png", "{}_x4.png", "{:05}.jpg"])
@pytest.mark.parametrize(("truths", "results"), [((1, 13), (0, 12)), ((0, 12), (3, 15))])
def test_results_counted_from_another_number_are_not_matched(result, truths, results):
    found, whole = matched(
        [f"rain/r{n}.png clean/{n}.png" for n in range(*truths)],
        [result.format(n) for n in range(*results)],
    )
    assert (found, whole.complete, whole.unmatched, whole.missing) == ({}, False, [], [])
    assert whole.doubts[0].startswith("they are numbered otherwise than the pictures: ")


def test_one_missing_and_one_too_many_are_no_shift():
    truths = [f"{n}.png" for n in range(1, 7)]
    found, whole = matched(truths, ["1.png", "2.png", "3.png", "5.png", "6.png", "mean.png"])
    assert (len(found), whole.missing, [p.name for p in whole.unmatched]) == (5, [3], ["mean.png"])


@pytest.mark.parametrize("result", ["{}.png", "{}_out.png"])
def test_the_same_case_wins(result):
    names = [result.replace("{}", stem) for stem in ("A", "a", "b")]
    found, whole = matched(["A.png", "a.png", "b.png"], names)
    assert whole.complete
    assert found == dict(zip(["A.png", "a.png", "b.png"], names, strict=True))


def test_the_same_case_wins_among_results_too():
    found, whole = matched(["a.png", "b.png"], ["A.png", "a.png", "b.png"])
    assert found == {"a.png": "a.png", "b.png": "b.png"}
    assert [path.name for path in whole.unmatched] == ["A.png"]


def test_words_are_matched_too():
    found, whole = matched(
        ["sea.png", "street.png", "sea_side.png"], ["sea_out.png", "sea_side_out.png"]
    )
    assert found == {"sea.png": "sea_out.png", "sea_side.png": "sea_side_out.png"}
    assert whole.missing == [1]
    assert whole.rule == "matched by what is around the name, such as sea_out.png to sea.png"


def test_one_result_alone_is_matched():
    assert matched(["norain-001.png", "norain-002.png"], ["rain-002.png"])[0] == {
        "norain-002.png": "rain-002.png"
    }


def test_names_of_a_test_with_equal_stems():
    truths = ["a/1.png", "b/1.png", "a/2.png"]
    found, whole = matched(truths, ["1.png", "1-2.png", "2.png"])
    assert found == {"a/1.png": "1.png", "b/1.png": "1-2.png", "a/2.png": "2.png"}
    assert whole.complete


def test_what_is_not_certain_is_not_taken():
    truths = ["a/1.png", "b/1.png", "a/2.png", "a/3.png", "a/4.png"]
    found, whole = matched(truths, ["1.png", "2.png", "2.jpg", "3.png", "other.png"])
    assert found == {"a/3.png": "3.png"}
    assert whole.missing == [0, 1, 4]
    assert [path.name for path in whole.unmatched] == ["other.png"]
    assert whole.doubts == [
        "1.png may be of data/list.txt:1, data/list.txt:2",
        "data/list.txt:3 has several: 2.jpg, 2.png",
    ]
    assert not whole.complete


def test_folders_of_methods():
    touch("r/B/1.png", "r/B/notes.txt", "r/A/results/Rain100L/1.png", "r/.cache/1.png")
    touch(
        "r/T/derained/1.png", "r/T/mask/1.png", "r/T/compare/1.png", "r/T/index_files/0-thumb.jpg"
    )
    touch("r/empty/readme", "r/out/1.png")
    methods, empty = find_methods(Path("r"), Path("r/out"))
    assert [(m.name, [str(f) for f in m.files]) for m in methods] == [
        ("A", ["r/A/results/Rain100L/1.png"]),
        ("B", ["r/B/1.png"]),
        ("T", ["r/T/derained/1.png"]),
    ]
    assert dict(methods[1].others) == {".txt": 1}
    assert empty == [Path("r/empty")]


def test_results_beside_those_of_a_test_are_methods_too():
    touch("r/derained/1.png", "r/mask/1.png", "r/MPRNet/1.png")
    methods, _ = find_methods(Path("r"), Path("out"))
    assert [method.name for method in methods] == ["MPRNet", "derained"]


def test_links_that_lead_back_end():
    touch("r/A/notes.txt", "r/B/1.png")
    for name in ("r/A/x", "r/A/y", "r/B/x"):
        Path(name).symlink_to("..", target_is_directory=True)
    Path("r/C").symlink_to("B", target_is_directory=True)
    methods, empty = find_methods(Path("r"), Path("out"))
    assert [method.name for method in methods] == ["B", "C"]
    assert empty == [Path("r/A")]


def test_names_of_methods_can_be_printed():
    touch("r/a\nb/1.png")
    os.makedirs(b"r/m\xff")
    Path(os.fsdecode(b"r/m\xff/1.png")).touch()
    names = [method.name for method in find_methods(Path("r"), Path("out"))[0]]
    assert names == [r"a\nb", r"m\udcff"]


def test_accents_are_spelt_in_two_ways():
    assert matched(["\u00e9.png"], ["e\u0301.png"])[1].complete


def test_names_of_clean_images_that_are_those_of_other_rainy_ones():
    """Frames of a video, each with the next as its clean image, and results called after those."""
    pairs = [f"rainy/{n}.png clean/{n + 1}.png" for n in range(1, 5)]
    found, whole = matched(pairs, ["2.png", "3.png", "4.png", "5.png"])
    assert found == {f"rainy/{n}.png": f"{n + 1}.png" for n in range(1, 5)}
    assert whole.complete


def test_results_that_fit_rainy_and_clean_names_alike_are_in_doubt():
    pairs = [f"rainy/{n}.png clean/{n + 1}.png" for n in range(1, 5)]
    found, whole = matched(pairs, ["2.png", "3.png"])
    assert found == {}
    assert whole.doubts[0] == "2.png may be of data/list.txt:1, data/list.txt:2"


def test_one_method_is_its_folder(monkeypatch):
    touch("m/1.png", "m/index_files/000000-thumb.jpg", "t/derained/1.png", "t/mask/1.png")
    for name in ("m", "t"):
        (method,), _ = find_methods(Path(name), Path("out"))
        assert (method.name, len(method.files)) == (name, 1)
    monkeypatch.chdir("m")
    assert find_methods(Path(), Path("out"))[0][0].name == "m"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["r/1.png", "r/A/1.png"],
            "-i: r: holds pictures in several places (./, A/); expected",
        ),
        (
            ["r/A/x/1.png", "r/A/y/1.png"],
            "-i: r/A: holds pictures in several places (x/, y/); expected",
        ),
        (["r/A/1.png", "r/A/h/2.png"], "-i: r/A: holds pictures in several places (./, h/)"),
        (["r/A/derained/1.png", "r/A/more/1.png"], "several places (derained/, more/)"),
        (["r/A/notes.txt"], "-i: r: holds no pictures; expected .avif"),
        (["r"], "-i: r: expected a folder of results"),
    ],
)
def test_folders_that_can_be_read_in_two_ways_or_none_are_refused(files, message):
    touch(*files)
    with pytest.raises(UserError) as error:
        find_methods(Path("r"), Path("out"))
    assert message in str(error.value)


def test_results_get_names_of_their_own():
    names = ["a/x.png", "b/x.jpg", "x-2.png", "c/x.png", "X.png", "y.tar.png", "../../z.png"]
    found = result_names([Path(name) for name in names])
    assert found == ["x", "x-3", "x-2", "x-4", "X-5", "y.tar", "z"]
    assert len({name.casefold() for name in found}) == len(names)
    many = result_names([Path(f"{i}/rain.png") for i in range(5000)])
    assert (many[0], many[4999], len(set(many))) == ("rain", "rain-5000", 5000)
