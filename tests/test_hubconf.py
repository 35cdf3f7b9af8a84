"""The way in from Python: plain import, torch.hub, other working folders, RGB in and out."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, finish

import hubconf
from media.pictures import to_uint8
from settings import UserError

PROGRAM = """
import json, sys
import numpy, torch
derain = torch.hub.load(sys.argv[1], "derainer", source="local", weights="model/demo", device="cpu")
net = torch.hub.load(sys.argv[1], "spanet", source="local", weights="model/demo")
rainy = numpy.random.default_rng(0).integers(0, 256, (20, 31, 3), numpy.uint8)
clean, mask = derain(rainy, return_mask=True)
print(json.dumps([clean.tolist(), float(mask.mean()), sum(p.numel() for p in net.parameters())]))
"""


def test_torch_hub_in_a_process_started_elsewhere(tmp_path):
    done = finish([sys.executable, "-c", PROGRAM, str(ROOT)])
    assert done.returncode == 0, done.stderr
    pixels, attention, parameters = json.loads(done.stdout.splitlines()[-1])
    assert parameters == 283_716
    rainy = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    clean, mask = hubconf.derainer("model/demo", device="cpu")(rainy, return_mask=True)
    assert clean.tolist() == pixels
    assert mask.mean() == pytest.approx(attention)


def test_the_function_takes_and_returns_rgb(rainy, tmp_path):
    rgb = rainy[..., ::-1]  # and not contiguous
    before = rgb.copy()
    derain = hubconf.derainer(ROOT / "model" / "demo", device="cpu")
    clean, mask = derain(rgb, return_mask=True)
    assert (clean.dtype, clean.shape) == (np.uint8, rgb.shape)
    assert (mask.dtype, mask.shape) == (np.float32, rgb.shape[:2])
    assert 0 <= mask.min() < mask.max() <= 1
    x = torch.from_numpy(rainy).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        expected = hubconf.spanet("model/demo")(x)[1][0].permute(1, 2, 0).numpy()
    assert np.array_equal(clean[..., ::-1], to_uint8(expected))
    assert np.array_equal(derain(rgb), clean)
    assert np.array_equal(rgb, before)


def test_weights_are_looked_for_in_the_working_folder_first(model):
    saved = torch.load("model/latest", weights_only=True)["net"]["conv_in.0.weight"]
    assert torch.equal(hubconf.spanet("model/latest").conv_in[0].weight, saved)
    with pytest.raises(UserError, match=r"model/none: no such checkpoint \(looked for model/none "):
        hubconf.spanet("model/none")


def test_the_process_of_the_caller_is_left_alone(monkeypatch, rainy):
    monkeypatch.setenv("WORLD_SIZE", "2")  # of a run under torchrun
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch, "set_num_threads", None)  # not to be called
    hubconf.derainer("model/demo", device="cpu")(rainy)
    assert torch.backends.cudnn.allow_tf32
    assert not torch.distributed.is_initialized()


def test_a_module_of_the_same_name_is_told(tmp_path):
    (tmp_path / "settings.py").write_text("")
    program = f"import settings, sys; sys.path.insert(0, {str(ROOT)!r}); import hubconf"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: SPANet's module 'settings' cannot be imported beside ")
    assert str(tmp_path / "settings.py") in last


def test_attention_is_that_of_the_argument_or_of_the_file():
    assert hubconf.spanet(direction_attention=True).SAM1.direction_attention
    assert not hubconf.spanet().SAM1.direction_attention
    assert not hubconf.spanet("model/demo", direction_attention=True).SAM1.direction_attention


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([[0]], TypeError, "got list"),
        (np.zeros((4, 4), np.uint8), ValueError, r"got \(4, 4\) uint8"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"got \(4, 4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), ValueError, "float32"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \(0, 4, 3\) uint8"),
    ],
)
def test_other_arrays_are_named(image, error, message):
    with pytest.raises(error, match=message):
        hubconf.derainer("model/demo", device="cpu")(image)


def test_bad_arguments_are_named():
    for given in ({"tile": 3}, {"self_ensemble": 3}, {"precision": "fp8"}, {"device": "tpu"}):
        with pytest.raises(UserError, match=next(iter(given)).replace("_", "-")):
            hubconf.derainer("model/demo", **given)
