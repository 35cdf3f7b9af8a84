"""Kill a training run again and again, and see that it ends as one that was left alone.

Nor may a killed run leave a process behind.

python tests/soak.py --kills 30    runs it at length; test_resume.py runs it with few kills.
"""

import argparse
import contextlib
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import forked
import psutil
import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog

from benchmarks.curves import read_scalars
from engine import checkpoint
from engine.events import LAYOUT


def read_events(folder: Path) -> dict[str, list[tuple[int, object]]]:
    """What readers show of each tag: (step, value or bytes of an image), in the order of files."""
    found: dict[str, list[tuple[int, object]]] = defaultdict(list)
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while len(data) >= 12:
            (length,) = struct.unpack("<Q", data[:8])
            if len(data) < 16 + length:
                break  # killed within a write
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                for tag, items in found.items():
                    found[tag] = [item for item in items if item[0] < event.step]
            for value in event.summary.value:
                is_image = value.HasField("image")
                content = value.image.encoded_image_string if is_image else value.simple_value
                found[value.tag].append((event.step, content))
    return found


def steps_of_events(folder: Path) -> dict[str, list[int]]:
    """The steps of each tag that readers show."""
    found = {tag: [step for step, _ in items] for tag, items in read_events(folder).items()}
    for tag, curve in read_scalars(folder).items():  # TensorBoard's own reader
        assert list(curve) == found[tag]
    return {tag: steps for tag, steps in found.items() if steps}


def left_of(session: int, patience: float = 4.0) -> list[str]:
    """Commands of the session's processes that live on for so many seconds."""
    end = time.monotonic() + patience
    while (left := _living(session)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _living(session: int) -> list[str]:
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            own = os.getsid(process.pid) == session
            if own and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def train(folder: Path, pairs: Path, steps: int, every: int) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "main.py"), "-a", "train", "--device", "cpu"),
        *("--train-list", str(pairs), "--patch-size", "16", "--batch-size", "2"),
        *("--num-steps", str(steps), "--latest-every", str(every), "--num-workers", "1"),
        *("--picture-every", "5", "--val-batch-every", "3", "--num-threads", "1"),
        *("--model-dir", str(folder / "model"), "--log-dir", str(folder / "log")),
    ]


def finish(command: list[str]) -> None:
    with forked.Forked(command, stdout=subprocess.DEVNULL) as run:
        pass
    assert run.returncode == 0


def soak(
    folder: Path, pairs: Path, steps: int, every: int, kills: int, longest: float
) -> list[int]:
    """Run to the end with that many kills on the way. Returns the steps lost at each.

    Raises:
        AssertionError: it does not end as a run left alone.
    """
    rng = random.Random(0)
    alone, killed = folder / "alone", folder / "killed"
    start = time.monotonic()
    finish(train(alone, pairs, steps, every))
    # On a quick machine the steps would be done before the last kill: half of them are to be left.
    longest = min(longest, (time.monotonic() - start) / kills)
    latest, log = killed / "model" / "latest", killed / "log" / "train_derain"
    lost = []
    command = train(killed, pairs, steps, every)
    while len(lost) < kills:
        run = forked.Forked(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        run.stdout.readline()  # "training on ...": it has loaded all it needs
        time.sleep(rng.uniform(0, longest))
        run.send_signal(signal.SIGKILL)
        if run.wait() == 0:
            raise AssertionError(
                f"soak: all steps were done after {len(lost)} kills; expected more steps"
            )
        assert left_of(run.pid) == []
        seen = max(steps_of_events(log).get("loss/total", [-1]))
        clock = checkpoint.load(latest)["clock"] if latest.exists() else -1
        lost.append(seen - clock)
    finish(command)
    nets = [checkpoint.load(place / "model" / "latest") for place in (alone, killed)]
    for key, tensor in nets[0]["net"].items():
        assert torch.equal(tensor, nets[1]["net"][key]), key
    moments = [content["opt"]["state"] for content in nets]
    assert all(
        torch.equal(value, moments[1][index][key])
        for index, state in moments[0].items()
        for key, value in state.items()
    )
    assert max(lost) <= every
    for kind in ("train_derain", "val_derain"):
        found = [steps_of_events(place / "log" / kind) for place in (alone, killed)]
        for shown in found:
            shown.pop(LAYOUT, None)  # written at each start
        assert found[0] == found[1], kind
    assert found[1]
    assert steps_of_events(log)["loss/total"] == list(range(steps))
    assert not [name for name in os.listdir(latest.parent) if name.startswith(".writing-")]
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a training run again and again.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=4, help="steps between saves")
    parser.add_argument("--longest", type=float, default=2.0, help="seconds before a kill, at most")
    options = parser.parse_args()
    from conftest import write_pairs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_pairs(folder / "data", [(24, 24)] * 5)
        lost = soak(folder, pairs, options.steps, options.every, options.kills, options.longest)
    print(f"{len(lost)} kills, steps lost at each: {lost}; the same weights, moments and events")
    return 0


if __name__ == "__main__":
    sys.exit(main())
