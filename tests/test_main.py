"""The command line: every setting an option, bad input one clear line and status 2."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command

import main
from settings import Settings, UserError, parse


def test_every_setting_is_an_option_with_help(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["-h"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for f in dataclasses.fields(Settings):
        assert f"--{f.name.replace('_', '-')}" in text
        assert f.metadata["help"]


def test_defaults_are_the_recipe():
    settings = parse(["-a", "train", "-m", "latest"])
    assert (settings.batch_size, settings.patch_size, settings.num_steps) == (16, 256, 40001)
    assert (settings.lr, settings.lr_decay, settings.lr_decay_step) == (5e-4, 0.1, 29999)
    assert (settings.seed, settings.crop_area_min, settings.crop_aspect_max) == (2019, 0.8, 4 / 3)
    cadences = (
        settings.val_batch_every, settings.latest_every, settings.picture_every,
        settings.checkpoint_every,
    )  # fmt: skip
    assert cadences == (4, 25, 200, 400)
    assert settings.direction_attention is False
    assert settings.train_list == "training/real_world.txt"
    assert settings.test_list == "testing/real_test_1000.txt"


def test_values_are_typed():
    settings = parse(["-a", "test", "--lr", "1e-4", "--direction-attention", "--seed=3"])
    assert (settings.lr, settings.direction_attention, settings.seed) == (1e-4, True, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lr = 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "-a/--action"),
        ("-a tset", "--action: 'tset' is not one of train, test, derain, export, clean, pairs"),
        ("-a train --batchsize 8", "unknown option --batchsize; did you mean --batch-size?"),
        ("--batch_size=8 -a train", "unknown option --batch_size; did you mean --batch-size?"),
        ("-a train --batch 8", "unknown option --batch; did you mean --batch-size?"),
        ("-a train stray", "unknown argument 'stray'"),
        ("-a train --batch-size 0", "--batch-size: 0 is out of range; expected a number from 1"),
        ("-a train --batch-size 2.5", "--batch-size: '2.5' is not a whole number"),
        ("-a train --batch-size", "--batch-size: expected one argument"),
        ("-a train --lr fast", "--lr: 'fast' is not a number"),
        ("-a train --lr nan", "--lr: nan is out of range"),
        ("-a train --lr inf", "--lr: inf is out of range"),
        ("-a train --lr -1", "--lr: -1.0 is out of range"),
        (
            "-a train --crop-area-min 1.5",
            "--crop-area-min: 1.5 is out of range; expected a number from 0.01 to",
        ),
        (
            "-a train --device gpu",
            "--device: 'gpu' is not one of auto, cpu, cuda\n",
        ),
        ("-a train --seed 99999999999999999999", "--seed: 99999999999999999999 is out of range"),
        ("-a train --lr 1e39", "--lr: 1e+39 is out of range; expected a number from 0.0 to 10.0"),
        ("-a train --test-list caf\udce9.txt", "--test-list: 'caf\\udce9.txt' is not UTF-8 text"),
        ("-a train -m ../x", "--model: '../x' is not a name"),
    ],
)
def test_bad_options_are_one_line(run, words, message):
    status, out, err = run(*words.split())
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_settings_are_checked_whoever_sets_them():
    with pytest.raises(UserError, match="--num-steps: expected int, got '9'"):
        Settings("train", num_steps="9")
    with pytest.raises(UserError, match="--seed: -1 is out of range"):
        Settings("train", seed=-1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(run, pairs):
    status, _, err = run("-a", "train", "--train-list", pairs, "--device", "cuda")
    assert status == 2
    assert err.startswith("main.py: --device: cuda asked for, but ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("action", ["train", "test"])
def test_missing_and_empty_lists(run, action):
    option = f"--{action}-list"
    status, _, err = run("-a", action, option, "none.txt")
    assert (status, err) == (
        2, "main.py: none.txt: cannot read the list: No such file or directory; "
        "Train_Dataset_README.md describes lists\n",
    )  # fmt: skip
    Path("empty.txt").touch()
    status, _, err = run("-a", action, option, "empty.txt")
    assert status == 2
    assert "empty.txt: the list is empty" in err


def test_missing_default_list_and_model(run, pairs):
    status, _, err = run("-a", "test", "-m", "latest")
    assert status == 2
    assert "testing/real_test_1000.txt: cannot read the list" in err
    status, _, err = run("-a", "test", "-m", "latest", "--test-list", pairs)
    assert status == 2
    assert "model/latest: no such checkpoint" in err
    assert not Path("results").exists()


def test_result_folder_that_is_a_file(run, pairs):
    run(
        *("-a", "train", "--train-list", pairs, "--num-steps", 1, "--device", "cpu"),
        *("--patch-size", 8, "--batch-size", 1, "--num-workers", 0),
    )
    Path("results").write_text("in the way")
    status, _, err = run("-a", "test", "--test-list", pairs, "--device", "cpu")
    assert (status, err) == (2, "main.py: results: cannot be written to: File exists\n")


def test_ctrl_c_while_testing_is_no_traceback(run, monkeypatch, pairs):
    def interrupted(session):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "run", interrupted)
    status, _, err = run("-a", "test", "--device", "cpu")
    assert status == 130
    assert "Traceback" not in err


def test_the_program_itself_exits_with_2():
    done = subprocess.run(command("-a", "train"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("main.py: training/real_world.txt: cannot read the list")
    assert done.stderr.count("\n") == 1


def test_gpu_without_cupy_is_one_line(run, pairs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, _, err = run("-a", "test", "--test-list", pairs)
    assert status == 2
    assert err.startswith("main.py: --device: the IRNN on a GPU needs CuPy")
    assert "pip install cupy-cuda1" in err
    assert err.endswith("or choose --device cpu\n")


def test_imports_run_one_way():
    """main -> train -> evaluate -> session -> model -> irnn_cuda; main -> pairs -> clean; leaves
    know settings and a few tools alone.
    """
    ours = {path.stem for path in ROOT.glob("*.py")} | {"irnn_cuda"}
    leaves = {
        "settings", "checkpoint", "dataset", "events", "cal_ssim", "metrics", "progress",
        "training_step", "visualize", "synthetic_rain", "clean_image", "inference", "pictures",
        "report", "transcode",
    }  # fmt: skip
    tools = {"settings", "compiled", "files", "lists", "machine", "ranks", "video"}
    allowed = {tool: {"settings"} for tool in tools} | dict.fromkeys(leaves, tools)
    allowed["pictures"] = tools | {"metrics"}
    allowed["report"] = tools | {"metrics", "visualize"}
    allowed["jobs"] = leaves
    leaves |= tools
    allowed["training_step"] = tools | {"cal_ssim", "model"}
    allowed["irnn_cuda"] = {"compiled"}
    allowed["clean"] = leaves
    allowed["pairs"] = leaves | {"clean"}
    allowed["model"] = {"irnn_cuda"}
    allowed["session"] = leaves | {"model", "irnn_cuda"}
    allowed["evaluate"] = allowed["session"] | {"session"}
    allowed["derain"] = allowed["evaluate"] | {"jobs"}
    allowed["export"] = allowed["evaluate"]
    allowed["train"] = allowed["evaluate"] | {"evaluate"}
    for name, known in allowed.items():
        files = [ROOT / f"{name}.py"] if name != "irnn_cuda" else list(ROOT.glob("irnn_cuda/*.py"))
        assert files
        for file in files:
            imported = set()
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(node.module)
            assert {module.split(".")[0] for module in imported} & ours <= known, file
