"""Named runs, and settings in a file: what a run writes of itself repeats it to the last bit."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from conftest import ROOT, write_pairs
from test_train import SMALL, weights

from engine import checkpoint
from media.lists import name_sets
from report.metrics import PROTOCOLS
from settings import Settings, UserError
from system.commandline import parse
from system.config import FILE, VERSION, describe_code, read_config, write_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_a_named_run_has_folders_of_its_own(run, pairs):
    train = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 2]
    test = ["-a", "test", "--test-list", pairs, "--device", "cpu", "--num-workers", 0]
    for name, more in (("a", []), ("b", ["--lr", 0.001])):
        assert run(*train, "--run", name, *more)[::2] == (0, "")
        status, out, err = run(*test, "--run", name)
        assert (status, err) == (0, "")
        assert f"model/{name}/latest, step 1, on " in out
        assert Path(f"results/{name}/index.html").is_file()
        assert {path.name for path in Path("logdir", name).iterdir()} == {
            "train_derain", "val_derain", "test_derain",
        }  # fmt: skip
    status, out, err = run("-a", "score", "-i", "results", "--test-list", pairs, "-o", "scores")
    assert (status, err) == (0, "")
    assert re.findall("^[ab]  ", out, re.M) == ["a  ", "b  "]
    Path("model/a/latest").rename("model/a/best")
    assert "model/a/best, step 1, on " in run(*test, "--run", "a")[1]
    assert not Path("model/latest").exists()
    export = parse(["-a", "export", "-o", "x.onnx", "--run", "b", "--model-dir", "model/a"])
    assert (export.model_dir, export.model) == ("model/a", "best")  # folders have the last word


def test_which_checkpoint_is_taken_where_none_is_named(run):
    def model(action: str) -> str:
        return parse(["-a", action]).model

    checkpoint.save(Path("model/mine"), {})
    Path("model/a_run").mkdir()
    Path("model", FILE).touch()
    assert [model(action) for action in ("derain", "web", "test", "export", "train")] == [
        "mine", "mine", "latest", "latest", "latest",
    ]  # fmt: skip
    checkpoint.save(Path("model/other"), {})
    assert model("derain") == "latest"
    Path("x.png").write_bytes((ROOT / "demo.png").read_bytes())
    status, _, err = run("-a", "derain", "-i", "x.png", "-o", "y.png")
    assert status == 2
    assert "model/latest: no such checkpoint; model holds a_run, mine, other" in err


@pytest.mark.parametrize("name", ["a/b", "..", ".a", "a\0"])
def test_a_run_has_a_plain_name(name):
    with pytest.raises(UserError, match=r"^--run: .* is not a name; expected one without slashes$"):
        Settings("train", run=name)


def test_a_new_run_beside_the_events_of_another_is_warned_of(run, pairs):
    train = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 1]
    assert run(*train)[::2] == (0, "")
    assert run(*train, "--num-steps", 2)[::2] == (0, "")  # it goes on
    status, _, err = run(*train, "--model-dir", "other")
    assert status == 0
    assert err.startswith("main.py: warning: logdir/train_derain holds the events of another run")
    assert "--run NAME keeps runs apart" in err


def test_the_settings_of_a_run_repeat_it_to_the_bit(run, pairs):
    train = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps"]
    run(*train, 1, "--model-dir", "start")
    more = ["--init-from", "start/latest", "--seed", 7, "--lr", 0.01, "--flip", "--run", "a"]
    assert run(*train, 2, *more)[::2] == (0, "")
    del more[:2]
    assert run(*train, 3, *more)[::2] == (0, "")  # resumed as docs/train.md says
    content = tomllib.loads(Path("model/a", FILE).read_text())
    assert content["init-from"] == "start/latest"
    state = checkpoint.load(Path("model/a/latest"))
    digest = checkpoint.load(Path("start/latest"))["digest"]
    assert content["record"] == {
        "version": VERSION, "code": describe_code(), "train-list": state["data"], "val-list": "",
        "init-from": digest,
    }  # fmt: skip
    assert run("--config", f"model/a/{FILE}", "--run", "b")[::2] == (0, "")
    assert all(map(torch.equal, weights("model/a/latest"), weights("model/b/latest")))
    first, second = (read_config(f"model/{name}/{FILE}") for name in "ab")
    differing = {key for key in first if first[key] != second[key]}
    assert differing == {"run", "model_dir", "log_dir"}


def test_a_run_on_several_lists_resumes_to_the_bit(run, pairs):
    other = write_pairs(Path("other"), [(20, 20)] * 3, seed=3)
    lists = ["--train-list", pairs, other, "--train-weights", 3, 1]
    words = ["-a", "train", *lists, *SMALL, "--batch-size", 4]
    status, _, err = run(*words, "--num-steps", 3, "--run", "a")
    assert status == 0
    assert "warning: 3 of 3 images are larger than the patch" in err  # those of the second list
    status, out, _ = run(*words, "--num-steps", 2, "--run", "b")
    assert status == 0
    assert out.count("share of mask pixels: ") == 2
    assert ": 8 pairs, steps 0 to 1" in out
    assert run(*words, "--num-steps", 3, "--run", "b")[0] == 0
    assert run("--config", f"model/a/{FILE}", "--run", "c")[0] == 0
    for name in "bc":
        assert all(map(torch.equal, weights("model/a/latest"), weights(f"model/{name}/latest")))
    for changed, change in (
        (["--train-weights", 1, 1], "--train-weights is (1, 1), was (3, 1)"),
        (["--train-list", other, pairs], "the training list names other pairs"),
    ):
        status, _, err = run(*words, *changed, "--num-steps", 4, "--run", "b")
        assert status == 2
        assert f"was trained with other settings: {change}; expected the same, --run" in err
    other.write_text("rain/pair0.png clean/pair9.png\n")
    assert f"{other}:1: no such image" in run(*words, "--num-steps", 4, "--run", "b")[2]


@pytest.fixture
def three_sets() -> list[Path]:
    """Sets of pictures that are called alike."""
    folders = [Path("sets", name) for name in ("Rain100H", "Rain100L", "Test100")]
    for count, folder in enumerate(folders, 1):
        write_pairs(folder, [(24, 20)] * count, seed=count)
        (folder / "list.txt").unlink()
    return folders


def test_two_experiments_on_three_sets_make_one_table(run, pairs, three_sets):
    """The walk of docs/train.md: two commands to train, two to test, one to score."""
    train = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 2]
    test = ["-a", "test", "--test-list", *three_sets, "--device", "cpu", "--num-workers", 0]
    for name, more in (("run2", []), ("run10", ["--lr", 0.0002])):
        assert run(*train, "--run", name, *more)[::2] == (0, "")
        status, out, err = run(*test, "--run", name)
        assert (status, err) == (0, "")
        rows = out.split("\nset ")[1].splitlines()[1:4]
        assert [row.split()[:2] for row in rows] == [
            ["Rain100H", "1"], ["Rain100L", "2"], ["Test100", "3"],
        ]  # fmt: skip
        assert "means over 6 images" in out
        assert Path(f"results/{name}/derained/Test100/pair2.png").is_file()
        summary = json.loads(Path(f"results/{name}/summary.json").read_text())
        psnr = summary["sets"]["Rain100L"]["output_y_psnr"]
        assert f"{psnr:.4f} / " in rows[1]
    words = ["-i", "results", "--test-list", *three_sets, "-o", "scores", "--protocol", "y"]
    status, out, err = run("-a", "score", *words)
    assert (status, err) == (0, "")
    table = Path("scores/table.tex").read_text()
    assert table.count(r"\begin{table}") == 1
    heading = " & ".join(
        f"{name} {measure}"
        for name in ("Rain100H", "Rain100L", "Test100")
        for measure in ("PSNR", "SSIM")
    )
    assert f"    Method & {heading} \\\\\n" in table
    assert re.findall(r"^    (\w+) & ", table, re.M) == ["Method", "rainy", "run2", "run10"]
    scores = json.loads(Path("scores/summary.json").read_text())["sets"]
    best = scores["Rain100L"]["run10"]
    assert best["images"] == 2
    assert best["means"]["y_psnr"] == pytest.approx(psnr)
    assert f"{psnr:.2f}" in re.search(r"run10 & .*", table)[0].split(" & ")[3]
    assert out.index("Rain100H:\n") < out.index("Rain100L:\n") < out.index("Test100:\n")
    page = Path("scores/index.html").read_text()
    assert '"opening": [1, 2]' in page  # on method against method
    assert '"name": "Rain100L/pair1"' in page


def test_sets_that_cannot_be_in_one_table(run, pairs, three_sets):
    names = name_sets(("a/test.txt", "b/test.txt"))
    assert names == {"a-test": "a/test.txt", "b-test": "b/test.txt"}
    with pytest.raises(UserError, match="the sets have equal names; expected different ones"):
        name_sets(("a/test.txt", "a/test.txt"))
    rainy = Path("rainy.txt")
    rainy.write_text(f"{three_sets[0]}/rain/pair0.png\n")
    checkpoint.save(Path("model/latest"), {})
    status, _, err = run("-a", "test", "--test-list", three_sets[0], rainy, "--device", "cpu")
    assert (status, err) == (
        2, "main.py: --test-list: some lists have clean images; expected all, or none\n"
    )  # fmt: skip
    shutil.copytree(three_sets[1] / "clean", "r/mine/Rain100L")
    words = ["-a", "score", "-i", "r", "-o", "out", "--test-list"]
    status, _, err = run(*words, *three_sets[:2])
    assert (status, "r: holds no pictures in a folder Rain100H; expected" in err) == (2, True)
    shutil.copytree(three_sets[0] / "clean", "r/other/Rain100H")
    status, _, err = run(*words, *three_sets[:2])  # each method lacks a set
    assert status == 2
    assert "skipped folders without pictures: r/mine" in err
    assert "| mine | - | - | **inf** | **1.0000** |" in Path("out/table.md").read_text()
    shutil.copytree(three_sets[1] / "clean", "alone/Rain100L")
    shutil.copytree(three_sets[0] / "clean", "alone/Rain100H")
    assert run(*words, *three_sets[:2], "-i", "alone", "-o", "own")[0] == 0
    assert "alone" in json.loads(Path("own/summary.json").read_text())["methods"]


def test_every_setting_survives_the_file():
    odd = Settings("train", train_list='a "b"\\\n\x7fé😀', lr=1e-5, seed=2**63 - 1, flip=True)
    odd = dataclasses.replace(odd, train_list=(odd.train_list, "b"), train_weights=(3, 1))
    write_config(Path("odd.toml"), odd, {"code": "x"})
    assert parse(["--config", "odd.toml"]) == dataclasses.replace(odd, config="odd.toml")


def test_the_command_line_counts_more_than_the_file():
    text = "lr = 1\ntrain-list = 'a'\nmodel = 'm'\nrun = 'a'\nlog-dir = 'logs'\ntile = 64\n"
    Path("own.toml").write_text(text)
    words = ["-a", "train", "--config", "own.toml"]
    settings = parse([*words, "--train-list", "b"])
    assert (settings.lr, settings.train_list, settings.log_dir) == (1, "b", "logs")
    assert parse([*words, "--run", "b"]).log_dir == "logdir/b"
    assert parse([*words, "--run", "b", "--log-dir", "c"]).log_dir == "c"
    clean = parse(
        ["-a", "clean", "--config", "own.toml"]
    )  # to which none of these options is known
    assert clean == Settings("clean", config="own.toml")
    Path("own.toml").write_text("action = 'train'\nmodel = 'm'\ntile = 64\n")
    test = parse(["-a", "test", "--config", "own.toml"])
    assert (test.tile, test.model) == ("64", "latest")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "own.toml: is not TOML: Invalid value (at "),
        ("lr = '1'", "own.toml: --lr: expected float, got '1'"),
        ("train-list = []", "own.toml: --train-list: expected one value or more"),
        ("train-list = ['a', 1]", "own.toml: --train-list: expected str, got 1"),
        ("lr = 11", "own.toml: --lr: 11 is out of range"),
        ("learning-rate = 1", "own.toml: unknown option learning-rate"),
        ("batch_size = 1", "own.toml: unknown option batch_size; did you mean batch-size?"),
        ("action = 'tset'", "own.toml: --action: 'tset' is not one of "),
        ("\udcff", "own.toml: is not TOML: 'utf-8' codec can't decode"),
        (None, "own.toml: No such file or directory"),
    ],
)
def test_a_bad_file_of_settings_is_one_line(run, text, message):
    if text is not None:
        Path("own.toml").write_bytes(text.encode(errors="surrogateescape"))
    status, out, err = run("-a", "train", "--config", "own.toml")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"main.py: {message}")


def test_the_protocols_to_choose_from_are_those_that_are_measured():
    hints = get_type_hints(Settings)
    assert get_args(hints["val_protocol"]) == (*PROTOCOLS,)
    assert get_args(hints["protocol"]) == ("all", *PROTOCOLS)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"SPANet {VERSION}")
    assert f"## {VERSION}\n" in (ROOT / "CHANGELOG.md").read_text()
