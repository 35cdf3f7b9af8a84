"""Nothing is lost: kills, crashes within a save, changed settings, two runs at once, faults."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command, finish, last_of_each, started, write_pairs
from soak import soak, steps_of_events
from test_train import SMALL, clock, events, weights

import dataset
from engine import training_loop
from engine.training_run import TrainingRun, find_changes
from settings import Settings, UserError
from system import files


def start(pairs: Path, *more: object) -> list[object]:
    words = ["-a", "train", "--train-list", pairs, *SMALL, "--latest-every", 1, *more]
    return last_of_each(words)


def test_killed_runs_end_as_one_left_alone(tmp_path):
    pairs = write_pairs(tmp_path / "data", [(24, 24)] * 5)
    assert len(soak(tmp_path, pairs, steps=30, every=3, kills=2, longest=1.0)) == 2


CRASHES = '''
import builtins, os, sys
sys.path.insert(0, sys.argv[1])
import torch
from engine import checkpoint
from system import files

class Crashing:
    """A module whose calls end the process at the n-th, ahead of it or after it."""
    left = 10**9
    def __init__(self, module):
        self.module = module
    def __getattr__(self, name):
        what = getattr(self.module, name)
        if not callable(what) or isinstance(what, type):
            return what
        def call(*arguments, **options):
            tick()
            found = what(*arguments, **options)
            tick()
            return CrashingFile(found) if self.module is builtins else found
        return call

class CrashingFile:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def write(self, data):
        tick()
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        tick()
        self.file.write(data[len(data) // 2 :])
    def __getattr__(self, name):
        return getattr(self.file, name)

def tick():
    Crashing.left -= 1
    if Crashing.left < 0:
        real_exit(9)

real_exit, old, new = os._exit, torch.zeros(1000), torch.ones(1000)
from pathlib import Path
path = Path("model/latest")
checkpoint.save(path, {"net": {"x": old}, "clock": 1})
files.os, files.secrets = Crashing(os), Crashing(files.secrets)
files.open = Crashing(builtins).open
outcomes = []
for number in range(1000):
    child = os.fork()
    if child == 0:
        Crashing.left = number
        checkpoint.save(path, {"net": {"x": new}, "clock": 2})
        real_exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = checkpoint.load(path)
    assert torch.equal(found["net"]["x"], new if found["clock"] == 2 else old)
    outcomes.append(found["clock"])
    if status == 0:
        break
    assert status == 9
    checkpoint.save(path, {"net": {"x": old}, "clock": 1})
print(*outcomes)
'''


def test_a_crash_at_any_call_of_a_save_leaves_a_whole_checkpoint():
    done = finish([sys.executable, "-c", CRASHES, str(ROOT)])
    assert done.returncode == 0, done.stderr
    clocks = [int(word) for word in done.stdout.split()]
    assert clocks == sorted(clocks)  # once the new one is there, it stays
    assert clocks.count(1) > 10
    assert clocks.count(2) > 3
    unfinished = [path.name for path in Path("model").glob(".*")]
    assert unfinished
    files.remove_unfinished([Path("model")])
    assert [path.name for path in Path("model").iterdir()] == ["latest"]


def test_a_changed_recipe_is_refused_and_can_be_allowed(run, pairs):
    run(*start(pairs, "--num-steps", 1))
    before = Path("model/latest").read_bytes()
    status, _, err = run(*start(pairs, "--num-steps", 2, "--lr", 0.001, "--seed", 3))
    assert status == 2
    assert err == (
        "main.py: model/latest: was trained with other settings: --lr is 0.001, was 0.0005; "
        "--seed is 3, was 2019; expected the same, --run NAME for a new run, or "
        "--allow-changed-settings to go on with this one\n"
    )
    assert Path("model/latest").read_bytes() == before
    words = ["--num-steps", 2, "--lr", 0.001, "--seed", 3, "--allow-changed-settings"]
    status, out, err = run(*start(pairs, *words))
    assert (status, err) == (0, "")
    assert "going on with changes: --lr is 0.001, was 0.0005; --seed is 3, was 2019" in out
    free = ["--num-workers", 1, "--log-dir", "other", "--latest-every", 3, "--num-threads", 1]
    status, _, err = run(*start(pairs, "--num-steps", 3, "--lr", 0.001, "--seed", 3, *free))
    assert (status, err) == (0, "")


def test_what_of_the_settings_is_the_recipe():
    changed = {
        "seed": 1, "batch_size": 2, "lr": 0.1, "lr_decay": 0.5, "lr_decay_step": 3,
        "patch_size": 8, "crop_area_min": 0.5, "crop_aspect_max": 1.5, "precision": "bf16",
        "direction_attention": True, "mask_threshold": 9,
    }  # fmt: skip
    found = find_changes(vars(Settings("train")), Settings("train", **changed))
    assert len(found) == len(changed)
    free = {
        "num_workers": 5,
        "log_dir": "x",
        "num_steps": 9,
        "accumulate_steps": 4,
        "compile": True,
    }
    assert find_changes(vars(Settings("train")), Settings("train", **free)) == []
    assert find_changes({}, Settings("train", **changed)) == []
    # An older checkpoint lacks a setting: it was trained as the default does.
    older = vars(Settings("train")) | {}
    del older["mask_threshold"]
    assert find_changes(older, Settings("train")) == []
    found = find_changes(older, Settings("train", mask_threshold=9))
    assert found == ["--mask-threshold is 9, was 0"]


def test_another_list_is_refused_a_moved_one_is_not(run, pairs, monkeypatch):
    run(*start(pairs, "--num-steps", 1))
    pairs.write_text("# the same\n\n" + pairs.read_text())
    monkeypatch.chdir(pairs.parent)
    there = ["--model-dir", pairs.parent.parent / "model", "--num-steps", 2]
    assert run(*start(pairs.name, *there))[0] == 0
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:-1]))
    status, _, err = run(*start(pairs.name, *there[:-1], 3))
    assert status == 2
    assert "was trained with other settings: the training list names other pairs; expected" in err


def test_init_from_takes_the_weights_alone(run, pairs):
    run(*start(pairs, "--num-steps", 2, "--model-dir", "old"))
    base = start(pairs, "--init-from", "old/latest", "--lr", 0)
    assert run(*base, "--num-steps", 1)[0] == 0
    # At a rate of 0 the weights stay as they came; clock and moments are new.
    assert all(map(torch.equal, weights("model/latest"), weights("old/latest")))
    content = torch.load("model/latest", weights_only=True)
    assert content["clock"] == 0
    assert {int(state["step"]) for state in content["opt"]["state"].values()} == {1}
    status, out, _ = run(*base, "--num-steps", 2)
    assert status == 0
    assert "model/latest is there: going on from it, not from old/latest" in out
    assert "steps 1 to 1" in out
    status, _, err = run(*start(pairs, "--init-from", "nowhere", "--model-dir", "new"))
    assert status == 2
    assert "nowhere: no such checkpoint" in err
    message = (
        "expected no -m, for a new run from these weights, or no --init-from, to go on with other"
    )
    assert message in run(*base, "-m", "other")[2]


def test_two_runs_on_one_folder_and_a_lock_that_dies_with_its_owner(pairs):
    words = command(*start(pairs, "--num-steps", 1000, "--num-workers", 2))
    with started(words, stdout=subprocess.DEVNULL) as first:
        until(has_a_step)
        second = finish(words)
        assert second.returncode == 2
        assert second.stderr == (
            "main.py: model: another run is writing there; expected one at a time\n"
        )
        first.kill()  # its workers live on for a moment
        first.wait()
        with files.exclusive(Path("model")):
            pass


def has_a_step() -> bool:
    return Path("model/latest").exists() and clock("model/latest") >= 0


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_worker_is_one_line_and_latest_is_good(pairs):
    words = command(*start(pairs, "--num-steps", 1000, "--num-workers", 1))
    with started(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        until(has_a_step)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert len(children) == 2  # of training and of validation
        os.kill(int(children[0]), signal.SIGKILL)
        _, err = run.communicate(timeout=60)
        assert run.returncode == 2
        assert err == ("main.py: a process that loads data was killed; was there enough memory?\n")
        resumed = TrainingRun(Settings("train", device="cpu", allow_changed_settings=True))
        resumed.resume(Path("model/latest"))
        assert resumed.step >= 0


def test_loading_processes_that_cannot_start_are_done_without(pairs):
    words = command(*start(pairs, "--num-steps", 1, "--num-workers", 40))
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    limited += "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = finish([words[0], "-c", limited, *words[1:]])
    assert done.returncode == 0
    assert clock("model/latest") == 0
    assert set(done.stderr.splitlines()) == {
        "main.py: no processes can be started (Too many open files): this one works alone, which "
        "takes longer"
    }


def test_a_fault_in_a_loading_process_is_not_reported_as_its_end(run, pairs, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(dataset, "resized_crop", broken)
    monkeypatch.setattr(training_loop, "read_batch", lambda *_: None)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        run(*start(pairs, "--num-steps", 1, "--num-workers", 1))


# Scores


def test_the_best_score_of_the_validation_list_is_kept(run, pairs, tmp_path):
    val = write_pairs(tmp_path / "val", [(20, 23), (16, 18)], seed=5)
    base = start(pairs, "--val-list", val, "--val-every", 2)
    assert run(*base, "--num-steps", 4)[0] == 0  # scored after steps 2 and 3
    assert run(*base, "--num-steps", 7)[0] == 0  # 4 and 6
    scores = events("logdir/val_derain")["score/psnr"]
    assert list(scores) == [2, 3, 4, 6]
    best = torch.load("model/best", weights_only=True)
    step = max(scores, key=scores.get)
    assert best["clock"] == best["best"]["step"] == step
    assert best["best"]["psnr"] == pytest.approx(scores[step])
    # The same as a test of that checkpoint reports.
    status, out, _ = run("-a", "test", "-m", "best", "--test-list", val, "--device", "cpu")
    assert status == 0
    assert f"PSNR {best['best']['psnr']:.4f}" in out


def test_a_file_in_the_way_of_the_lock_is_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        files.lock_file(tmp_path / "nowhere" / "x", "taken")


def test_a_clock_moved_back_and_a_crowded_folder_change_nothing(run, pairs, monkeypatch):
    run(*start(pairs, "--num-steps", 2))
    for number in range(10_000):
        (Path("model") / f"step_{number:05}").touch()
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert run(*start(pairs, "--num-steps", 4))[0] == 0
    found = steps_of_events(Path("logdir/train_derain"))["loss/total"]
    assert found == [0, 1, 2, 3]
    assert clock("model/latest") == 3
    status, _, err = run("-a", "test", "-m", "nothing", "--test-list", pairs)
    assert status == 2
    assert len(err) < 300


def test_not_enough_memory_is_one_line(run, pairs, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(training_loop, "train_one_step", broken)
    status, _, err = run(*start(pairs, "--num-steps", 1))
    assert status == 2
    assert err.startswith("main.py: step 0: not enough memory on cpu for 2 crops of 16x16 pixels")


def test_a_score_that_a_signal_forestalled_is_made_up_for(run, pairs, tmp_path, monkeypatch):
    val = write_pairs(tmp_path / "val", [(16, 16)])
    words = start(pairs, "--val-list", val, "--val-every", 2, "--num-steps", 5)
    original, calls = training_loop.train_one_step, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "train_one_step", interrupted)
        assert run(*words)[0] == 143
    assert clock("model/latest") == 2
    assert "score/psnr" not in steps_of_events(Path("logdir/val_derain"))
    assert run(*words)[0] == 0
    assert steps_of_events(Path("logdir/val_derain"))["score/psnr"] == [2, 4]


def test_another_validation_list_starts_a_new_best(run, pairs, tmp_path):
    for name in ("one", "two"):
        write_pairs(tmp_path / name, [(16, 16)])
    words = start(pairs, "--val-every", 1)
    run(*words, "--num-steps", 2, "--val-list", tmp_path / "one" / "list.txt")
    content = torch.load("model/latest", weights_only=True)
    content["best"]["psnr"] = 99.0  # never reached again
    torch.save(content, "model/latest")
    run(*words, "--num-steps", 3)  # without a list nothing is scored, and nothing forgotten
    # A moved list is the same list.
    run(*words, "--num-steps", 4, "--val-list", tmp_path / "two" / "list.txt")
    assert torch.load("model/latest", weights_only=True)["best"]["psnr"] == 99.0
    (tmp_path / "two" / "list.txt").write_text("rain/pair0.png rain/pair0.png\n")
    run(*words, "--num-steps", 5, "--val-list", tmp_path / "two" / "list.txt")
    best = torch.load("model/latest", weights_only=True)["best"]
    assert best["psnr"] < 99
    assert best["step"] == best["scored"] == 4


def test_the_best_is_chosen_by_a_protocol(run, pairs, tmp_path):
    val = write_pairs(tmp_path / "val", [(16, 16)])
    words = start(pairs, "--val-every", 1, "--val-list", val)
    run(*words, "--num-steps", 2)
    content = torch.load("model/latest", weights_only=True)
    content["best"]["psnr"] = 99.0
    del content["best"]["protocol"]  # as in a checkpoint from before there was a choice
    torch.save(content, "model/latest")
    run(*words, "--num-steps", 3)
    assert torch.load("model/latest", weights_only=True)["best"]["psnr"] == 99.0
    status, out, _ = run(*words, "--num-steps", 4, "--val-protocol", "y")
    assert status == 0
    assert re.search(r"step 3: .*list.txt in the y protocol, the best so far\n", out)
    best = torch.load("model/best", weights_only=True)["best"]
    run("-a", "test", "-m", "best", "--test-list", val, "--device", "cpu")
    means = json.loads(Path("results/summary.json").read_text())["means"]
    assert best["psnr"] == pytest.approx(means["output_y_psnr"])
    assert (best["step"], best["protocol"]) == (3, "y")


def test_a_score_that_is_no_number_is_no_best(run, pairs, tmp_path, monkeypatch):
    val = write_pairs(tmp_path / "val", [(16, 16)])
    scores = iter([float("nan"), 20.0, float("nan"), 19.0])
    monkeypatch.setattr(training_loop, "validate", lambda *_: (next(scores), 0.5))
    assert run(*start(pairs, "--val-list", val, "--val-every", 1, "--num-steps", 5))[0] == 0
    best = torch.load("model/latest", weights_only=True)["best"]
    assert (best["psnr"], best["step"], best["scored"]) == (20.0, 2, 4)
