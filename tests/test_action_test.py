"""Testing: results, metrics, names of results, lists without ground truth, released figures."""

import csv
import hashlib
import json
import math
import os
import shlex
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import command, finish, save_run, shell, write_pairs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import events

from engine import checkpoint
from engine.derainer import Derainer
from engine.training_run import TrainingRun
from media.pictures import to_uint8
from report.metrics import PROTOCOLS, measure
from report.tables import Result, print_worst
from settings import Settings
from system.progress import warn


def rows() -> list[dict[str, str]]:
    with open("results/metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tree(folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.*"))


def test_pairs_are_scored_and_written(run, pairs, model):
    status, out, err = run("-a", "test", "-m", "latest", "--test-list", pairs, "--device", "cpu")
    assert (status, err) == (0, "")
    expected = [f"{kind}/pair{i}.png" for kind in ("compare", "derained", "mask") for i in range(5)]
    kinds = ("clean.js", "derained.js", "mask.js", "rainy.js", "thumb.jpg")
    expected += [f"index_files/{i:06d}-{kind}" for kind in kinds for i in range(5)]
    assert tree("results") == sorted([*expected, "index.html", "metrics.csv", "summary.json"])

    found = rows()
    assert [row["name"] for row in found] == [f"pair{i}" for i in range(5)]
    assert (found[1]["width"], found[1]["height"]) == ("31", "19")
    derainer = Derainer.load(Path("model/latest"), torch.device("cpu"))
    for row in found:
        rainy, clean = cv2.imread(row["rainy"]), cv2.imread(row["clean"])
        output = derainer.derain(rainy).float_image
        assert output.shape == rainy.shape
        assert np.array_equal(cv2.imread(f"results/derained/{row['name']}.png"), to_uint8(output))
        assert cv2.imread(f"results/mask/{row['name']}.png").shape == rainy.shape
        strip = cv2.imread(f"results/compare/{row['name']}.png")
        assert strip.shape == (rainy.shape[0], 4 * rainy.shape[1] + 3 * 4, 3)
        assert np.array_equal(strip[:, : rainy.shape[1]], rainy)
        for side, image in (("output", output), ("rainy", rainy)):
            for name, value in measure(image, clean, order="BGR").items():
                assert float(row[f"{side}_{name}"]) == pytest.approx(value, abs=1e-9)

    summary = json.loads(Path("results/summary.json").read_text())
    assert (summary["images"], summary["step"], summary["device"]) == (5, 4, "cpu")
    assert summary["sha256"] == hashlib.sha256(Path("model/latest").read_bytes()).hexdigest()
    for name, value in summary["means"].items():
        assert value == pytest.approx(np.mean([float(row[name]) for row in found]))
    psnr, ssim = (summary["means"][f"output_released_{m}"] for m in ("psnr", "ssim"))
    last = f"PSNR {psnr:.4f}  SSIM {ssim:.4f}  (released protocol, 5 images)"
    lines = out.rstrip().splitlines()
    assert lines[-1] == last
    after, before = (
        {row["name"]: float(row[f"{side}_released_psnr"]) for row in found}
        for side in ("output", "rainy")
    )
    lowest = min(after, key=after.get)
    assert f"lowest PSNR: {lowest}, {after[lowest]:.4f} dB" in lines
    lost = {name: before[name] - after[name] for name in after}
    worst = max(lost, key=lost.get)  # there is one: the network is hardly trained
    losers = sum(loss >= 5e-5 for loss in lost.values())
    loss = f"{worst}, {lost[worst]:.4f} dB; {losers} of 5 lose"
    assert f"largest loss against the rainy image: {loss}" in lines
    assert "are equal" not in out


def test_the_events_show_means_gains_and_the_ends_of_the_list(run, pairs, model):
    assert run("-a", "test", "--test-list", pairs, "--device", "cpu")[0] == 0
    found, means = rows(), json.loads(Path("results/summary.json").read_text())["means"]
    logged = events("logdir/test_derain")
    for protocol in PROTOCOLS:
        for measure_name in ("psnr", "ssim"):
            for column, image in (("output", "derained"), ("rainy", "rainy")):
                mean = means[f"{column}_{protocol}_{measure_name}"]
                curve = logged.pop(f"{protocol}/{image}_{measure_name}")
                assert curve == {4: pytest.approx(mean, rel=1e-6)}
    columns = {name: (f"output_{name}_psnr", f"rainy_{name}_psnr") for name in PROTOCOLS}
    gains = {
        protocol: {row["name"]: float(row[after]) - float(row[before]) for row in found}
        for protocol, (after, before) in columns.items()
    }
    reader = EventAccumulator("logdir/test_derain").Reload()
    for protocol in PROTOCOLS:
        (event,) = reader.Histograms(f"gain/{protocol}")
        values = list(gains[protocol].values())
        assert (event.step, event.histogram_value.num) == (4, 5)
        assert event.histogram_value.min == pytest.approx(min(values))
        assert event.histogram_value.sum == pytest.approx(sum(values))
        assert sum(event.histogram_value.bucket) == 5
        logged.pop(f"gain/{protocol}")
    ranked = sorted(gains["released"], key=gains["released"].get)
    names = [f"worst/{rank}_{name}" for rank, name in enumerate(ranked[:3], 1)]
    names += [f"best/{rank}_{name}" for rank, name in enumerate(ranked[:1:-1], 1)]
    assert sorted(logged) == sorted(names)
    shown = cv2.imdecode(np.frombuffer(logged[names[0]][4], np.uint8), 1)
    assert np.array_equal(shown, cv2.imread(f"results/compare/{ranked[0]}.png"))


def test_the_digest_is_of_the_weights_that_were_loaded(model, monkeypatch):
    """A training run replaces `latest` while it is read."""
    path, load_weights = Path("model/latest"), checkpoint.load_weights
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def replace_and_load(*arguments):
        path.write_bytes(b"the next step's")
        load_weights(*arguments)

    monkeypatch.setattr(checkpoint, "load_weights", replace_and_load)
    derainer = Derainer.load(path, torch.device("cpu"))
    assert derainer.digest == digest
    assert derainer.describe_weights().endswith(f"SHA-256 {digest[:16]}")


def test_released_figures(run, shared):
    status, out, _ = run(
        *("-a", "test", "-m", "latest", "--device", "cpu", "--model-dir", shared / "released"),
        *("--test-list", shared / "rain" / "spa_test.txt"),
    )
    assert status == 0
    assert out.rstrip().endswith("(released protocol, 1 image)")
    (row,) = rows()
    assert float(row["output_released_psnr"]) == pytest.approx(37.3429, abs=2e-4)
    assert float(row["output_released_ssim"]) == pytest.approx(0.9878, abs=2e-4)
    assert float(row["rainy_released_psnr"]) == pytest.approx(22.4140, abs=2e-4)
    assert float(row["rainy_released_ssim"]) == pytest.approx(0.8672, abs=2e-4)


def test_list_without_truth_gives_pictures_only(run, pairs, model):
    names = [f"rain/pair{i}.png" for i in range(3)]
    (pairs.parent / "rainy.txt").write_text("\n".join(names))
    run("-a", "test", "--test-list", pairs, "--device", "cpu")  # whose metrics must not stay
    status, out, err = run(
        "-a", "test", "--test-list", pairs.parent / "rainy.txt", "--device", "cpu"
    )
    assert (status, err) == (0, "")
    assert "no clean images: pictures only, no metrics" in out
    assert "PSNR" not in out
    assert not Path("results/metrics.csv").exists()
    assert json.loads(Path("results/summary.json").read_text())["means"] == {}
    width = cv2.imread("results/derained/pair0.png").shape[1]
    assert cv2.imread("results/compare/pair0.png").shape[1] == 3 * width + 2 * 4


def test_one_pixel_and_equal_images(run, model):
    for name in ("dot", "line"):
        cv2.imwrite(f"{name}.png", np.full((1, 1 if name == "dot" else 9, 3), 7, np.uint8))
    Path("list.txt").write_text("dot.png dot.png\nline.png line.png\n")
    status, out, err = run("-a", "test", "--test-list", "list.txt", "--device", "cpu")
    assert (status, err) == (0, "")
    assert out.rstrip().endswith("SSIM nan  (released protocol, 2 images)")
    assert "loss" not in out  # against an infinite PSNR
    first, second = rows()
    low = min(first, second, key=lambda row: float(row["output_released_psnr"]))
    least = f"{low['name']}, {float(low['output_released_psnr']):.4f} dB"
    reason = (
        "the rainy and clean images are equal in 2 of 2 pairs: there PSNR shows what was changed"
    )
    assert f"{reason}, most in {least}" in out.splitlines()
    assert first["rainy_released_psnr"] == "inf"
    assert first["output_released_ssim"] == ""
    means = json.loads(Path("results/summary.json").read_text())["means"]
    assert means["rainy_released_psnr"] == "inf"
    assert means["output_released_ssim"] == "nan"
    assert isinstance(means["output_released_psnr"], float)


def test_nothing_is_written_outside_the_result_folder(run, model, tmp_path):
    outside = tmp_path / "elsewhere" / "deep"
    outside.mkdir(parents=True)
    image = np.full((9, 9, 3), 90, np.uint8)
    for name in ("..png", "-rf.png", "a b.png"):
        cv2.imwrite(str(outside / name), image)
    Path("list.txt").write_text(
        f"{outside}/..png\t\nelsewhere/deep/../deep/-rf.png\t\n{outside}/a b.png\t\n"
    )
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    result = tmp_path / "out" / "results"
    status, _, err = run(
        *("-a", "test", "--test-list", "list.txt", "--device", "cpu"),
        *("--result-dir", result, "--log-dir", result / "log"),
    )
    assert (status, err) == (0, "")
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert len([path for path in new if path.suffix == ".png"]) == 9
    assert all(path.is_relative_to(result) for path in new)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_told_and_the_others_scored(pairs, model, workers):
    (pairs.parent / "rain" / "pair2.png").write_bytes(b"\x89PNG cut")
    late = pairs.parent / "clean" / "pair3.png"  # whose header is in order
    late.write_bytes(late.read_bytes()[:-20])
    # In a process of its own: workers left alone would keep it from ending.
    line = command("-a", "test", "--test-list", pairs, "--device", "cpu", "--num-workers", workers)
    done = finish(line)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert "list.txt:3: " in first
    assert "pair2.png: not an image that can be read" in first
    assert "list.txt:4: " in second
    assert "clean/pair3.png: not an image that can be read" in second
    assert [row["name"] for row in rows()] == ["pair0", "pair1", "pair4"]
    assert done.stdout.endswith("(released protocol, 3 of 5 images)\n")
    summary = json.loads(Path("results/summary.json").read_text())
    assert (summary["images"], summary["images_listed"]) == (3, 5)
    assert ": 3 of 5 images" in Path("results/index.html").read_text()
    found = summary["means"]["output_rgb_psnr"]
    assert found == pytest.approx(np.mean([float(row["output_rgb_psnr"]) for row in rows()]))


def test_headers_are_looked_at_before_the_first_image_is_derained(run, pairs, model, monkeypatch):
    """Without one good pair nothing is derained, nor is an earlier result touched."""
    run("-a", "test", "--test-list", pairs, "--device", "cpu")
    lines = pairs.read_text().splitlines()
    wrong = lines[1].split()[0] + " " + lines[0].split()[1]
    pairs.write_text(f"{wrong}\n{lines[0]}\n")
    events, derain = [], Derainer.derain
    monkeypatch.setattr("engine.pairs.warn", events.append)
    monkeypatch.setattr(Derainer, "derain", lambda *a: events.append("derained") or derain(*a))
    assert run("-a", "test", "--test-list", pairs, "--device", "cpu")[0] == 2
    assert "list.txt:1: the images of a pair differ in size" in events[0]
    assert (events[1:], len(rows())) == (["derained"], 1)
    monkeypatch.setattr("engine.pairs.warn", warn)
    pairs.write_text(f"{wrong}\n{wrong}\n")
    before = Path("results/summary.json").read_text()
    status, out, err = run("-a", "test", "--test-list", pairs, "--device", "cpu")
    assert (status, out, err.count("\n")) == (2, "", 3)
    assert err.endswith("none of the 2 images of the list can be used\n")
    assert Path("results/summary.json").read_text() == before


def test_results_that_cannot_be_written_are_one_line(tmp_path, model):
    path = write_pairs(tmp_path / "data", [(64, 64)])
    run = command("-a", "test", "--test-list", path, "--device", "cpu")
    done = shell(f"ulimit -f 1; exec {shlex.join(run)}")
    assert done.returncode == 2
    assert done.stderr.startswith("main.py: results/")
    assert done.stderr.endswith(".png: cannot be written: File too large\n")
    assert done.stderr.count("\n") == 1
    assert tree("results") == []  # and no table without a row


def test_out_of_memory_is_one_line(run, pairs, model, monkeypatch):
    def fail(self, image):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("model.SPANet.forward", fail)
    status, _, err = run("-a", "test", "--test-list", pairs, "--device", "cpu")
    assert status == 2
    assert ".txt:1: " in err
    assert "pair0.png: 19x19 pixels need about " in err
    assert err.endswith(" are free; expected a smaller image\n")


def test_results_do_not_depend_on_the_other_images_or_workers(run, tmp_path, model):
    first = write_pairs(tmp_path / "a", [(20, 24), (33, 17)])
    second = write_pairs(tmp_path / "b", [(20, 24)])
    run("-a", "test", "--test-list", first, "--device", "cpu", "--num-workers", 2)
    expected = rows()[0]
    run("-a", "test", "--test-list", second, "--device", "cpu", "--num-workers", 0)
    (found,) = rows()
    keys = [key for key in found if key.startswith(("output_", "rainy_"))]
    assert [found[key] for key in keys] == [expected[key] for key in keys]


def test_a_constant_attention_map_is_told(run, pairs, model):
    cv2.imwrite("pixel.png", np.zeros((1, 1, 3), np.uint8))  # any map of it is constant
    Path("pixel.txt").write_text("pixel.png\n")
    content = torch.load("model/latest", weights_only=True)
    weight = content["net"]["SAM1.conv_out.weight"]
    for name, value in (("constant", 0.0), ("saturated", -1e4)):
        weight.fill_(value)
        torch.save(content, f"model/{name}")
    names = [line.split()[1] for line in pairs.read_text().splitlines()]
    clean = pairs.parent / "clean.txt"
    clean.write_text("".join(f"{name} {name}\n" for name in names))
    for name, images, is_warned in (
        ("constant", pairs, True),
        ("constant", clean, False),
        ("constant", "pixel.txt", False),
        ("saturated", pairs, True),
        ("latest", pairs, False),
    ):
        status, _, err = run("-a", "test", "-m", name, "--test-list", images, "--device", "cpu")
        assert status == 0
        expected = f"main.py: warning: the attention map of model/{name} has one value everywhere"
        assert err.startswith(expected) == is_warned
        assert err.count("\n") == is_warned


def test_derain_tells_of_a_constant_attention_map_too(run, pairs, model):
    content = torch.load("model/latest", weights_only=True)
    content["net"]["SAM1.conv_out.weight"].zero_()
    torch.save(content, "model/dead")
    for name in ("dead", "latest"):
        words = "-m", name, "-i", pairs.parent / "rain", "-o", name, "--device", "cpu"
        status, _, err = run("-a", "derain", *words)
        assert status == 0
        assert ("the attention map of model/dead has one value" in err) == (name == "dead")
    # The results that an earlier run left have no map; those of this run are judged.
    os.remove(next(Path("dead").glob("*.png")))
    words = "-m", "dead", "-i", pairs.parent / "rain", "-o", "dead", "--device", "cpu"
    for path in Path("dead").glob("*.png"):
        os.utime(path, (time.time() + 100,) * 2)
    status, out, err = run("-a", "derain", *words, "--skip-existing")
    assert (status, "1 of 5 derained" in out) == (0, True)
    assert "the attention map of model/dead has one value" in err


def test_direction_attention_is_read_from_the_checkpoint(run, pairs):
    training = TrainingRun(Settings("train", device="cpu", direction_attention=True))
    training.step = 0
    save_run(training)
    status, _, err = run("-a", "test", "--test-list", pairs, "--device", "cpu")
    assert (status, err) == (0, "")
    assert json.loads(Path("results/summary.json").read_text())["direction_attention"] is True
    (rainy,) = (cv2.imread(row["rainy"]) for row in rows()[:1])
    x = torch.from_numpy(rainy).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        expected = training.net(x)[1][0].permute(1, 2, 0).clamp(0, 1).numpy()
    assert np.array_equal(cv2.imread("results/derained/pair0.png"), to_uint8(expected))
    assert torch.load("model/latest", weights_only=True)["settings"]["direction_attention"]


def test_the_worst_of_pairs_with_and_without_rain(capsys):
    def print_lines(**scores):
        for name, (before, after) in scores.items():
            psnr = {"rainy": {"released_psnr": before}, "derained": {"released_psnr": after}}
            rows.append(Result(0, name, {}, 8, 8, scores=psnr))
        print_worst(rows)
        return capsys.readouterr().out.splitlines()

    rows = []
    assert print_lines(better=(20, 30)) == ["lowest PSNR: better, 30.0000 dB"]
    dry = "the rainy and clean images are equal in {} pairs: there PSNR shows what was changed, "
    assert print_lines(dry=(math.inf, math.inf))[1:] == [dry.format("1 of 2") + "nothing"]
    assert print_lines(worse=(40, 39.5), same=(31, 31), hurt=(math.inf, 25)) == [
        "lowest PSNR: hurt, 25.0000 dB",
        "largest loss against the rainy image: worse, 0.5000 dB; 1 of 3 lose",
        dry.format("2 of 5") + "most in hurt, 25.0000 dB",
    ]
