"""The command line: every setting an option, bad input one clear line and status 2."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command, finish

import main
from engine.checkpoint import checkpoint_path
from rain import synthetic_rain
from settings import ACTIONS, Settings, UserError
from system.commandline import parse, short_help

# Run where help is asked for: what was imported to give it.
IMPORTED = """
import json, sys
before = set(sys.modules)
import main
try:
    status = main.main(sys.argv[1:])
except SystemExit as done:
    status = done.code
print(json.dumps([status, sorted(set(sys.modules) - before)]), file=sys.stderr)
"""


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse([*words, "-h"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def flag(field: dataclasses.Field) -> str:
    return "--" + field.name.replace("_", "-")


def test_every_setting_is_an_option_with_help(capsys):
    text = help_of(capsys)
    for f in dataclasses.fields(Settings):
        assert flag(f) in text
        assert f.metadata["help"]
        assert f.metadata["serves"]
        assert set(f.metadata["serves"]) <= set(ACTIONS)
    modules = {path.stem for path in (ROOT / "actions").glob("*.py")}
    assert set(ACTIONS) <= modules


def test_help_groups_options_by_action(capsys):
    parts = help_of(capsys).split("\n-a ")
    common, own = parts[0], {part.split(":")[0]: part for part in parts[1:]}
    assert "several actions" in common
    assert list(own) == list(ACTIONS)
    for action, part in own.items():
        assert ACTIONS[action].purpose in part
    for f in dataclasses.fields(Settings):
        serves, shown = f.metadata["serves"], f"\n  {flag(f)} "
        if f.name in ("action", "model", "input", "output"):
            assert f", {flag(f)} " in common
        elif len(serves) > 1:
            assert shown in common
            assert f"[{', '.join(serves)}]" in " ".join(common.split())
        else:
            assert shown.rstrip() in own[serves[0]]


@pytest.mark.parametrize("action", ACTIONS)
def test_help_of_an_action_shows_its_options_alone(capsys, action):
    text = help_of(capsys, "-a", action)
    listed = {
        word.rstrip(",") for line in re.findall("^  -.*", text, re.M) for word in line.split()
    }
    shown = {f.name for f in dataclasses.fields(Settings) if flag(f) in listed}
    served = {f.name for f in dataclasses.fields(Settings) if action in f.metadata["serves"]}
    assert shown == served
    assert ("--input INPUT [INPUT ...]" in text) == (action == "derain")
    assert ("--train-list LIST [LIST ...]" in text) == (action == "train")
    assert text.startswith(f"usage: python main.py -a {action} ")
    example = f"python main.py -a {action} {ACTIONS[action].example}"
    assert text.endswith(f"example:\n  {example}\n")
    assert parse(example.split()[2:]).action == action


@pytest.mark.parametrize("words", [[], ["-h"], ["-a", "train", "-h"], ["-a", "tset"]])
def test_help_and_mistakes_import_nothing_but_pythons_own(words):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    status, names = json.loads(done.stderr.splitlines()[-1])
    assert status == (0 if "-h" in words else 2)
    others = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"main", "settings", "system"}


def test_no_word_at_all_gets_the_short_help(run):
    status, out, err = run()
    assert (status, err) == (2, "")
    assert out == short_help() + "\n"
    assert len(out.splitlines()) < 30
    for action, guide in ACTIONS.items():
        assert f"  {action:8}{guide.purpose}\n" in out
    examples = [line for line in out.splitlines() if line.startswith("  python main.py -a")]
    assert len(examples) == 5  # and the one that shows an action's options
    assert "README.md" in out


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
    settings = parse(["-a", "train", "--lr", "1e-4", "--direction-attention", "--seed=3"])
    assert (settings.lr, settings.direction_attention, settings.seed) == (1e-4, True, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lr = 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--lr 0.5",
            "-a/--action: expected one of train, test, score, derain, web, export, clean, pairs, "
            "check, lists\n",
        ),
        ("-h -a tset", "--action: 'tset' is not one of train"),
        ("-a tset", "--action: 'tset' is not one of train, test, score, derain, web, export"),
        ("-a train --batchsize 8", "unknown option --batchsize; did you mean --batch-size?"),
        ("--batch_size=8 -a train", "unknown option --batch_size; did you mean --batch-size?"),
        ("-a train --batch 8", "unknown option --batch; did you mean --batch-size?"),
        ("-a train --foo", "unknown option --foo; -h lists the options\n"),
        ("-a train stray", "unknown argument 'stray'; -h lists the options\n"),
        ("-a train --batch-size 0", "--batch-size: 0 is out of range; expected a number from 1"),
        ("-a train --batch-size 2.5", "--batch-size: invalid int value: '2.5'"),
        ("-a train --batch-size", "--batch-size: expected one argument"),
        ("-a train --train-list", "--train-list: expected at least one argument"),
        ("-a train --train-weights 0", "--train-weights: 0 is out of range; expected a number"),
        (
            "-a train --train-list a b c --train-weights 3 1",
            "--train-weights: 2 for 3 lists; expected one for each list\n",
        ),
        ("-a check --train-list a b", "--train-list: several; expected one for -a check\n"),
        ("-a train --lr fast", "--lr: invalid float value: 'fast'"),
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
        ("-a test --test-list caf\udce9.txt", "--test-list: 'caf\\udce9.txt' is not UTF-8 text"),
        ("-a train -m ..", "--model: '..' is not the name or path of a checkpoint\n"),
        ("-a train -m .", "--model: '.' is not the name or path of a checkpoint"),
        ("-a train -m=", "--model: '' is not the name or path of a checkpoint"),
        ("-a train -m model/", "--model: 'model/' is not the name or path of a checkpoint"),
        ("-a train -m ../..", "--model: '../..' is not the name or path of a checkpoint"),
        ("-a train -m a/\0b", "--model: 'a/\\x00b' is not the name or path of a checkpoint"),
        ("-a test --lr 0.5", "--lr: is an option of -a train; this is -a test\n"),
        ("-a test --lr 0.0005", "--lr: is an option of -a train; this is -a test\n"),  # its default
        ("-a test --no-compile", "--compile: is an option of -a train; this is -a test\n"),
        (
            "-a train -i x",
            "-i/--input: is an option of -a score, derain, clean, pairs, lists; this is -a train\n",
        ),
        ("-a clean -m x", "-m/--model: is an option of -a train, test, derain, web, export; this"),
        (
            "-a derain --patch-size 9",
            "--patch-size: is an option of -a train, pairs, check; this is -a derain\n",
        ),
        (
            "-a test --direction-attention",
            "--direction-attention: is an option of -a train; this is -a test\n",
        ),
    ],
)
def test_bad_options_are_one_line(run, words, message):
    status, out, err = run(*words.split())
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "-a train --train-list a b --train-list c",
            r"--train-list: given twice, as \['a', 'b'\] and \['c'\]; expected once",
        ),
        ("-a test -m a -m b", "--model: given twice, as 'a' and 'b'; expected once"),
        ("-a test -m a --model=a", "--model: given twice, as 'a' and 'a'; expected once"),
        ("-a train -a test", "--action: given twice, as 'train' and 'test'; expected once"),
        ("-a train --lr 1 --lr 2", "--lr: given twice, as 1.0 and 2.0; expected once"),
        ("-a train --flip --no-flip", "--flip: given twice, as True and False; expected once"),
    ],
)
def test_an_option_is_given_once(capsys, words, message):
    with pytest.raises(UserError, match=message):
        parse(words.split())
    # Nor do other programs take the last in silence: their options have defaults.
    assert synthetic_rain.main(["train", "-o", "a", "--seed", "1", "--seed", "2"]) == 2
    assert "--seed: given twice, as 1 and 2; expected once" in capsys.readouterr().err


def test_settings_are_checked_whoever_sets_them():
    with pytest.raises(UserError, match="--num-steps: expected int, got '9'"):
        Settings("train", num_steps="9")
    with pytest.raises(UserError, match="--seed: -1 is out of range"):
        Settings("train", seed=-1)


def test_settings_made_in_python_may_hold_those_of_other_actions():
    assert Settings("test", lr=0.5).lr == 0.5


def test_every_option_is_taken_by_the_actions_it_serves():
    values = {"--self-ensemble": "2", "--tile": "64", "--device": "cpu", "--precision": "bf16"}
    values |= {"--crop": "native", "--schedule": "cosine", "--ema": "0.9"}
    values["--side-by-side"], values["--val-protocol"] = "rainy-left", "y"
    values["--protocol"] = "y"
    values["--config"] = "empty.toml"
    Path("empty.toml").touch()
    for f in dataclasses.fields(Settings)[1:]:
        words = [flag(f)] if isinstance(f.default, bool) else [flag(f), values.get(flag(f), "1")]
        for action in ACTIONS:
            if action in f.metadata["serves"]:
                assert parse(["-a", action, *words]).action == action
            else:
                message = f"{flag(f)}: is an option of .*; this is -a {action}"
                with pytest.raises(UserError, match=message):
                    parse(["-a", action, *words])


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("demo", "folder/demo"),
        ("..demo", "folder/..demo"),
        ("model/demo", "model/demo"),
        ("./demo", "demo"),
        ("../demo", "../demo"),
        ("/tmp/demo", "/tmp/demo"),
    ],
)
def test_a_checkpoint_is_a_name_in_the_model_folder_or_a_path(model, path):
    assert checkpoint_path(parse(["-a", "test", "-m", model, "--model-dir", "folder"])) == Path(
        path
    )


def test_a_checkpoint_on_windows(monkeypatch):
    monkeypatch.setattr(os, "sep", "\\")
    monkeypatch.setattr(os, "altsep", "/")
    for model in ("model\\demo", "model/demo"):
        assert checkpoint_path(Settings("test", model=model)) == Path(model)
    assert checkpoint_path(Settings("test", model="demo")) == Path("model") / "demo"


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
        "Train_Dataset_README.md and Test_Dataset_README.md describe lists\n",
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
    for way in ("`make weights`", "-m published", "-m demo", "-a train"):
        assert way in err
    assert not Path("results").exists()


def test_result_folder_that_is_a_file(run, pairs):
    run(
        *("-a", "train", "--train-list", pairs, "--num-steps", 1, "--device", "cpu"),
        *("--patch-size", 8, "--batch-size", 1, "--num-workers", 0),
    )
    Path("results").write_text("in the way")
    status, _, err = run("-a", "test", "--test-list", pairs, "--device", "cpu")
    assert (status, err) == (2, "main.py: results: cannot be written: File exists\n")


def test_ctrl_c_while_testing_is_no_traceback(run, monkeypatch, pairs):
    def interrupted(session):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "run", interrupted)
    status, _, err = run("-a", "test", "--device", "cpu")
    assert status == 130
    assert "Traceback" not in err


def test_the_program_itself_exits_with_2():
    done = finish(command("-a", "train"))
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
