"""The way in from Python: plain import, torch.hub, other working folders, RGB in and out."""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, finish

import hubconf
from hubconf import UserError
from media.pictures import to_uint8

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


# A program with modules of its own, whose names are ours, imported before or after our use.
OWN = ("model", "dataset", "settings", "report", "system", "media", "engine", "irnn_cuda")
BESIDE = """
import importlib, sys
import numpy, torch
own = sys.argv[2:]
def check():
    for name in own:
        assert importlib.import_module(name).OWNER == "user", name
first = {first}
if first:
    check()
names, path = set(sys.modules), list(sys.path)
{load}
assert sys.path == path
assert not (set(sys.modules) - names) & set(own)
image = numpy.full((9, 12, 3), 90, numpy.uint8)
clean = derain(image)
assert measure(clean, image, order="RGB")["rgb_psnr"] > 10
check()
assert numpy.array_equal(derain(image), clean)
"""
LOADS = {
    "hub": """
derain = torch.hub.load(sys.argv[1], "derainer", source="local", weights="model/demo", device="cpu")
measure = lambda *a, **b: torch.hub.load(sys.argv[1], "measure", *a, source="local", **b)
""",
    "import": """
sys.path.append(sys.argv[1])
from hubconf import derainer, measure
sys.path.pop()
derain = derainer("model/demo", device="cpu")
""",
}


@pytest.mark.parametrize(("way", "first"), [("hub", False), ("import", True)])
def test_modules_of_the_same_names_stay_apart(tmp_path, way, first):
    for name in OWN:
        (tmp_path / f"{name}.py").write_text("OWNER = 'user'\n")
    (tmp_path / "program.py").write_text(BESIDE.format(first=first, load=LOADS[way]))
    done = subprocess.run(
        [sys.executable, "program.py", str(ROOT), *OWN],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_pictures_too_large_for_the_memory_are_cut_with_a_warning(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    expected = hubconf.derainer("model/demo", device="cpu", tile=128)(image)
    machine = sys.modules[f"{hubconf.PACKAGE}.system.machine"]
    monkeypatch.setattr(machine, "free_memory", lambda: 30 * 2**20)
    derain = hubconf.derainer("model/demo", device="cpu")
    with pytest.warns(UserWarning, match="so in tiles of 128; tiles are an approximation: on a"):
        assert np.array_equal(derain(image), expected)
    with pytest.raises(hubconf.UserError, match="GiB are free; expected a smaller image, or"):
        hubconf.derainer("model/demo", device="cpu", tile=0)(image)


def test_float32_on_the_cpu_whatever_the_defaults_are():
    derain, image = hubconf.derainer("model/demo", device="cpu", tile=64), np.ones((9, 80, 3), "u1")
    expected, weight = derain(image, True), hubconf.spanet("model/demo").conv_in[0].weight
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        state = torch.get_rng_state()
        net = hubconf.spanet("model/demo")
        found = hubconf.derainer("model/demo", device="cpu", tile=64)(image, True)
        assert torch.equal(torch.get_rng_state(), state)
        fresh = hubconf.spanet()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(net.conv_in[0].weight, weight)
    for parameter in (*net.parameters(), *fresh.parameters()):
        assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu")
    assert np.array_equal(found[0], expected[0])
    assert found[1].dtype == np.float32
    assert np.array_equal(found[1], expected[1])


FORKED = """
import multiprocessing, os, sys
import numpy, torch
from torch.utils.data import DataLoader
sys.path.append(sys.argv[1])
from hubconf import derainer
image = numpy.random.default_rng(0).integers(0, 256, (20, 31, 3), numpy.uint8)
derain = derainer("model/demo", device="cpu")
torch.set_num_threads(2)
expected = derain(image)
class Images:
    def __len__(self):
        return 2
    def __getitem__(self, _):
        return derain(image)
def work(_):
    return derain(image)
for batch in DataLoader(Images(), num_workers=1, timeout=60, multiprocessing_context="fork"):
    assert numpy.array_equal(batch[0], expected)
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert numpy.array_equal(pool.map_async(work, [0]).get(60)[0], expected)
assert numpy.array_equal(derain(image), expected)
assert torch.get_num_threads() == 2
print("fine", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_it_works_in_forked_processes_after_a_first_use():
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(ROOT)], capture_output=True, text=True, timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stderr


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
    for given in (
        {"tile": 3},
        {"tile": "all"},
        {"self_ensemble": 3},
        {"precision": "fp8"},
        {"device": "tpu"},
    ):
        with pytest.raises(UserError, match=next(iter(given)).replace("_", "-")):
            hubconf.derainer("model/demo", **given)


def test_kernels_on_disk_belong_to_one_name_of_their_module():
    """Numba imports that module again when it loads them, so two names must not share a file."""
    from irnn_cuda import cpu

    own = importlib.import_module(f"{hubconf.PACKAGE}.irnn_cuda.cpu")
    for module in (own, cpu):
        assert module._scan.py_func.__qualname__ == f"{module.__name__}._scan"
    assert own._scan is not cpu._scan
