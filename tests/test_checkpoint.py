"""Checkpoints: whole or not there, loaded without trust, refused with the reason."""

import math
import os
import pickle
import re
import shlex
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, command, save_run, shell

from engine import checkpoint
from engine.derainer import Derainer
from engine.training_run import TrainingRun
from model import SPANet
from settings import Settings, UserError
from system import files

KEY = "conv_in.0.weight"


def training_run(**values) -> TrainingRun:
    return TrainingRun(Settings("train", device="cpu", **values))


def saved(name: str = "latest", **values) -> Path:
    one = training_run(**values)
    one.step = 7
    save_run(one, name)
    return one.path(name)


def rewrite(path: Path, change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def refusal(name: str = "latest", **values) -> str:
    one = training_run(**values)
    with pytest.raises(UserError) as caught:
        one.resume(one.path(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip_restores_weights_clock_and_optimiser():
    first = training_run(seed=1)
    mask, output = first.net(torch.rand(1, 3, 8, 8))
    (mask.mean() + output.mean()).backward()
    first.optimiser.step()
    first.step = 41
    save_run(first)
    second = training_run(seed=2, allow_changed_settings=True)
    second.resume(second.path("latest"))
    assert second.step == 41
    for key, tensor in first.net.state_dict().items():
        assert torch.equal(tensor, second.net.state_dict()[key])
    a, b = first.optimiser.state_dict()["state"], second.optimiser.state_dict()["state"]
    assert a.keys() == b.keys()
    assert len(a) == 73  # the six tensors of the direction attention are not trained
    assert all(torch.equal(a[i][key], b[i][key]) for i in a for key in a[i])


def test_content_is_what_the_readme_says():
    content = torch.load(saved(), weights_only=True)
    assert set(content) == {
        "net", "clock", "opt", "format", "settings", "best", "data", "init", "loss"
    }  # fmt: skip
    assert content["settings"]["batch_size"] == 16
    assert content["clock"] == 7


def test_permissions_follow_the_umask():
    former = os.umask(0o027)
    try:
        assert stat.S_IMODE(saved().stat().st_mode) == 0o640
    finally:
        os.umask(former)


def test_missing_checkpoint_names_what_is_there():
    saved("step_400")
    assert "model/latest: no such checkpoint; model holds step_400" in refusal()
    assert "nowhere cannot be listed: No such file" in refusal(model_dir="nowhere")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_truncated(share):
    path = saved()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert refusal().startswith("model/latest: not a checkpoint of this network, or damaged: ")


@pytest.mark.parametrize(
    "data", [b"hello", b"\x80\x02}q\x00.", bytes(1000), b"<!DOCTYPE html><html>", b"\x89PNG\r\n"]
)
def test_not_a_checkpoint(data):
    Path("model").mkdir()
    Path("model/latest").write_bytes(data)
    assert "not a checkpoint" in refusal()


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


class Command:
    """One of a module that torch knows to be dangerous, which it tells in other words."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("kind", [Payload, Command])
@pytest.mark.parametrize("how", ["pickle 2", "pickle 4", "torch", "torch 4", "torch_legacy"])
def test_pickle_payload_is_refused_and_does_not_run(how, kind):
    Path("model").mkdir()
    payload = {"net": kind()}
    if how.startswith("pickle"):
        Path("model/latest").write_bytes(pickle.dumps(payload, protocol=int(how[-1])))
    elif how == "torch 4":  # which torch writes where it is told to, and does not read
        torch.save(payload, "model/latest", pickle_protocol=4)
    else:
        torch.save(payload, "model/latest", _use_new_zipfile_serialization=how == "torch")
    assert "holds objects that could run code" in refusal()
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["net"].pop("conv_in.0.weight"), 'Missing key(s) in state_dict: "conv_in.0.w'),
        (lambda c: c["net"].update(extra=torch.zeros(1)), 'Unexpected key(s) in state_dict: "ext'),
        (lambda c: c["net"].update({KEY: torch.zeros(32, 3, 5, 5)}), f"size mismatch for {KEY}"),
        (lambda c: c["net"][KEY].fill_(math.nan), f"{KEY} holds values that are not finite"),
        (lambda c: c["net"].update({KEY: c["net"][KEY].double() * 1e200}), "not finite"),
        (lambda c: c["net"].update({KEY: torch.zeros(32, 3, 3, 3, device="meta")}), KEY),
        (lambda c: c.pop("net"), "Missing key(s) in state_dict"),
        (lambda c: c.update(clock="many"), "'many'"),
        (lambda c: c.update(format=99), "format 99 is newer"),
        (lambda c: c.update(opt={"state": {}, "param_groups": []}), "not enough values"),
        (lambda c: c["opt"]["param_groups"][0]["params"].pop(), "parameter group"),
        (lambda c: c["opt"]["state"][0].update(exp_avg=torch.zeros(3)), "exp_avg of the optim"),
        (lambda c: c["opt"]["state"][0]["exp_avg_sq"].fill_(math.inf), "exp_avg_sq of the op"),
        (lambda c: c["opt"]["state"][0].pop("exp_avg"), "KeyError: 'exp_avg'"),
        (lambda c: c.update(best=3), "TypeError"),
        (lambda c: c.update(best={"psnr": [], "step": 1, "scored": 1, "list": ""}), "TypeError"),
        (lambda c: c.update(best={"psnr": 1.0}), "KeyError: 'step'"),
    ],
)
def test_wrong_content_is_one_line(change, words):
    save_run(stepped())
    rewrite(Path("model/latest"), change)
    message = refusal()
    assert message.startswith("model/latest: ")
    assert words in message


def test_a_flipped_bit_is_refused():
    """By the zip's own checksums; torch would have loaded other weights."""
    path = saved()
    whole = path.read_bytes()
    weights = checkpoint.load(path)["net"]
    random, refused = np.random.default_rng(3), 0
    for _ in range(20):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        try:
            found = checkpoint.load(path)["net"]
        except UserError:
            refused += 1
            continue
        # Between the parts nothing is lost, as in their dates.
        assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert refused > 15
    data = bytearray(whole)
    data[whole.index(weights["SAM1.attention_layer.conv1.bias"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert re.fullmatch(r"model/latest: damaged: the checksum of \S+/data/\d+ .*", refusal())


def stepped() -> TrainingRun:
    """A run after one step of its optimiser."""
    one = training_run()
    mask, output = one.net(torch.rand(1, 3, 8, 8))
    (mask.mean() + output.mean()).backward()
    one.optimiser.step()
    return one


def test_settings_of_a_saved_optimiser_do_not_come_along():
    one = stepped()
    save_run(one)
    change = {"amsgrad": True, "weight_decay": 3.0}
    rewrite(one.path("latest"), lambda c: c["opt"]["param_groups"][0].update(change))
    two = training_run()
    two.resume(two.path("latest"))
    (group,) = two.optimiser.param_groups
    assert (group["amsgrad"], group["weight_decay"]) == (False, 0)
    assert len(two.optimiser.state) == 73


def test_a_list_is_no_checkpoint():
    Path("model").mkdir()
    torch.save([1, 2], "model/latest")
    assert "not a checkpoint of this network" in refusal()


def test_direction_attention_must_agree():
    saved("without")
    saved("with", direction_attention=True)
    assert "expected --no-direction-attention" in refusal("without", direction_attention=True)
    assert "expected --direction-attention" in refusal("with")
    one = training_run(direction_attention=True)
    one.resume(one.path("with"))


def test_keys_of_data_parallel_and_missing_extras_load():
    """A file as the published one: no settings, no format, names of DataParallel."""
    path = saved()
    content = torch.load(path, weights_only=True)
    plain = {key: content[key] for key in ("clock", "opt")}
    plain["net"] = {f"module.{key}": value for key, value in content["net"].items()}
    torch.save(plain, path, _use_new_zipfile_serialization=False)
    one = training_run()
    one.resume(one.path("latest"))
    assert one.step == 7
    assert "expected --no-direction-attention" in refusal(direction_attention=True)


def test_released_checkpoint_loads_with_its_optimiser(shared):
    one = training_run(model_dir=str(shared / "released"))
    one.resume(one.path("latest"))
    assert one.step == 40000
    assert len(one.optimiser.state) == 79
    for weight, state in one.optimiser.state.items():
        assert weight.stride() == state["exp_avg"].stride() == state["exp_avg_sq"].stride()


def test_a_fused_step_after_a_state_of_another_layout_is_that_of_a_plain_one(monkeypatch):
    """Published moments are NCHW, our weights channels_last; a GPU's optimiser is fused."""
    save_run(stepped())

    def to_nchw(content) -> None:
        for state in content["opt"]["state"].values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].contiguous()

    rewrite(Path("model/latest"), to_nchw)
    plain, results = torch.optim.Adam, []
    for fused in (False, True):
        monkeypatch.setattr(
            torch.optim, "Adam", lambda *a, f=fused, **b: plain(*a, **(b | {"fused": f}))
        )
        one = training_run()
        one.resume(one.path("latest"))
        torch.manual_seed(3)
        mask, output = one.net(torch.rand(1, 3, 8, 8))
        (mask.mean() + output.mean()).backward()
        one.optimiser.step()
        results.append(list(one.net.parameters()))
    for weight, expected in zip(results[1], results[0], strict=True):
        assert torch.allclose(weight, expected, rtol=0, atol=1e-6)


def test_full_disk_leaves_the_last_good_one_and_nothing_unfinished():
    good = saved().read_bytes()
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_checkpoint import save_run, training_run\n"
        "from settings import UserError\n"
        "try:\n    save_run(training_run(seed=5))\n"
        "except UserError as error:\n    print(error)\n"
    )
    python = shlex.join([command()[0], "-c", program, str(ROOT / "tests")])
    # A limit on the size of a file stops the write half-way, as a full disk does.
    done = shell(f"export PYTHONPATH={shlex.quote(str(ROOT))}; ulimit -f 600; {python}")
    assert done.stdout.startswith("model/latest: cannot be written: "), done.stderr
    assert Path("model/latest").read_bytes() == good
    assert [path.name for path in Path("model").iterdir()] == ["latest"]


def test_read_only_folder_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    saved()
    monkeypatch.setattr(files, "create_temp_beside", refuse)
    with pytest.raises(UserError, match=r"model/latest: cannot be written: Permission denied"):
        save_run(training_run())


def test_stripping_keeps_the_weights_and_drops_the_optimiser(capsys):
    path = saved()
    assert checkpoint.main([str(path), "model/small"]) == 0
    small = torch.load("model/small", weights_only=True)
    assert set(small) == {"net", "clock", "settings", "format"}
    assert Path("model/small").stat().st_size < 1_400_000
    assert Derainer.load(Path("model/small"), torch.device("cpu")).step == 7
    assert "only weights" in refusal("small")
    assert checkpoint.main(["model/nothing", "model/other"]) == 2
    assert "model/nothing: no such checkpoint" in capsys.readouterr().err
    assert not Path("model/other").exists()


def test_several_become_their_mean(capsys):
    path = saved()
    content = torch.load(path, weights_only=True)
    weights = content["net"]
    for name, factor, step in (("twice", 2, 3), ("none", 0, 5)):
        net = {key: value * factor for key, value in weights.items()}
        checkpoint.save(Path(f"model/{name}"), content | {"net": net, "clock": step})
    one, twice, none = str(path), "model/twice", "model/none"
    assert checkpoint.main([one, twice, twice, none, "model/mean"]) == 0
    mean = torch.load("model/mean", weights_only=True)
    assert set(mean) == {"net", "clock", "settings", "format"}
    assert mean["clock"] == 5  # of the last
    for key, value in weights.items():
        assert mean["net"][key].dtype == value.dtype
        assert torch.allclose(mean["net"][key], value * 1.25)
    checkpoint.save(Path("model/other"), content | {"settings": {"direction_attention": True}})
    odd = dict(weights)
    name, tensor = odd.popitem()
    checkpoint.save(Path("model/odd"), content | {"net": odd | {name: tensor[:1]}})
    for *words, message in (
        (
            one,
            "model/other",
            "x",
            "model/other: is unlike " + one + ": one has --direction-attention",
        ),
        (one, "model/odd", "x", "model/odd: not a checkpoint of this network, or damaged: "),
        (twice, none, one, f"{one}: is there already; expected a new file to write to"),
        (one, "", ".: is there already"),
    ):
        before = path.read_bytes()
        assert checkpoint.main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"engine.checkpoint: {message}")
        assert err.count("\n") == 1
        assert not Path("x").exists()
        assert path.read_bytes() == before


WRAPS = {
    "bare": lambda net: net,
    "no clock": lambda net: {"net": net},
    "state_dict": lambda net: {"state_dict": net, "epoch": 3, "settings": 5},
    "params": lambda net: {"params": net},
    "params_ema": lambda net: {"params": {}, "params_ema": net},
    "compiled": lambda net: {f"module._orig_mod.{key}": net[key] for key in net},
    "scalar": lambda net: {"net": net, "psnr": np.float64(31.5), "epoch": np.int32(7)},
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_weights_saved_in_ordinary_ways_are_taken(wrap):
    net = SPANet().state_dict()
    torch.save(wrap(net), "weights.pth")
    derainer = Derainer.load(Path("weights.pth"), torch.device("cpu"))
    run = TrainingRun(Settings("train", device="cpu"))
    run.load_weights(Path("weights.pth"))
    for key, tensor in net.items():
        assert torch.equal(derainer.net.state_dict()[key], tensor)
        assert torch.equal(run.net.state_dict()[key], tensor)
    assert derainer.step == "unknown"
