"""The ONNX file gives what PyTorch gives, at any size, in standard operators alone."""

import sys
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime
import pytest
import torch
from conftest import ROOT

from actions import export
from engine.derainer import Derainer
from model import SPANet
from settings import Settings

DEMO = {"model": "demo", "model_dir": str(ROOT / "model"), "device": "cpu"}


def test_the_demo_as_onnx():
    """One test of all of it: the conversion takes seconds."""
    path = Path("deep/demo.onnx")
    assert export.export(Settings("export", output=str(path), **DEMO)) == 0

    derainer = Derainer.load(ROOT / "model" / "demo", torch.device("cpu"))
    runtime = onnxruntime.InferenceSession(path)
    for shape in [(1, 3, 64, 80), (3, 3, 31, 17), (1, 3, 1, 23), (2, 3, 1, 1)]:
        rainy = torch.rand(shape)
        with torch.inference_mode():
            expected = derainer.net(rainy)
        found = runtime.run(["mask", "clean"], {"rainy": rainy.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            assert np.abs(ours.numpy() - theirs).max() < 1e-4

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert (about["channel_order"], about["direction_attention"]) == ("BGR", "False")
    assert about["step"] == str(derainer.step)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert sum(node.op_type == "Scan" for node in model.graph.node) == 32
    (image,) = model.graph.input
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]
    assert path.stat().st_size < 2 * 2**20


def test_direction_attention_is_exported_too(monkeypatch):
    """With one stage and without blocks, which the test above has: those take seconds."""
    monkeypatch.setattr("model.STAGES", 1)
    torch.manual_seed(0)
    net = SPANet(direction_attention=True).eval().requires_grad_(False)
    monkeypatch.setattr(net, "_blocks", lambda x, *_: x)
    onnx_model = export.convert_network(net)
    runtime = onnxruntime.InferenceSession(onnx_model.SerializeToString())
    assert export.measure_difference(runtime, net) < 1e-4
    assert sum(node.op_type == "Scan" for node in onnx_model.graph.node) == 8


def test_a_wrong_file_is_not_written(run, model, monkeypatch):
    graph = onnx.parser.parse_graph("g (float[N] rainy) => (float[N] mask) { mask = Relu(rainy) }")
    other = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    monkeypatch.setattr(export, "convert_network", lambda _: other)
    monkeypatch.setattr(export, "measure_difference", lambda *_: float("nan"))
    status, _, err = run("-a", "export", "-o", "x.onnx")
    assert status == 2
    assert err.startswith("main.py: x.onnx: not written: nan from the outputs of PyTorch")
    assert not Path("x.onnx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "-o: '': expected the name of an .onnx file"),
        (("-o", "x.pt"), "-o: 'x.pt': expected the name of an .onnx file"),
        (("-o", "x.onnx", "-m", "none"), "model/none: no such checkpoint"),
    ],
)
def test_bad_input_is_one_line(run, model, words, message):
    status, _, err = run("-a", "export", *words)
    assert status == 2
    assert err.startswith(f"main.py: {message}")
    assert err.count("\n") == 1


def test_a_missing_package_is_one_line(run, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "actions.export")
    status, _, err = run("-a", "export", "-o", "x.onnx")
    assert status == 2
    assert "onnxruntime" in err
    assert err.endswith("; expected `pip install -r requirements-onnx.txt`\n")
