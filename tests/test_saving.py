"""Saving beside the training: what is saved, the order of saves, and their failures."""

import threading

import pytest
import torch

from engine import checkpoint
from engine.training_run import TrainingRun
from settings import Settings, UserError


@pytest.fixture
def training(monkeypatch, tmp_path) -> TrainingRun:
    monkeypatch.chdir(tmp_path)
    return TrainingRun(Settings("train", device="cpu", ema=0.9))


def test_a_save_holds_the_run_as_it_was(training, monkeypatch):
    """Whatever the steps after it do meanwhile; and the next save comes after it."""
    go_on, original, saved = threading.Event(), checkpoint.save, []

    def save_later(path, content):
        assert go_on.wait(60)
        original(path, content)
        saved.append(path.name)

    monkeypatch.setattr(checkpoint, "save", save_later)
    before = {key: tensor.clone() for key, tensor in training.net.state_dict().items()}
    training.step = 4
    training.start_save("step_4")
    assert not training.path("step_4").exists()
    with torch.no_grad():
        for parameter in (*training.net.parameters(), *training.ema.parameters()):
            parameter.add_(1)
    training.step = 5
    threading.Timer(0.1, go_on.set).start()
    training.start_save("latest")  # waits for the one before
    assert saved[:1] == ["step_4"]
    training.finish_save()
    assert saved == ["step_4", "latest"]
    first, second = (checkpoint.load(training.path(name)) for name in ("step_4", "latest"))
    assert (first["clock"], second["clock"]) == (4, 5)
    for key, tensor in before.items():
        for kind in ("net", "ema"):
            assert torch.equal(first[kind][key], tensor)
        changed = key in dict(training.net.named_parameters())
        assert torch.equal(second["net"][key], tensor + 1 if changed else tensor)


def test_a_save_that_fails_is_reported_by_the_next_or_at_the_end(training):
    training.path("latest").mkdir(parents=True)
    for end in (training.finish_save, lambda: training.start_save("step_1")):
        training.start_save("latest")
        with pytest.raises(UserError, match="model/latest: cannot be written"):
            end()
        training.finish_save()  # it is reported once
    training.start_save("latest")
    training.close()  # after another error, which is the one to report
    assert not list(training.path("latest").parent.glob(".writing*"))
