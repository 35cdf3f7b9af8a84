"""Several ranks follow the same curve as one; parts of a batch, precision and compilation too."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, command, finish, save_run, started, write_pairs
from forked import FORKING
from test_model import recipe_weights
from test_resume import start, until
from test_train import SMALL, clock, events, weights

from actions import train
from actions.train import PIXELS
from cal_ssim import SSIM
from engine.ranks import Ranks
from engine.training_run import TrainingRun
from engine.training_step import train_one_step
from media.inspection import sample_indices
from model import SPANet
from settings import Settings, UserError


def torchrun(ranks: int, *words: object, restarts: int = 0) -> list[str]:
    """Its ranks are forked from its first child, see forked.py."""
    python, *program = command(*words)
    launcher = ["-c", FORKING, find_spec("torch.distributed.run").origin]
    options = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    return [python, *launcher, *options, "--", *program]


def run_ranks(count: int, *words: object, code: str = "") -> subprocess.CompletedProcess[str]:
    """As torchrun starts them, without its own start, which takes longer than the ranks' work.

    Args:
        code: what each rank does before it runs main.py.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count}
    common |= {"LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": 1}
    with (
        contextlib.ExitStack() as stack,
        open("out.txt", "w+") as out,
        open("err.txt", "w+") as err,
    ):
        runs = []
        for rank in range(count):
            own = common | {"RANK": rank, "LOCAL_RANK": rank}
            environment = os.environ | {name: str(value) for name, value in own.items()}
            program = command(*words)
            if code:
                text = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import main\n{code}\n"
                text += "sys.exit(main.main(sys.argv[1:]))"
                program[1:2] = ["-c", text]
            run = started(program, stdout=out, stderr=err, env=environment)
            runs.append(stack.enter_context(run))
        status = max(run.wait(120) for run in runs)
        texts = [Path(file.name).read_text() for file in (out, err)]
    return subprocess.CompletedProcess(words, status, *texts)


def test_two_ranks_follow_the_curve_of_one_and_resume_as_one(run, pairs):
    def words(folder, steps):
        place = ["--model-dir", f"{folder}/model", "--log-dir", f"{folder}/log"]
        words = start(pairs, "--batch-size", 4, "--latest-every", 7, "--lr", 1e-3)
        words += ["--ema", 0.9, "--grad-clip", 1, "--warmup-steps", 3]
        return [*words, *place, "--num-steps", steps]

    assert run(*words("one", 14))[0] == 0
    done = run_ranks(2, *words("two", 14))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": 5 pairs, steps 0 to 13, 14 left") == 1
    assert done.stdout.count("two/model/latest holds step 13") == 1
    assert done.stdout.count("steps a second: about ") == 1
    for kind in ("train_derain", "val_derain"):
        found, expected = (events(f"{folder}/log/{kind}") for folder in ("two", "one"))
        assert found.keys() == expected.keys()
        assert len(expected["loss/total"]) == (14 if kind == "train_derain" else 4)
        assert found["loss/total"] == pytest.approx(expected["loss/total"], rel=1e-4)
    one, two = (torch.load(f"{name}/model/latest", weights_only=True) for name in ("one", "two"))
    for kind in ("net", "ema"):
        for key, tensor in one[kind].items():
            assert (two[kind][key] - tensor).norm() <= 1e-3 * tensor.norm()
    assert run(*words("two", 16))[0] == 0  # by one rank
    assert run(*words("one", 16))[0] == 0
    found, expected = (
        events(f"{folder}/log/train_derain")["loss/total"] for folder in ("two", "one")
    )
    assert list(found) == list(range(16))
    assert found == pytest.approx(expected, rel=1e-3)


FUSED = """
import torch
plain = torch.optim.Adam
torch.optim.Adam = lambda *words, **options: plain(*words, **(options | {"fused": True}))
from engine.training_run import TrainingRun
TrainingRun.max_pending_steps = 1
"""


def test_ranks_run_ahead_as_one_rank_does(run, pairs, monkeypatch):
    def words(folder):
        place = ["--model-dir", f"{folder}/model", "--log-dir", f"{folder}/log"]
        cadence = ["--latest-every", 100, "--val-batch-every", 3, "--num-steps", 8]
        return start(pairs, "--batch-size", 4, *cadence, *place)

    plain = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **b: plain(*a, **(b | {"fused": True})))
    monkeypatch.setattr(TrainingRun, "max_pending_steps", 1)
    assert run(*words("one"))[0] == 0
    order = """
from engine import training_loop
launch, collect = training_loop.launch_step, training_loop.collect_step
def record_launch(*words):
    print(f"launch {words[2]}", flush=True)
    return launch(*words)
def record_collect(run, pending, *words):
    print(f"read {pending.step}", flush=True)
    return collect(run, pending, *words)
training_loop.launch_step, training_loop.collect_step = record_launch, record_collect
"""
    done = run_ranks(2, *words("two"), code=FUSED + order)
    assert done.returncode == 0, done.stderr
    for kind, count in (("train_derain", 8), ("val_derain", 3)):
        found, expected = (events(f"{name}/log/{kind}")["loss/total"] for name in ("two", "one"))
        assert len(expected) == count
        assert found == pytest.approx(expected, rel=1e-4)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("launch", "read"))]
    assert lines.index("launch 3") < lines.index("read 2")


def test_a_loss_that_is_not_finite_is_reported_by_the_rank_of_its_batch(pairs):
    broken = """
import os
from engine import training_step
original, calls = training_step.compute_losses, []
def broken(*words):
    losses, mask, output = original(*words)
    calls.append(1)
    if torch.is_grad_enabled() and os.environ["RANK"] == "1" and len(calls) > 2:
        losses["loss"] = losses["loss"] * float("nan")
    return losses, mask, output
training_step.compute_losses = broken
"""
    done = run_ranks(2, *start(pairs, "--batch-size", 4, "--num-steps", 6), code=FUSED + broken)
    assert done.returncode == 2
    lines = sorted(done.stderr.splitlines())
    assert len(lines) == 2
    assert lines[0].startswith("main.py, rank 1: step ")
    assert "the loss is nan; the batch is of " in lines[0]
    assert lines[1].endswith("stopped, the loss of another rank is not finite")


def test_ranks_share_a_test_and_its_table_is_that_of_one(run, pairs):
    torch.manual_seed(0)
    save_run(TrainingRun(Settings("train", device="cpu")))
    words = ["-a", "test", "--test-list", pairs, "--device", "cpu", "--num-threads", 1]
    assert finish(command(*words, "--result-dir", "one")).returncode == 0
    done = run_ranks(2, *words, "--result-dir", "two", "--log-dir", "logdir2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PSNR ") == 2  # the head of the table and the last line, of one rank
    assert done.stdout.count("lowest PSNR:") == 1
    assert Path("two/metrics.csv").read_bytes() == Path("one/metrics.csv").read_bytes()
    for path in Path("one").rglob("*.png"):
        assert (Path("two") / path.relative_to("one")).read_bytes() == path.read_bytes()
    assert events("logdir2/test_derain") == events("logdir/test_derain")


def test_a_killed_rank_takes_the_others_down_and_a_restart_goes_on(pairs):
    words = start(pairs, "--num-steps", 24, "--latest-every", 5, "--batch-size", 4)
    with started(
        torchrun(2, *words, restarts=1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        until(lambda: Path("model/latest").exists() and clock("model/latest") >= 5)
        # The first is the one that the ranks are forked from.
        _, *ranks = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert len(ranks) == 2
        os.kill(int(ranks[1]), signal.SIGKILL)
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
        # Either the other rank or torchrun notices first, and reports it in its own words.
        assert "stopped, another rank was lost" in err or "failed (exitcode: -9)" in err
        assert out.count("training on 2 ranks") == 2
        assert "model/latest holds step 23" in out
        assert list(events("logdir/train_derain")["loss/total"]) == list(range(24))


def test_ranks_stop_when_torchrun_is_killed(pairs):
    words = start(pairs, "--num-steps", 10**6, "--latest-every", 10**6, "--num-workers", 1)
    with started(torchrun(2, *words), stdout=subprocess.PIPE, text=True) as run:
        until(lambda: run.stdout.readline().startswith("26/"))
        children = psutil.Process(run.pid).children(recursive=True)
        assert clock("model/latest") == 0
        run.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []
        assert clock("model/latest") >= 25


# The program whose destroy_process_group waits for ever, as that of nccl does for other ranks.
FAILING = """
import runpy, sys, time
root, kind = sys.argv[1:]
sys.path.insert(0, root)
import torch.distributed as dist
from actions import train
from engine.ranks import Ranks
from settings import UserError

def fail(settings):
    with Ranks():
        raise {"UserError": UserError, "RuntimeError": RuntimeError}[kind]("what failed")

dist.is_initialized = lambda: True
dist.destroy_process_group = lambda: time.sleep(1000)
train.train = fail
sys.argv = ["main.py", "-a", "train"]
runpy.run_path(root + "/main.py", run_name="__main__")
"""


@pytest.mark.parametrize(("kind", "status"), [("UserError", 2), ("RuntimeError", 1)])
def test_a_rank_that_fails_says_so_and_does_not_wait_for_the_others(kind, status):
    words = [sys.executable, "-c", FAILING, str(ROOT), kind]
    done = finish(words, env=os.environ | {"WORLD_SIZE": "2", "RANK": "1"})
    assert done.returncode == status
    last = done.stderr.splitlines()[-1]
    assert (
        last == ("main.py, rank 1: " if kind == "UserError" else "RuntimeError: ") + "what failed"
    )


class ThreadRanks(Ranks):
    """One of two ranks that are threads of this process."""

    def __init__(self, rank: int, items: list, meeting: threading.Barrier) -> None:
        self.rank, self.world_size, self.items, self.meeting = rank, 2, items, meeting

    def all_gather(self, item):
        self.items[self.rank] = item
        self.meeting.wait(10)
        items = list(self.items)
        self.meeting.wait(10)
        return items


@pytest.mark.parametrize("bad", [None, 2, 3])
def test_all_ranks_get_all_items_in_turn_or_the_error_of_one(bad):
    def work(number: int) -> int:
        if number == bad:
            raise UserError(f"item {number}")
        return number

    def collect(ranks: ThreadRanks) -> list:
        found = []
        try:
            found.extend(ranks.interleave(map(work, range(ranks.rank, 5, 2)), 5))
        except UserError as error:
            found.append(str(error))
        return found

    items, meeting = [None] * 2, threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(collect, [ThreadRanks(rank, items, meeting) for rank in range(2)]))
    expected = list(range(5)) if bad is None else [*range(bad), f"item {bad}"]
    assert found == [expected, expected]


def test_a_launcher_that_passes_the_rank_as_an_option_is_answered_by_torchrun(run):
    status, _, err = run("--local-rank=0", "-a", "train")
    line = "main.py: unknown option --local-rank; expected torchrun to start the ranks\n"
    assert (status, err) == (2, line)


def test_a_bad_image_on_one_rank_ends_all_with_its_message(tmp_path):
    pairs = write_pairs(tmp_path / "data", [(17, 17)] * 70, density=10)
    # A pair whose pixels are not looked at before the first step, and whose header is in order.
    number = min(set(range(70)) - set(sample_indices(70, PIXELS, Settings("train").seed)))
    path = pairs.parent / "rain" / f"pair{number}.png"
    path.write_bytes(path.read_bytes()[:-20])
    began = time.monotonic()
    done = run_ranks(2, *start(pairs, "--num-steps", 1000, "--batch-size", 4))
    assert done.returncode != 0
    assert f"list.txt:{number + 1}: " in done.stderr
    assert f"pair{number}.png: not an image" in done.stderr
    assert "share of mask pixels" in done.stdout
    assert time.monotonic() - began < 60


def test_ranks_tell_of_bad_images_once_and_score_the_others(pairs, model):
    (pairs.parent / "rain" / "pair1.png").write_bytes(b"gone")
    late = pairs.parent / "rain" / "pair3.png"
    late.write_bytes(late.read_bytes()[:-20])
    done = run_ranks(2, "-a", "test", "--test-list", pairs, "--device", "cpu")
    assert done.returncode != 0
    for number in (2, 4):
        assert done.stderr.count(f"list.txt:{number}: ") == 1
    assert done.stdout.endswith("(released protocol, 3 of 5 images)\n")
    assert Path("results/index.html").exists()


def test_a_batch_that_ranks_cannot_share_is_refused_with_the_numbers(run, pairs):
    with pytest.raises(UserError) as caught:
        train._check_batch(Settings("train", batch_size=6, accumulate_steps=2), world_size=2)
    assert str(caught.value) == (
        "--batch-size: 6 is not a multiple of 4 (ranks: 2, --accumulate-steps: 2)"
    )
    train._check_batch(Settings("train", batch_size=8, accumulate_steps=2), world_size=2)
    status, _, err = run(*start(pairs, "--accumulate-steps", 3))
    assert status == 2
    assert "--batch-size: 2 is not a multiple of 3" in err


def test_an_environment_that_is_not_torchruns_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE: 'two' is not a number"):
        Ranks()


def test_a_batch_in_parts_has_the_same_gradients():
    torch.manual_seed(0)
    rainy, clean = torch.rand(2, 4, 3, 16, 16)
    tensors = (rainy, clean, torch.rand(4, 16, 16))
    found = []
    for parts in (1, 2, 4):
        net = recipe_weights(SPANet())
        optimiser = torch.optim.Adam(net.parameters())
        settings = Settings("train", lr=0.0, accumulate_steps=parts)
        values = train_one_step(net, optimiser, SSIM(), settings, 0, tensors)
        values = {name: value.item() for name, value in values.items()}
        found.append((values, [p.grad for p in net.parameters() if p.grad is not None]))
    (whole, gradients), *others = found
    for values, in_parts in others:
        assert values == pytest.approx(whole, rel=1e-5)
        for a, b in zip(in_parts, gradients, strict=True):
            assert (a - b).norm() <= 1e-4 * b.norm()


def test_bf16_trains_close_to_fp32(run, pairs):
    for precision in ("fp32", "bf16"):
        place = ["--model-dir", precision, "--log-dir", f"log-{precision}"]
        assert run(*start(pairs, "--num-steps", 8, "--precision", precision, *place))[0] == 0
    losses = [events(f"log-{p}/train_derain")["loss/total"] for p in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in weights("bf16/latest"))


def test_tf32_needs_a_gpu(run, pairs):
    status, _, err = run(*start(pairs, "--precision", "tf32"))
    assert status == 2
    assert err == "main.py: --precision: tf32 needs a GPU; expected fp32 or bf16\n"


@pytest.mark.parametrize(("lean", "bf16"), [(False, True), (True, False)])
def test_the_network_compiles_without_graph_breaks(lean, bf16, monkeypatch):
    monkeypatch.setattr("model.STAGES", 1)  # the others repeat it, and take seconds
    torch.manual_seed(0)
    net = recipe_weights(SPANet(checkpoint_activations=lean))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    image = torch.rand(1, 3, 9, 7)
    results = []
    for module in (net, compiled):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            mask, output = module(image)
        (mask.float().mean() + output.float().mean()).backward()
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        results.append([mask, output, *gradients])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= (0.1 if bf16 else 1e-4) * b.norm()


# Training with a network that torch translates sooner than SPANet, which takes it half a minute.
QUICK = """
import sys, torch
sys.path.insert(0, sys.argv.pop(1))
import main
from engine import training_run

class Network(torch.nn.Conv2d):
    def __init__(self, *_):
        super().__init__(3, 3, 1)

    def forward(self, image):
        output = super().forward(image)
        return output[:, :1].sigmoid(), output

training_run.SPANet = Network
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("compiler", ["/nonexistent", "/etc/passwd"])
def test_without_a_compiler_compile_is_one_line(pairs, compiler):
    environment = os.environ | {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": os.getcwd()}
    words = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 1, "--compile"]
    words = [sys.executable, "-c", QUICK, str(ROOT), *map(str, words)]
    done = finish(words, fresh=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "main.py: --compile: torch finds no compiler, or not Python's headers; expected g++ or "
        "clang++ (or that in CXX), and Python.h (on Debian: apt install g++ python3-dev)"
    )
