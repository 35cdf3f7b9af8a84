"""Checkpoints that are damaged, or hold what none does: refused in one line, before any use."""

import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoint import refusal, rewrite, saved, training_run

from engine import checkpoint
from settings import UserError

KEY, SMALL = "conv_in.0.weight", torch.zeros(32, 3, 3, 3)


def test_a_flipped_bit_is_refused():
    """Its place is told by the zip's own checksums; torch would have loaded other weights."""
    path = saved()
    whole = path.read_bytes()
    weights = training_run().load_weights(path)["net"]
    random, refused = np.random.default_rng(3), 0
    for _ in range(60):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        try:
            found = checkpoint.load(path)["net"]
        except UserError:
            refused += 1
            continue
        # In what lies between the parts, such as their dates, nothing is lost.
        assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert refused > 50
    data = bytearray(whole)
    data[whole.index(weights["SAM1.attention_layer.conv1.bias"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert re.fullmatch(r"model/latest: damaged: \S+/data/\d+ in it does not have .*", refusal())


def test_parts_that_claim_more_than_the_file_are_not_unpacked():
    path = saved()
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, bytes(2**24) if name.endswith("/data/0") else data)
    message = refusal()
    assert re.fullmatch(r"model/latest: not a checkpoint: its parts claim \d+ bytes, .*", message)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, at kinds of tensors that go
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("net"),
        lambda c: c.update(net={"a": 3}),
        lambda c: c.update(clock="many"),
        lambda c: c.pop("clock"),
        lambda c: c.update(format=99),
        lambda c: c.update(opt={"state": {}, "param_groups": []}),
        lambda c: c.update(opt=[1]),
        lambda c: c["opt"]["param_groups"][0]["params"].pop(),
        lambda c: c["net"].update({"conv_in.0.weight": torch.zeros(32, 3, 3, 3).to_sparse()}),
        lambda c: c["net"].update({"conv_in.0.weight": torch.zeros(32, 3, 3, 3, device="meta")}),
        lambda c: c["net"].update({"conv_in.0.weight": torch.zeros(32, 3, 3, 3).cfloat()}),
        lambda c: c.update(rng=3),
        lambda c: c.update(rng={"torch": torch.zeros(3)}),
        lambda c: c.pop("opt"),
        lambda c: c["net"].update({KEY: torch.zeros(32, 3, 3, 3).to(torch.float8_e4m3fn)}),
        lambda c: c["net"].update({KEY: torch.nested.nested_tensor([torch.zeros(3)])}),
        lambda c: c["net"].update({KEY: torch.quantize_per_tensor(SMALL, 0.1, 0, torch.qint8)}),
        lambda c: c["net"].update({KEY: torch.full((32, 3, 3, 3), 1e200, dtype=torch.float64)}),
        lambda c: c["net"].update({10**5000: SMALL}),
        lambda c: c["net"].update({"x" * 10**6 + "\x1b": SMALL}),
        lambda c: c.update(clock=True),
        lambda c: c.update(clock=2**63),
        lambda c: c.update(clock=10**5000),
        lambda c: c.update(clock=torch.tensor(3)),
        lambda c: c.update(format=True),
        lambda c: c.update(format=10**5000),
        lambda c: c.update(settings=3),
        lambda c: c["settings"].update(lr=torch.ones(2)),
        lambda c: c["settings"].update(seed=10**5000),
        lambda c: c["settings"].update(direction_attention=torch.ones(2)),
        lambda c: c["settings"].update(direction_attention="no"),
        lambda c: c.update(data=torch.ones(2)),
        lambda c: c.update(run=torch.ones(2)),
        lambda c: c.update(run="x" * 1000),
        lambda c: c.update(best=torch.ones(2)),
        lambda c: c.update(best={"psnr": 1.0, "step": True, "scored": 3, "list": ""}),
        lambda c: c.update(best={"psnr": 1.0, "step": 3, "scored": 2**63, "list": ""}),
        lambda c: c.update(rng={"torch": torch.zeros(3, device="meta", dtype=torch.uint8)}),
        lambda c: c.update(rng=torch.ones(2)),
        lambda c: c.update(rng="torch"),
    ],
)
def test_damaged_content_is_refused(change):
    rewrite(saved(), change)
    message = refusal()
    assert message.startswith("model/latest: ")
    assert len(message) <= 300
    assert message.isprintable()


@pytest.fixture(scope="module")
def after_a_step(tmp_path_factory) -> bytes:
    """A checkpoint whose optimiser has moments for every parameter."""
    one = training_run(model_dir=str(tmp_path_factory.mktemp("step")))
    for parameter in one.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one.optimiser.step()
    one.save("latest")
    return one.path("latest").read_bytes()


def rewritten(data: bytes, change) -> None:
    Path("model").mkdir()
    Path("model/latest").write_bytes(data)
    rewrite(Path("model/latest"), change)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1),
        ("step", True),
        ("step", 2**63),
        ("step", 1.5),
        ("step", torch.tensor(math.nan)),
        ("step", torch.tensor([1.0, 2.0])),
        ("step", torch.tensor(1.0, device="meta")),
        ("exp_avg", 3),
        ("exp_avg", torch.zeros(1).expand(32, 3, 3, 3)),
        ("exp_avg", torch.zeros(32, 3, 3, 3).to(torch.float8_e4m3fn)),
        ("exp_avg", torch.zeros(32, 3, 3, 3).to_sparse()),
        ("exp_avg", torch.zeros(32, 3, 3, 3, device="meta")),
        ("exp_avg", torch.full((32, 3, 3, 3), 1e200, dtype=torch.float64)),
        ("exp_avg_sq", torch.full((32, 3, 3, 3), -1.0)),
        ("exp_avg_sq", torch.zeros(3)),
    ],
)
def test_a_state_of_the_optimiser_that_cannot_be_is_refused(after_a_step, key, value):
    rewritten(after_a_step, lambda c: c["opt"]["state"][0].update({key: value}))
    assert "its optimiser state is not that of this network" in refusal()


def test_moments_of_other_parameters_are_refused(after_a_step):
    rewritten(after_a_step, lambda c: c["opt"]["state"].update({500: c["opt"]["state"][0]}))
    assert "of other parameters" in refusal()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_moments_that_are_not_finite_are_refused(after_a_step, value):
    rewritten(after_a_step, lambda c: c["opt"]["state"][0]["exp_avg"].fill_(value))
    assert "its optimiser state is not that of this network" in refusal()
